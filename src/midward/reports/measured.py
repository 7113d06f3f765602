"""Attack success as runs have it, one number at a time: of which model behind which defence, by which attack.

It comes from two files of a run's folder: `run.json` says whose results they are, `summary.json` what came out. No row,
no log and no response is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from midward._tables import grouped
from midward.errors import InputError
from midward.reports.blocks import required, whole
from midward.reports.report.find import LeftOut, RunFolder
from midward.runs.run import Measured
from midward.stats import Rate


@dataclass(frozen=True)
class Success:
    """How often one attack succeeded.

    Attributes:
        of: the model with its adapter and guard; several are training seeds of one.
        label: what its rows are called.
        attack, goals, judge: by name; goals is empty where the attack's name says them.
        text: what was judged: reply, replay or authored.
        errors: goals without a result, which aren't in the rate's n; None where nobody says.
        warning: why it is no evidence; empty where nothing says so.
    """

    run: RunFolder
    of: Sequence[Measured]
    label: str
    attack: str
    goals: str
    judge: str
    text: str
    rate: Rate
    errors: int | None = None
    warning: str = ""

    @property
    def model(self) -> str:
        """The model's name; of a path from the root without the folders above it."""
        name = self.of[0].name
        return _end(name) if Path(name).is_absolute() else name

    @property
    def adapter(self) -> str:
        """The adapter's name; of several seeds the label of all of them. Empty without one."""
        named = [each.adapter for each in self.of if each.adapter]
        return f"{self.of[0].label} ({len(named)} seeds)" if len(named) > 1 else _end(named[0] if named else None)

    @property
    def guard(self) -> str:
        """The guard's name; empty without one."""
        return _end(self.of[0].guard).removesuffix(".safetensors")

    @property
    def defence(self) -> str:
        """Adapter and guard: mosa + hesitate."""
        return " + ".join(filter(None, (self.adapter, self.guard))) or "none"


def successes(run: RunFolder) -> list[Success]:
    """All rates of attack success in a run; none where its verb measures none.

    Raises:
        LeftOut: it has none yet.
        InputError, or KeyError and its like: its files hold what no command would have written.
    """
    if run.run.verb not in READERS:
        return []
    if run.summary is None:
        raise LeftOut(run.unfinished)
    return list(READERS[run.run.verb](run))


def of_attack(run: RunFolder, text: str = "") -> Iterator[Success]:
    """The rates of `midward attack`, on a text: by default the one that its table shows."""
    summary, models = run.summary, grouped(run.run.models, lambda each: each.label)
    text = text or str(summary.get("verdict") or "reply")
    for judge in summary["judges"]:
        if summary["measures"][judge] == "refused":
            continue
        for goals, by_attack in summary["asr"][judge][text].items():
            for attack, by_label in by_attack.items():
                for label, record in by_label.items():
                    errors = None if record.get("errors") is None else whole(record["errors"])
                    about = (_named(models, label), label, attack, goals, str(judge), text, required(record, Rate))
                    yield Success(run, *about, errors, str(summary.get("warning") or ""))


def _of_guards(run: RunFolder) -> Iterator[Success]:
    """A set of `guard eval` is an attack on goals by its own name; the first defence is none, of the same model."""
    measured = run.run.models
    if behind := run.run.settings.get("--behind"):  # whose answers they are: the guards' own model reads alone
        answered = {"name": str(behind), "fingerprint": None, "adapter": None}
        measured = [each.model_copy(update=answered) for each in measured]
    models = grouped(measured, lambda each: each.label)
    bare = [each.model_copy(update={"guard": None, "guard_digest": None}) for each in measured[:1]]
    judge = str(run.run.judges[0]["judge"]) if run.run.judges else ""
    for row in run.summary["defences"]:
        of = bare if row["defence"] == "none" else _named(models, row["defence"])
        for attack, record in row["asr"].items():
            if attack != "all":  # the others together
                yield Success(run, of, row["defence"], attack, "", judge, "reply", required(record, Rate))


def _named(models: Mapping[str, Sequence[Measured]], label: str) -> Sequence[Measured]:
    if label not in models:
        raise InputError(f"its record names no model {label!r}")
    return models[label]


def _end(path: str | None) -> str:
    return Path((path or "").rstrip("/")).name


#: Verb -> what reads its rates.
READERS = {"attack": of_attack, "guard eval": _of_guards}
