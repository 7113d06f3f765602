"""What to do next, from what was found and what wasn't measured."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from midward.reports.blocks import Block, Card, Statement, listed, some
from midward.reports.report.find import RunFolder
from midward.world.world import MODELS

#: What a whole evaluation has: what it is called, the verbs that measure it, and the first of them.
WHOLE = (
    ("how often attacks succeed", ("attack",)),
    ("what the model can still do", ("utility",)),
    ("what a guard stops, and stops wrongly", ("guard eval",)),
    ("where in a response safety sits", ("probe prefill", "probe mirror")),
    ("in which order positions are committed", ("probe order",)),
    ("whether inner states tell harm", ("dynamics",)),
)
#: What a command takes besides where the model isn't the sandbox's, whose data are then no default.
ELSEWHERE = {
    "align": "--data FILE",
    "attack": "--goals advbench",
    "utility": "--tasks gsm8k",
    "probe prefill": "--goals advbench",
    "dynamics": "--attacked advbench",
}
ENOUGH = 35  # goals without a success whose interval lies below 10 %


def steps(
    runs: Sequence[RunFolder],
    cards: Sequence[Card],
    blocks: Sequence[tuple[Block, str, str]],
    shown: Callable[[str], str] = str,
) -> Iterator[tuple[str, str]]:
    """Steps, the most urgent first, each with the command that takes it from the folder that the process is in.

    Args:
        runs: all that were read, those that aren't finished too.
        cards: of the models.
        blocks: what is shown, with its run's label and verb.
        shown: a path as it may stand on the page.
    """
    first = next(({**model.model_dump(), "model": model.name} for run in runs for model in run.run.models), {})
    beside = os.path.relpath(os.path.commonpath([run.folder.absolute().parent for run in runs]) if runs else ".")
    verbs = {run.run.verb for run in runs}
    starts = {_start(run) for run in runs}
    guard = next((model.guard for run in runs for model in run.run.models if model.guard), "guard")

    def here(path: str) -> str:
        """A path of a run's record, from here."""
        return next((os.path.relpath(top / path) for top in starts if os.path.exists(top / path)), path)

    def command(verb: str, of: Mapping[str, Any], out: str = "") -> str:
        """midward VERB for a model, with its adapter, into a folder."""
        model = of.get("model") or "sandbox"
        home = Path(model).name in MODELS
        adapter = None if verb in ("align", "attack") else of.get("adapter")
        flags = {
            "--model": Path(model).name if home else here(model),
            "--adapter": adapter and here(adapter),
            "--guard": here(guard) if verb == "guard eval" else None,
        }
        flags["--out"] = _free(out or str(Path(beside, verb.replace(" ", "-"))))
        given = [f"{flag} {shlex.quote(shown(value))}" for flag, value in flags.items() if value]
        return " ".join(["midward", verb, *given, *([ELSEWHERE[verb]] if not home and verb in ELSEWHERE else [])])

    for run in runs:
        if run.unfinished:
            given = run.run.command or ["midward", *run.run.verb.split()]
            yield f"{run.label} {run.unfinished}.", _again(run, given, shown)
    exposed, held, unclear = ([card for card in cards if card.tone == tone] for tone in ("exposed", "held", "unclear"))
    if exposed:
        but = f" {_names(held)} held." if held else ""
        train = command("align", exposed[0].of, "adapters/mosa")
        more = "Train another way (midward align --help)" if "align" in verbs else "Train against it"
        yield f"{_names(exposed)} {_be(exposed)} exposed.{but} {more}, then attack again.", train
        fit = command("guard fit", exposed[0].of, "guard")
        if "guard eval" not in verbs:
            yield f"Or put a guard in front of {_names(exposed)}, and see what it stops.", fit
    unscored = [card for card in unclear if card.value == "-"]
    if unscored:
        check = "midward judges check --judges harmfulness --judge MODEL"
        yield f"Nothing was scored of {_names(unscored)}: name a judge whose replies can be read.", check
    if unclear := [card for card in unclear if card not in unscored]:
        card = unclear[0]
        anew = f"{command('attack', card.of)} --limit 100"
        more = next((_longer(run, shown) for run in runs if _measured(run, card)), anew)
        enough = "" if any(card.share for card in unclear) else f" Without one success {ENOUGH} would do."
        yield f"{_names(unclear)} {_be(unclear)} unclear: ask more goals.{enough}", more
    useless = [
        block
        for block, _, verb in blocks
        if isinstance(block, Statement) and block.tone == "exposed" and verb == "guard eval"
    ]
    if useless:
        sentence = f"{some(len(useless), 'guard')} above {_be(useless)} no use here: fit another."
        yield sentence, command("guard fit", first, "guard")
    for what, measured_by in WHOLE:
        if not verbs & {*measured_by}:
            yield f"Not measured here: {what}.", command(measured_by[0], first)


def _measured(run: RunFolder, card: Card) -> bool:
    """Whether a run is the attacks on a card's model."""
    of_card = [each for each in run.run.models if (each.label or "base") == card.model]
    same = any(each.adapter == card.of.get("adapter") for each in of_card)
    return run.run.verb == "attack" and bool(run.run.command) and same


def _longer(run: RunFolder, shown: Callable[[str], str]) -> str:
    """The command of a run, with more goals: it goes on."""
    given, limit = list(run.run.command), 50
    while "--limit" in given:
        place = given.index("--limit")
        value = "".join(given[place + 1 : place + 2])
        limit = (
            int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else limit
        )  # a file may say anything
        del given[place : place + 2]
    return _again(run, [*given, "--limit", str(max(100, 2 * limit))], shown)


def _start(run: RunFolder) -> Path:
    """The folder that a run was started in, as far as its relative paths tell: the nearest above it that has one."""
    names = [name for model in run.run.models for name in (model.name, model.adapter, model.guard) if name]
    parts = {part for word in [*run.run.command, *names] for part in re.split("[=:,]", word)}
    paths = [part for part in parts if not Path(part).is_absolute() and ("/" in part or Path(part).suffix)]
    tops = run.folder.absolute().parents
    return next((top for top in tops if any(os.path.exists(top / path) for path in paths)), Path.cwd())


def _again(run: RunFolder, given: Sequence[str], shown: Callable[[str], str]) -> str:
    """The command that goes on with a run: from where it was started, since it knows its paths as they were given."""
    start = _start(run)
    out = os.path.relpath(run.folder, start)
    there = "" if start == Path.cwd() else f"cd {shlex.quote(shown(os.path.relpath(start)))} && "
    return f"{there}{shlex.join(map(shown, given))} --out {shlex.quote(shown(out))}"


def _free(out: str) -> str:
    """The path, with a number behind it where something is there already."""
    return next(path for n in count(1) if not Path(path := f"{out}-{n}" if n > 1 else out).exists())


def _names(cards: Sequence[Card]) -> str:
    return listed([card.model for card in cards])


def _be(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
