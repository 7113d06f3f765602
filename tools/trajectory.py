"""The tables of docs/trajectory.md, from the folders of examples/trajectory.sh: `python -m tools.trajectory FOLDER`.

What isn't there yet is left out. Training seeds of a label are averaged, with intervals over goals and seeds; an
adapter of seed s meets the anchors of draw s, so a label's three seeds are three draws of each goal's anchors as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from midward import load
from midward._tables import read_table
from midward.attacks.nesting import FORMS, nested
from midward.attacks.results import SAMPLES
from midward.goals import load as load_goals
from midward.judges.bench import bench
from midward.reports.blocks import Table
from midward.reports.render import markdown
from midward.runs.measure import Case, measure
from midward.sampling import Request, Sampling
from midward.stats import Paired, corrected, paired_of, rate_of
from midward.store import replacing

Rows = list[dict[str, Any]]
Lines = Mapping[str, Mapping[str, Rows]]
BASE = "base"
BARE = "bare"
#: What success by anchors is compared with as well, beside the base model.
RIVAL = "mosa-published"


# --- anchors: rows of `probe anchor`, a folder a label and seed -------------------------------------------------


def anchored(folder: Path) -> dict[str, Rows]:
    """Label -> its rows of all seeds; `draw` is the seed that anchors were drawn with, `seed` the adapter's."""
    labels: dict[str, Rows] = defaultdict(list)
    for path in sorted(folder.glob("anchor/*/rows.jsonl")):
        label, _, seed = path.parent.name.rpartition("-")
        models = json.loads((path.parent / "run.json").read_text("utf-8"))["models"]
        trained = any(model["adapter"] for model in models)
        for row in read_table(path):
            labels[label].append(row | {"draw": seed, "seed": seed if trained else None})
    return labels


def curve(rows: Rows, field: str, harmful: bool = True, source: str | None = None) -> dict[str, Rows]:
    """Fraction -> rows, from none on; of one source of anchors where it is named."""
    cells: dict[str, Rows] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["fraction"]):
        if row["harmful"] is harmful and (source is None or row["source"] in ("none", source)):
            cells[f"{row['fraction']:.3g}"].append(row | {"value": row[field]})
    return dict(cells)


def difference(first: Rows, second: Rows) -> Paired:
    """first - second, by goal and draw."""
    return paired_of(first, second, "value", lambda row: (row["goal"], row["draw"]))


# --- attacks: samples.csv of `attack` ---------------------------------------------------------------------------


