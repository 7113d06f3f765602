"""From a matrix's logs to one record a sample, rates with intervals, comparisons by goal, and what it cost."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from inspect_ai.log import EvalLog, EvalSample, read_eval_log_samples

from midward._tables import csv_text
from midward.attacks import replay
from midward.attacks.record import Record, read_record
from midward.errors import InputError
from midward.judges import MEASURES, TEXTS, Verdict, find, ranked
from midward.judges.scorers import Judged
from midward.reports.page import cell as rate_text
from midward.reports.page import difference, markdown
from midward.stats import corrected, family, paired, rate
from midward.store import write_text

#: (row, goals, attack) -> goal -> verdict
Cells = dict[tuple[str, str, str], dict[str, bool | None]]
BULKY = {"events", "messages", "attachments"}


@dataclass(frozen=True)
class Outcome:
    """One sample: an attack on a goal.

    Attributes:
        row, goals, attack, goal: where it stands: the model's label, the set of goals, and the goal's id.
        prompt: the plain goal.
        judged: judge -> its verdicts on the texts (reply, replay, authored); texts that the attack has no use for are
            missing.
        texts: what was judged; None for a text that couldn't be made.
        record: what the attack's solver kept, also of a search that failed; None where there is none.
        error: why it failed, or None: such a sample has no verdicts, and is counted apart.
    """

    row: str
    goals: str
    attack: str
    goal: str
    prompt: str
    judged: Mapping[str, Judged] = field(default_factory=dict)
    texts: Mapping[str, str | None] = field(default_factory=dict)
    record: Record | None = None
    error: str | None = None

    def verdict(self, judge: str, text: str) -> Verdict | None:
        """The judge's verdict on a text; None where it gave none, or there is no such text."""
        return self.judged[judge].verdicts.get(text) if judge in self.judged else None

    def success(self, judge: str, text: str) -> bool | None:
        """What the judge says of a text, of what it measures; None where it is unscored, or there is no such text."""
        return self.judged[judge].outcome(text) if judge in self.judged else None

    def empty(self, judge: str, text: str) -> bool:
        """Whether a text was empty, so that the judge wasn't asked."""
        verdict = self.verdict(judge, text)
        return verdict is not None and bool(verdict.details.get("empty"))


def read(logs: Iterable[EvalLog]) -> list[Outcome]:
    """The samples of logs (headers will do). A cell that was logged twice counts once, the newest log first."""
    newest: dict[str, EvalLog] = {}
    for log in sorted(logs, key=lambda log: log.eval.created):
        newest[str((log.eval.metadata or {}).get("cell"))] = log
    found = []
    for log in newest.values():
        about = log.eval.metadata or {}
        for sample in read_eval_log_samples(
            log.location, all_samples_required=False, exclude_fields=BULKY, resolve_attachments=False
        ):
            found.append(_outcome(about, sample))
    return found


def _outcome(about: Mapping[str, Any], sample: EvalSample) -> Outcome:
    scores = [score.metadata for score in (sample.scores or {}).values() if score.metadata]
    judged = [Judged.model_validate(metadata) for metadata in scores if "judge" in metadata]
    return Outcome(
        row=str(about.get("row")),
        goals=str(about.get("goals")),
        attack=str(about.get("attack")),
        goal=str(sample.id),
        prompt=str((sample.metadata or {}).get("goal", "")),
        judged={each.judge: each for each in judged},
        texts=dict(sample.store.get("texts") or {}),
        record=read_record(sample.store),
        error=sample.error.message if sample.error else None,
    )


def success(outcomes: Iterable[Outcome], judge: str, text: str = "reply") -> Cells:
    """(row, goals, attack) -> goal -> verdict; what failed, or has no such text, is left out."""
    cells: Cells = {}
    for outcome in outcomes:
        cell = cells.setdefault((outcome.row, outcome.goals, outcome.attack), {})
        if outcome.error is None and outcome.verdict(judge, text) is not None:
            cell[outcome.goal] = outcome.success(judge, text)
    return cells


