"""`midward probe order`: in which order the positions of a response are committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midward.cli._options import BatchSize, ModelOptions, SamplingOptions
from midward.cli._options import names as names_of
from midward.cli._run import run_folder
from midward.cli._show import bar, columns, out, say
from midward.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from midward.dynamics.order import Order
    from midward.models import LanguageModel
    from midward.sampling import Sampling

#: What the paper asks its models, in the sandbox's terms: harmless and harmful requests, maths and code.
AT_HOME = "sandbox-benign,sandbox,sums,programs"


def order(
    model: ModelOptions,
    sampling: SamplingOptions,
    sets: Annotated[
        str | None,
        typer.Option(
            help="Prompts by comma: sets of goals, .csv or .jsonl files, the sandbox's tasks (sums, recall, programs). "
            "On the sandbox by default its harmless and forbidden goals, sums and programs; else alpaca,advbench."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--limit", "--count", min=2, help="Prompts of each set.")] = 50,
    column: Annotated[str | None, typer.Option(help="Of a file: the column of the prompts.")] = None,
    batch_size: BatchSize = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of rows, tables and figures.")] = Path(
        "probe-order"
    ),
) -> None:
    """Mean position of newly committed tokens by step, with padding told apart. Run again, it goes on.

    All steps are run, as in MOSA's figure 5, which has --length 128 --steps 32 and one block.
    """
    run = run_folder(out_folder)
    given = sets if sets is not None else AT_HOME if model.at_home else "alpaca,advbench"
    names = list(dict.fromkeys(names_of(given)))
    if not names:
        raise InputError("--sets names no set; see midward goals.")
    prompts = {_label(name): _prompts(name, count, column) for name in names}
    if len(prompts) < len(names):
        raise InputError(f"two of the sets have the same name: {', '.join(names)}; rename one of the files.")

    loaded = model.load()
    if loaded.family.kind != "diffusion":
        raise InputError(
            f"{loaded.name!r} is of the {loaded.family.kind} kind: it commits nothing in an order of its own."
        )
    resolved = sampling.resolve(loaded)
    run.start()
    found = _sample(loaded, prompts, resolved, batch_size, out_folder)
    _report(out_folder, loaded, resolved, found)


def _label(name: str) -> str:
    return Path(name).stem if Path(name).suffix else name


def _prompts(name: str, count: int, column: str | None) -> list[str]:
    from midward import goals
    from midward.goals.loading import is_file
    from midward.world import TASKS, exercises

    if name in TASKS:
        return [task.prompt for task in exercises(name, count, 0)]
    chosen = goals.load(name, count=count, column=column if is_file(name) else None)
    if len(chosen) < 2:
        raise InputError(f"{name} holds {len(chosen)} goals; at least two are needed for an interval.")
    return [goal.prompt for goal in chosen]


def _sample(
    model: LanguageModel, prompts: Mapping[str, Sequence[str]], sampling: Sampling, batch_size: int, folder: Path
) -> dict[str, list[Order]]:
    """set -> orders; each is a row of rows.jsonl, and those there already aren't sampled again."""
    from midward.dynamics.order import Order, orders
    from midward.store import RowFile, key_of

    file = RowFile(folder / "rows.jsonl")
    about = {"probe": "order", "model": model.fingerprint, "sampling": asdict(sampling)}
    keys = {name: [key_of(**about, prompt=prompt) for prompt in texts] for name, texts in prompts.items()}
    todo = [
        (key, name, text)
        for name, texts in prompts.items()
        for key, text in zip(keys[name], texts, strict=True)
        if key not in file.rows
    ]
    model.fold_adapter()
    with bar() as progress:
        task = progress.add_task("prompts", total=sum(map(len, prompts.values())))
        progress.advance(task, sum(map(len, prompts.values())) - len(todo))
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            seen = orders(model, [text for *_, text in batch], sampling, batch_size=batch_size)
            file.extend(
                {"key": key, "set": name, "prompt": text, "end": one.end, "steps": list(one.steps)}
                for (key, name, text), one in zip(batch, seen, strict=True)
            )
            progress.advance(task, len(batch))
    return {
        name: [Order(tuple(file.rows[key]["steps"]), file.rows[key]["end"]) for key in keys[name]] for name in prompts
    }