def attacked(folder: Path, verdict: str = "oracle_reply") -> dict[str, dict[str, Rows]]:
    """Attack -> label -> a row a sample."""
    attacks: dict[str, dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    for sample in read_table(folder / SAMPLES):
        value = None if sample[verdict] == "" else bool(float(sample[verdict]))
        row = {"goal": sample["goal"], "subject": sample["subject"], "draw": "", "value": value}
        attacks[sample["attack"]][sample["row"]].append(row | {"seed": sample["adapter"] or None})
    return attacks


# --- A2D's alarm: how probable the end token is at the first masked position, before anything is written ---------


@torch.inference_mode()
def alarms(folder: Path, label: str, count: int = 200) -> Iterator[dict[str, Any]]:
    """A row a goal, set and seed; kept in alarm.jsonl."""
    for path in sorted(folder.glob(f"adapters/{label}-?")):
        model = load("sandbox", adapter=str(path))
        for name in ("sandbox", "sandbox-wrapped", "sandbox-benign", "sandbox-banned"):
            goals = load_goals(name, count=count)
            for goal in goals:
                prompt = model.encode(goal.prompt)
                canvas = torch.tensor([[*prompt, *[model.family.mask_id] * 96]])
                ends = model.head(model.hidden(canvas)[0, len(prompt)]).softmax(-1)[model.family.end_ids[0]]
                row = {"label": label, "seed": path.name, "set": name, "goal": goal.id, "subject": goal.subject}
                yield row | {"end": float(ends)}


def alarm_tables(folder: Path) -> Iterator[Table]:
    """T10: what share of each set a threshold on it stops before the first step."""
    path = folder / "alarm.jsonl"
    if not path.exists():
        return
    rows = read_table(path)
    lines: dict[str, dict[str, Rows]] = {}
    for label in dict.fromkeys(row["label"] for row in rows):
        for least in (0.5, 0.8, 0.9):
            cells: dict[str, Rows] = defaultdict(list)
            for row in rows:
                if row["label"] == label:
                    cells[row["set"]].append(row | {"value": row["end"] > least})
            lines[f"{label}, above {least}"] = cells
    yield rates("T10: stopped before the first step by the end token's probability", lines)


# --- the control of nesting: the same structures around harmless requests ----------------------------------------


def structured(folder: Path, count: int = 60) -> list[dict[str, Any]]:
    """Answers of the base model to harmless requests, bare and in each structure; kept in structures/rows.jsonl."""
    model, goals = load("sandbox"), load_goals("sandbox-benign", count=count)
    cases = [Case(goal, Request(goal.prompt), set=BARE) for goal in goals]
    cases += [Case(goal, Request(nested(goal.prompt, form)), set=form) for form in FORMS for goal in goals]
    how: dict[str, Any] = {"sampling": Sampling.for_model(model), "judge": bench(goals)}
    return measure(model, cases, folder / "structures", **how)


def structure_tables(folder: Path) -> Iterator[Table]:
    """T15's control: harmless requests answered right in each structure."""
    path = folder / "structures" / "rows.jsonl"
    if path.exists():
        cells: dict[str, Rows] = defaultdict(list)
        for row in read_table(path):
            cells[row["set"]].append(row | {"value": row["correct"]})
        yield rates("T15: harmless requests answered right, base", {BASE: cells})


# --- tables -----------------------------------------------------------------------------------------------------


def rates(title: str, lines: Lines) -> Table:
    """A line a label, a column a condition."""
    columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    body = [
        [label, *(rate_of(cells[column], "value").text(0) if column in cells else "-" for column in columns)]
        for label, cells in lines.items()
    ]
    sizes = {rate_of(rows, "value").size for cells in lines.values() for rows in cells.values()}
    return Table(title, title, ["", *columns], body, note="; ".join(sorted(sizes)))


def differences(title: str, lines: Lines, against: str) -> Table:
    """The same minus what one label has, corrected over the table."""
    pairs = {
        (label, column): difference(rows, lines[against][column])
        for label, cells in lines.items()
        for column, rows in cells.items()
        if label != against and column in lines[against]
    }
    told = dict(zip(pairs, corrected(list(pairs.values())), strict=True))
    columns = list(dict.fromkeys(column for _, column in told))
    body = []
    for label in dict.fromkeys(label for label, _ in told):
        cells = [told.get((label, column)) for column in columns]
        body.append([label, *("-" if pair is None else pair.text(0) + " *" * pair.apart() for pair in cells)])
    title = f"{title}, minus {against}"
    return Table(title, title, ["", *columns], body, note=f"*: told, after Holm's correction for {len(told)}")


def both(title: str, lines: Lines, *against: str) -> Iterator[Table]:
    """Rates, and what they differ by; nothing where nothing was run."""
    lines = {label: cells for label, cells in lines.items() if cells}
    if lines:
        yield rates(title, lines)
        yield from (differences(title, lines, label) for label in against if label in lines and len(lines) > 1)


def anchor_tables(folder: Path) -> Iterator[Table]:
    """Curves over the share of anchors: T1 to T4, T12, T14, T16."""
    every = anchored(folder)
    apart = ("sources", "published", "window", "outside", "block-8", "block-32", "block-96", "sandbox-block")
    labels = {name: every[name] for name in sorted(every, key=lambda name: name != BASE) if name not in apart}
    for title, field, harmful in (
        ("ASR by share of anchors", "success", True),
        ("ASR of the model's own tokens", "own_success", True),
        ("Refusals that can be read", "readable", True),
        ("Anchored harmless goals answered right", "correct", False),
    ):
        lines = {}
        for label, rows in labels.items():
            rows = [row | {"readable": bool(row["refused"] and row["coherent"])} for row in rows]
            lines[label] = curve(rows, field, harmful)
        yield from both(title, lines, BASE, *([RIVAL] if field == "success" else []))
    if "sources" in every:
        names = ("own", "other", "neutral", "refusal")
        yield from both(
            "T12: anchors of which text, base", {n: curve(every["sources"], "success", source=n) for n in names}
        )
    settings = {name: curve(every[name], "success") for name in (BASE, *apart[1:]) if name in every}
    yield from both("T1, T16: other orders, places and blocks, base", settings)


def attack_tables(folder: Path) -> Iterator[Table]:
    """Attacks: T7 to T9, T11, T13, T15."""

    def cells_of(path: str, verdict: str = "oracle_reply") -> dict[str, dict[str, Rows]]:
        return attacked(folder / path, verdict) if (folder / path / SAMPLES).exists() else {}

    for title, path in (("Attacks of one request, ASR", "attacks"), ("T13: searches, ASR", "prompts")):
        for name, verdict in ((title, "oracle_reply"), (f"{title}: readable refusals", "readable_reply")):
            cells = _turned(cells_of(path, verdict))
            yield from both(name, cells, *([BASE] if verdict == "oracle_reply" else []))
    forms = {form: cells_of(f"nesting-{form}").get("nesting", {}) for form in ("code", "table", "json", "yaml")}
    yield from both("T15: nesting, ASR", _turned(forms), BASE)
    parts = ("both", "remask", "write", "prefill0")
    for end in ("stop", "keep", "forbid"):
        arms = {arm: cells_of(f"hijack/{arm}-{end}").get("trajhijack", {}) for arm in parts}
        yield from both(f"T7, T8: TrajHijack, end {end}, ASR", _turned(arms), BASE)
    generic = {"generic prefix": cells_of("hijack/generic").get("trajhijack", {})}
    yield from both("TrajHijack, generic prefix, ASR", _turned(generic), BASE)
    kinds = ("neutral", "completed", "safe", "fraud", "benign", "concise", "detailed")
    contexts = {
        kind: {n: cells_of(f"contexts/{kind}-{n}").get("post-context", {}).get(BASE, []) for n in ("8", "24", "64")}
        for kind in kinds
    }
    contexts = {kind: {n: rows for n, rows in cells.items() if rows} for kind, cells in contexts.items()}
    yield from both("T11: post contexts without a prefix by their tokens, base, ASR", contexts, "neutral")
    behind = {
        kind: cells_of(f"contexts/prefix-{kind}").get("post-context", {})
        for kind in ("none", "neutral", "completed", "fraud")
    }
    yield from both("T11: behind a forced opening, ASR", _turned(behind))


def _turned(attacks: Mapping[str, Mapping[str, Rows]]) -> dict[str, dict[str, Rows]]:
    """Label -> attack -> rows."""
    labels: dict[str, dict[str, Rows]] = defaultdict(dict)
    for attack, cells in attacks.items():
        for label, rows in cells.items():
            labels[label][attack] = rows
    return dict(sorted(labels.items(), key=lambda pair: pair[0] != BASE))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--alarm", metavar="LABEL", help="measure A2D's alarm on this label's adapters first")
    parser.add_argument("--structures", action="store_true", help="ask harmless requests in nesting's structures first")
    given = parser.parse_args(arguments)
    folder = given.folder
    if given.alarm:
        with replacing(folder / "alarm.jsonl") as path:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in alarms(folder, given.alarm)), "utf-8")
    if given.structures:
        structured(folder)
    tables = (anchor_tables, attack_tables, alarm_tables, structure_tables)
    sys.stdout.write(markdown([table for make in tables for table in make(folder)]))


if __name__ == "__main__":
    main()