def summarise(
    outcomes: Sequence[Outcome],
    *,
    rows: Sequence[str],
    sets: Mapping[str, int],
    attacks: Sequence[str],
    judges: Sequence[str],
) -> dict[str, Any]:
    """Everything that the tables print, as JSON: rates by judge, text, goals, attack and row; the rows compared by
    goal; costs.

    sets: name -> number of goals; outcomes of others are left out. A rate's record also has `errors`: goals without a
    result, which aren't in its n.
    `asr` holds the judges that measure attack success, `refusals` those that say who refused; `measures` says which is
    which, and `judges` has them `ranked`. `unscored` has for each judge and text how many got no verdict, and the
    commonest reason.
    """
    outcomes = [one for one in outcomes if one.goals in sets]
    judges = ranked(judges)
    measures = {judge: find(judge).measures for judge in judges}
    done = Counter((one.row, one.goals, one.attack) for one in outcomes if one.error is None)
    rates: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for judge in judges:
        rates[judge], pairs[judge] = {}, {}
        for text in TEXTS:
            cells = success(outcomes, judge, text)
            rates[judge][text] = {
                name: {
                    attack: {
                        row: rate(cells.get((row, name, attack), {}).values()).record()
                        | {"errors": count - done[row, name, attack]}
                        for row in rows
                    }
                    for attack in attacks
                }
                for name, count in sets.items()
            }
            pairs[judge][text] = {name: _pairs(cells, rows, name, attacks) for name in sets}
    return {
        "rows": list(rows),
        "goals": dict(sets),
        "attacks": list(attacks),
        "judges": judges,
        "measures": measures,
        "asr": {judge: found for judge, found in rates.items() if measures[judge] != "refused"},
        "refusals": {judge: found for judge, found in rates.items() if measures[judge] == "refused"},
        "paired": pairs,
        "unscored": {
            judge: {text: reason for text in TEXTS if (reason := _unscored(outcomes, judge, text))} for judge in judges
        },
        "empty": {judge: {text: n for text in TEXTS if (n := _empty(outcomes, judge, text))} for judge in judges},
        "prompts": {row: prompts([one for one in outcomes if one.row == row]) for row in rows},
        "costs": {attack: {row: cost(_of(outcomes, row, attack)) for row in rows} for attack in attacks},
    }


def _unscored(outcomes: Iterable[Outcome], judge: str, text: str) -> dict[str, Any] | None:
    """How many a judge gave no verdict on, and why most often; None where it scored all."""
    return commonest(
        verdict.explanation or "no reason given"
        for outcome in outcomes
        if outcome.error is None
        and (verdict := outcome.verdict(judge, text)) is not None
        and outcome.success(judge, text) is None
    )


def _empty(outcomes: Iterable[Outcome], judge: str, text: str) -> int:
    """How many responses were empty, so that the judge wasn't asked."""
    return sum(outcome.empty(judge, text) for outcome in outcomes)


def commonest(reasons: Iterable[str]) -> dict[str, Any] | None:
    """{"n", "why"}: how many reasons there are, and the first of those that begin as most do; None for none."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(reason[:60], []).append(reason)
    if not kinds:
        return None
    return {"n": sum(map(len, kinds.values())), "why": max(kinds.values(), key=len)[0]}


def _pairs(cells: Cells, rows: Sequence[str], name: str, attacks: Sequence[str]) -> dict[str, Any]:
    """attack -> "second - first" -> every two rows compared, where they share a goal; one family of comparisons."""
    sides = {
        (attack, f"{second} - {first}"): (cells.get((second, name, attack), {}), cells.get((first, name, attack), {}))
        for attack in attacks
        for first, second in itertools.combinations(rows, 2)
    }
    sides = {key: (a, b) for key, (a, b) in sides.items() if a.keys() & b.keys()}
    found: dict[str, Any] = {attack: {} for attack in attacks}
    pairs = corrected([paired([a], [b]) for a, b in sides.values()])
    for (attack, title), pair in zip(sides, pairs, strict=True):
        found[attack][title] = pair.record()
    return found


def _of(outcomes: Iterable[Outcome], row: str, attack: str) -> list[Outcome]:
    return [one for one in outcomes if one.row == row and one.attack == attack]


def cost(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of one attack on one row, over all its goals: means a goal, and counts of what went wrong."""
    records = [outcome.record for outcome in outcomes if outcome.record]
    return {
        "n": len(outcomes),
        "errors": sum(outcome.error is not None for outcome in outcomes),
        "queries": _mean(record.target_queries for record in records),
        "nfe": _mean(record.nfe for record in records),
        "role_calls": _mean(record.role_calls for record in records),
        "seconds": _mean(record.seconds for record in records),
        "role_failures": sum(record.role_failures for record in records),
        "role_trouble": commonest(why for record in records for why in record.why.values()),
        "budget_spent": sum(record.spent for record in records),
        "capabilities": sorted({capability for record in records for capability in record.capabilities}),
        "access": sorted({record.access for record in records}),
    }