def _report(folder: Path, model: LanguageModel, sampling: Sampling, found: Mapping[str, Sequence[Order]]) -> None:
    from midward._tables import write_table
    from midward.dynamics import order as room
    from midward.reports import dynamics as figures
    from midward.store import write_text

    everything = [one for orders in found.values() for one in orders]
    cells = {name: _cells(orders) for name, orders in {**found, "all": everything}.items()}
    series = {name: [_cell(column) for column in room.by_prompt(orders).T] for name, orders in found.items()}
    write_table(
        folder / "order",
        [
            {"set": name, "step": step, **{f"mean_{part}": value for part, value in cell.items()}}
            for name, steps in series.items()
            for step, cell in enumerate(steps, 1)
        ],
    )
    write_table(
        folder / "correlation",
        [
            {"set": name, "measure": measure, **cell}
            for name, measures in cells.items()
            for measure, cell in measures.items()
        ],
    )
    said = _sentence(cells["all"], sampling)
    adapter = f" + {Path(model.adapter).name}" if model.adapter else ""
    title = f"{Path(model.name).name}{adapter}, {sampling.steps} steps, blocks of {sampling.block or sampling.length}"
    figures.order(folder / "order", series, title)
    figures.order_heat(folder / "order-heat", {name: room.heat(orders) for name, orders in found.items()}, title)
    summary = {
        "model": model.name,
        "adapter": model.adapter,
        "fingerprint": model.fingerprint,
        "sampling": asdict(sampling),
        "sets": cells,
        "finding": said,
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    out("\n".join([*columns(_table(cells)), "", said]))
    say(f"{folder}: rows.jsonl, order.csv, correlation.csv, summary.json")


def _cells(orders: Sequence[Order]) -> dict[str, dict[str, Any]]:
    """The correlations of a set and what adds up to them, as means over prompts with intervals."""
    import numpy as np

    from midward.dynamics import order as room

    split = np.array([room.parts(one) for one in orders])
    lengths = np.array([float(len(one.steps) - one.end) / len(one.steps) for one in orders])
    return {
        "correlation": _cell(split.sum(1)),
        "correlation_text": _cell(np.array([room.correlation(one, text=True) for one in orders])),
        "part_text": _cell(split[:, 0]),
        "part_padding": _cell(split[:, 1]),
        "part_between": _cell(split[:, 2]),
        "padding_share": _cell(lengths),
    }


def _cell(values: np.ndarray) -> dict[str, Any]:
    """Mean, 95 % interval over prompts and n, of the values [N] that are numbers; no interval where all are alike."""
    from midward.stats import mean

    known = [value for value in values.tolist() if value == value]
    if not known:
        return {"value": None, "low": None, "high": None, "n": 0}
    found = mean(known)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _said(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    ends = "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['value']:.2f}{ends}"


def _table(cells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    head = (
        "prompts",
        "n",
        "rank correlation",
        "text alone",
        "= within text",
        "+ within padding",
        "+ text first",
        "padding, share of response",
    )
    return [
        head,
        *(
            (name, str(measures["correlation"]["n"]), *(_said(cell) for cell in measures.values()))
            for name, measures in cells.items()
        ),
    ]


def _sentence(cells: Mapping[str, Mapping[str, Any]], sampling: Sampling) -> str:
    block = sampling.block or sampling.length
    blocks = "one block" if block == sampling.length else f"blocks of {block}"
    total, text = cells["correlation"], cells["correlation_text"]
    said = (
        f"Over {total['n']} prompts ({sampling.length} tokens, {sampling.steps} steps, {blocks}) the rank correlation "
        f"of step and position is {_said(total)}"
    )
    if total["value"] is None:
        return f"{said}."
    padding = cells["part_padding"]["value"] + cells["part_between"]["value"]
    return (
        f"{said}; {padding:+.2f} of it is end-token padding and its place behind the text. Within the text alone it is "
        f"{_said(text)}."
    )
