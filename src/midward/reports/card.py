"""`midward report --card`: what runs measured of an adapter, written into the model card in its folder.

The Hub's metadata get a `model-index`, and the region between two comments a table, and what wasn't measured. All else
on the card stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from midward._hints import near_path, printable
from midward.alignment.card import CARD, REGION
from midward.errors import InputError, MissingFile
from midward.reports import render
from midward.reports.blocks import Block, Statement, Table, listed
from midward.reports.measured import READERS, Success, successes
from midward.reports.report.find import LeftOut, RunFolder, at_home, find
from midward.reports.report.next import WHOLE
from midward.runs.run import Measured
from midward.stats import Rate
from midward.store import write_text

#: Marks the results of a model-index that are ours, in a metric's args.
TOOL = "midward"
#: The table's column of the adapter alone, without a guard.
WITH = "with the adapter"
_REGION = re.compile("{0}(?:(?!{0}).)*?{1}".format(*map(re.escape, REGION)), re.DOTALL)


@dataclass
class Filled:
    """card: the file. runs: labels of those it is filled from. left_out: (run, why it isn't among them)."""

    card: Path
    runs: list[str]
    left_out: list[tuple[str, str]]


def fill(folders: Sequence[str | Path], adapter: str | Path) -> Filled:
    """Write what runs below `folders` measured of an adapter into its card. The same runs again change nothing.

    Args:
        folders: what midward commands wrote, or folders above.
        adapter: its folder. A run is of it where its record has the fingerprint that align.json says, and, without
            one there, where its record names this folder.

    Raises:
        MissingFile: a folder isn't there.
        InputError: the folder holds no adapter or no card that can be read, or no run is of the adapter.
    """
    adapter = Path(adapter)
    card, fingerprint = _read(adapter)
    found = find([Path(folder) for folder in folders])
    found.runs = [run for run in found.runs if run.run.verb != "align" and run.run.models]
    columns = list(found.read(lambda run: _columns(run, adapter, fingerprint)))
    rows, kept = [row for _, of_run in columns for row in of_run], [run for run, _ in columns]
    if not kept:
        reasons = "; ".join(f"{label} {why}" for label, why in found.troubles[:3]) or "there is none"
        raise InputError(f"no run below {', '.join(map(str, folders))} is of the adapter in {adapter}: {reasons}.")
    region = f"{REGION[0]}\n{render.markdown(list(_blocks(rows, kept)))}{REGION[1]}"
    if not _REGION.search(card.text):
        card.text = f"{card.text.rstrip()}\n\n## Safety\n\n{REGION[0]}{REGION[1]}\n"
    card.text = _REGION.sub(lambda _: region, card.text, count=1)
    data = cast(ModelCardData, card.data)
    others = [each for each in data.eval_results or [] if not _ours(each)]
    data.eval_results = [*others, *_results(rows)] or None
    data.model_name = data.model_name or printable(adapter.resolve().name, "")
    write_text(adapter / CARD, str(card))
    return Filled(adapter / CARD, [run.label for run in kept], found.troubles)


def _read(adapter: Path) -> tuple[ModelCard, str | None]:
    """The card of an adapter's folder, and the fingerprint of its model with it, where its record says one."""
    if not adapter.is_dir():
        raise MissingFile(f"there is no folder {adapter}.{near_path(adapter, folder=True)}")
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter} holds no adapter (adapter_config.json); give the folder that midward align wrote.")
    if not (adapter / CARD).is_file():
        raise InputError(f"{adapter} holds no card ({CARD}); put one there, or align again.")
    try:
        card = ModelCard.load(adapter / CARD)
        about = json.loads((adapter / "align.json").read_text(encoding="utf-8"))
        return card, about.get("fingerprint")
    except FileNotFoundError:  # of an adapter that another tool made
        return card, None
    except (ValueError, OSError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{adapter / CARD} can't be read ({' '.join(str(error).split())[:200]}); mend it.") from None


def _columns(run: RunFolder, adapter: Path, fingerprint: str | None) -> list[tuple[str, Success]]:
    """A run's rates of the adapter and of its bare base, each with the column that it stands in.

    Raises:
        LeftOut: the run isn't finished, or isn't of the adapter.
    """

    def is_it(model: Measured) -> bool:
        if fingerprint and model.fingerprint:
            return model.fingerprint == fingerprint
        return model.adapter is not None and Path(model.adapter).resolve() == adapter.resolve()

    own = [model for model in run.run.models if is_it(model)]
    if not own:
        names = [f"{model.name} + {model.adapter}" if model.adapter else model.name for model in run.run.models]
        raise LeftOut(f"is of {listed(list(dict.fromkeys(names)))}, not of this adapter on its base")
    run.check_finished()
    columns = []
    for row in successes(run):
        [first, *more] = row.of
        if more and any(map(is_it, row.of)):
            raise LeftOut(f"has this adapter as one of {len(row.of)} training seeds, whose rates are one")
        if is_it(first):
            columns.append((f"{WITH}, behind {row.guard}" if row.guard else WITH, row))
        elif (first.name, first.adapter, first.guard) == (own[0].name, None, None):
            columns.append(("base", row))
    return columns


def _blocks(rows: Sequence[tuple[str, Success]], runs: Sequence[RunFolder]) -> Iterator[Block]:
    """What the region says: what is no evidence, the table, and what wasn't measured."""
    if at_home(runs):
        yield Statement("Measured on the sandbox, an invented world: it is no evidence about any real model.")
    for warning in dict.fromkeys(row.warning for _, row in rows if row.warning):
        yield Statement(f"Warning: {warning}.", "unclear")
    heads = list(dict.fromkeys(["base", WITH, *(column for column, _ in rows)]))
    cells: dict[tuple[str, ...], dict[str, Rate]] = {}
    for column, row in rows:
        text = "" if row.text == "reply" else f", {row.text}"
        cells.setdefault((row.attack, row.goals or "-", row.judge + text, row.run.label), {})[column] = row.rate
    table = [[*names, *(rates.get(head) for head in heads)] for names, rates in cells.items()]
    note = "With 95 % intervals; n counts scored answers. Lower is safer."
    if table:
        yield Table("safety", "Attack success", ["attack", "goals", "judge", "run", *heads], table, note, named_by=4)
    verbs = {run.run.verb for run in runs}
    more = [what for what, of in WHOLE if verbs & {*of} - {*READERS}]
    yield from [Statement(f"Measured as well, see the runs: {'; '.join(more)}.")] if more else []
    lacking = [what for what, of in WHOLE if not verbs & {*of}]
    if not any((run.summary or {}).get("harmless") for run in runs):
        lacking.append("whether harmless requests are refused")
    yield Statement(f"Not measured: {'; '.join(lacking)}." if lacking else "Nothing that midward measures is missing.")


def _results(rows: Sequence[tuple[str, Success]]) -> Iterator[EvalResult]:
    """Rates of the adapter without a guard, as entries of the model-index."""
    for column, row in rows:
        if column != WITH or row.rate.value is None:
            continue
        numbers = {name: value for name, value in row.rate.record().items() if name not in ("stat", "value")}
        names = {"attack": row.attack, "judge": row.judge, "text": row.text, "run": row.run.label}
        goals = _name(row.goals or row.attack)
        yield EvalResult(
            task_type="text-generation",
            dataset_type=goals,
            dataset_name=goals,
            metric_type="attack_success_rate",
            metric_name=f"attack success, {_name(row.attack)}, judged by {_name(row.judge)}",
            metric_value=row.rate.value,
            metric_args={"tool": TOOL, **{key: _name(name) for key, name in names.items()}, **numbers},
        )


def _ours(result: EvalResult) -> bool:
    return isinstance(result.metric_args, dict) and result.metric_args.get("tool") == TOOL


def _name(text: str) -> str:
    """A text in the metadata: one line that can be printed."""
    return printable(" ".join(text.split()), "")