def prompts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of one row: how many prompts its attacks put, how many are distinct, and groups of attacks that put the same ones
    (half or more of the smaller attack's): such columns are one mechanism."""
    asked: dict[str, set[tuple[str, str]]] = {}
    for outcome in outcomes:
        prompts = outcome.record.prompts if outcome.record else ()
        asked.setdefault(outcome.attack, set()).update((f"{outcome.goals}/{outcome.goal}", each) for each in prompts)
    groups: list[set[str]] = []
    for attack, mine in asked.items():
        alike = [
            group
            for group in groups
            if any(len(mine & asked[other]) * 2 >= min(len(mine), len(asked[other])) > 0 for other in group)
        ]
        groups = [group for group in groups if group not in alike] + [{attack}.union(*alike)]
    return {
        "asked": sum(map(len, asked.values())),
        "distinct": len(set().union(*asked.values())),
        "alike": [sorted(group) for group in groups if len(group) > 1],
        "mechanisms": len(groups),
    }


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else None


# --- tables --------------------------------------------------------------------------------------------------


def tables(summary: Mapping[str, Any], text: str = "reply") -> str:
    """The summary as Markdown: what each judge measures, by goals (rows models, columns attacks), pairs, costs.

    text: which verdict: "reply" (in the loop), "replay" (fresh) or "authored" (the model's own tokens only).
    """
    parts = [f"Warning: {summary['warning']}."] if summary.get("warning") else []
    parts += [_models(summary["models"])] if "models" in summary else []
    parts += _rates(summary, text)
    if "harmless" in summary:
        parts += ["Of harmless goals, asked plainly, a refusal is one too many:", *_rates(summary["harmless"], text)]
    parts.append("What it took, a goal (means over all goals):\n\n" + _costs(summary))
    troubles = {
        attack: one["role_trouble"]["why"]
        for attack, by_row in summary["costs"].items()
        for one in by_row.values()
        if one["role_trouble"]
    }
    parts += [f"Role failures of {attack}, e.g.: {_short(why)}" for attack, why in troubles.items()]
    parts += [
        f"{row}: {found['distinct']} of the {found['asked']} prompts that the attacks put are distinct. "
        f"{'; '.join(', '.join(group) for group in found['alike'])} put the same ones: {found['mechanisms']} "
        f"mechanisms in {len(summary['attacks'])} columns."
        for row, found in summary["prompts"].items()
        if found["alike"]
    ]
    return "\n\n".join(parts)


def _models(models: Mapping[str, Mapping[str, str | None]]) -> str:
    """What each row is."""
    lines = [[row, *(about[part] or "-" for part in ("model", "adapter", "guard"))] for row, about in models.items()]
    return markdown(["row", "model", "adapter", "guard"], lines)


def _rates(summary: Mapping[str, Any], text: str) -> list[str]:
    """Tables of rates and pairs, each with its title."""
    parts = []
    rates = {**summary["asr"], **summary["refusals"]}
    for judge in summary["judges"]:
        measure = summary["measures"][judge]
        better = "above zero the first refuses more" if measure == "refused" else "below zero the first is safer"
        for name in summary["goals"]:
            cells = rates[judge][text][name]
            lines = [[row, *(_cell(cells[attack][row]) for attack in summary["attacks"])] for row in summary["rows"]]
            parts.append(
                f"{MEASURES[measure]} by {judge} on {name} (per cent, 95 % Wilson interval; the {text}):\n\n"
                + markdown(["model", *summary["attacks"]], lines)
            )
            pairs = summary["paired"][judge][text][name]
            titles = list(dict.fromkeys(title for attack in pairs.values() for title in attack))
            if titles:
                lines = [
                    [title, *(difference(pairs[a][title]) if title in pairs[a] else "-" for a in summary["attacks"])]
                    for title in titles
                ]
                all_of = family(pair for attack in pairs.values() for pair in attack.values())
                parts.append(
                    f"Paired by goal (points, {better}; 95 % interval; exact McNemar p{all_of and f'; {all_of}'}):\n\n"
                    + markdown(["pair", *summary["attacks"]], lines)
                )
        if empty := summary.get("empty", {}).get(judge, {}).get(text):
            parts.append(f"Empty responses: {empty}. They count as no success; {judge} wasn't asked about them.")
        if trouble := summary["unscored"][judge].get(text):
            parts.append(f"Unscored by {judge}: {trouble['n']}, most often: {_short(trouble['why'])}")
    return parts


def _short(why: str) -> str:
    """A reason on one line."""
    return " ".join(why.split())[:300]


def _cell(reading: Mapping[str, Any]) -> str:
    """A rate as text, with what has no verdict: texts that couldn't be scored, and goals whose attack failed."""
    errors = reading["errors"]
    text = rate_text(reading)
    if reading["value"] is None and reading["unscored"]:
        text = f"- n=0, {reading['unscored']} unscored"
    return f"{text}, {errors} error{'s' * (errors > 1)}" if errors else text


def _costs(summary: Mapping[str, Any]) -> str:
    lines = []
    for attack in summary["attacks"]:
        for row in summary["rows"]:
            one = summary["costs"][attack][row]
            lines.append(
                [
                    attack,
                    row,
                    str(one["n"]),
                    str(one["errors"]),
                    *(_number(one[key]) for key in ("queries", "nfe", "role_calls")),
                    str(one["role_failures"]),
                    str(one["budget_spent"]),
                    ", ".join(one["access"]) or "-",
                    " ".join(one["capabilities"]) or "-",
                ]
            )
    headers = [
        "attack",
        "model",
        "goals",
        "errors",
        "queries",
        "NFE",
        "role calls",
        "role failures",
        "budget spent",
        "access",
        "capabilities used",
    ]
    return markdown(headers, lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def write(folder: Path, outcomes: Sequence[Outcome], summary: Mapping[str, Any], text: str = "reply") -> None:
    """summary.json, table.md (of one text's verdicts) and samples.csv below `folder`."""
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_text(folder / "table.md", tables(summary, text) + "\n")
    judges = dict.fromkeys([*summary["judges"], *summary.get("harmless", {}).get("judges", [])])
    write_text(folder / "samples.csv", _csv(outcomes, list(judges)))


def export(path: Path, outcomes: Sequence[Outcome], judge: str) -> int:
    """Write the winning prompts as JailbreakBench artifacts, `jailbroken` as `judge` says of the reply; how many.

    Raises InputError for a judge that doesn't measure attack success.
    """
    if not find(judge).of_attacks:
        raise InputError(f"the judge {judge!r} says who refused; `jailbroken` needs one of attack success.")
    attempts = [outcome for outcome in outcomes if outcome.record and outcome.error is None]
    return replay.export([(each.record, each.success(judge, "reply")) for each in attempts if each.record], path)


def _csv(outcomes: Sequence[Outcome], judges: Sequence[str]) -> str:
    """A line a sample: where it stands, verdicts (1, 0, or empty for unscored or none), costs, texts, the error."""
    verdicts = [f"{judge}_{text}" for judge in judges for text in TEXTS]
    head = ["row", "goals", "attack", "goal", "prompt"]
    tail = [
        "score",
        "queries",
        "nfe",
        "role_calls",
        "role_failures",
        "capabilities",
        "seconds",
        "asked",
        *TEXTS,
        "error",
    ]
    rows = []
    for one in outcomes:
        record = one.record
        said = [one.success(judge, text) for judge in judges for text in TEXTS]
        rows.append(
            [
                *(getattr(one, name) for name in head),
                *("" if verdict is None else int(verdict) for verdict in said),
                "" if record is None or record.score is None else record.score,
                record.target_queries if record else "",
                record.nfe if record else "",
                record.role_calls if record else "",
                record.role_failures if record else "",
                " ".join(record.capabilities) if record else "",
                round(record.seconds, 3) if record else "",
                record.asks[-1].text if record and record.asks else "",
                *(one.texts.get(text) or "" for text in TEXTS),
                one.error or "",
            ]
        )
    return csv_text([*head, *verdicts, *tail], rows)
