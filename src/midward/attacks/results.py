"""From a matrix's logs to one record a sample, rates with intervals, comparisons by goal, and what it cost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, read_eval_log_samples

from midward._tables import csv_text, grouped
from midward.attacks import artifacts
from midward.attacks.matrix import Matrix
from midward.attacks.record import Record, goal_of_log, read_record
from midward.attacks.registry import find as find_attack
from midward.attacks.taxonomy import VERSIONS, ids
from midward.errors import InputError
from midward.judges import TEXTS, Verdict, find, ranked
from midward.judges.scorers import Judged
from midward.stats import COUNTS, corrected, mean, paired_of, rate_of
from midward.store import write_text

#: (row, goals, attack) -> a row a sample: seed (the adapter of the row), goal, subject, success (the verdict)
Cells = dict[tuple[str, str, str], list[dict[str, Any]]]
BULKY = {"events", "messages", "attachments"}
SAMPLES = "samples.csv"
LOST = "it was lost with its log"


@dataclass(frozen=True)
class Outcome:
    """One sample: an attack on a goal.

    Attributes:
        row, goals, attack, goal: where it stands: the model's label, the set of goals, and the goal's id.
        adapter: which of the row's training seeds it is of; empty for a model without one.
        prompt: the plain goal.
        subject: of the goal, by which intervals are clustered; by its id where it is empty.
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
    adapter: str = ""
    subject: str = ""

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
    """The samples of a run.

    Args:
        logs: Inspect's; headers will do. A cell that was logged twice counts once, by its newest log.
    """
    newest: dict[str, EvalLog] = {}
    for log in sorted(logs, key=lambda log: log.eval.created):
        newest[str((log.eval.metadata or {}).get("cell"))] = log
    return [
        _outcome(log.eval.metadata or {}, sample)
        for log in newest.values()
        for sample in read_eval_log_samples(
            log.location, all_samples_required=False, exclude_fields=BULKY, resolve_attachments=False
        )
    ]


def with_lost(matrix: Matrix, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The samples of a run, with an error for each that was lost with its log."""
    there = {(each.row, each.goals, each.attack, each.adapter, each.goal) for each in outcomes}
    lost: list[Outcome] = []
    for row, cell in itertools.product(matrix.rows, matrix.cells()):
        place, adapter = (row.label, cell.name, cell.attack.info.name), row.adapter or ""
        lost += [
            Outcome(*place, goal.id, goal.text, error=LOST, adapter=adapter, subject=goal.subject)
            for goal in cell.goals
            if (*place, adapter, goal.id) not in there
        ]
    return [*outcomes, *lost]


def _outcome(cell: Mapping[str, Any], sample: EvalSample) -> Outcome:
    scores = [score.metadata for score in (sample.scores or {}).values() if score.metadata]
    judged = [Judged.model_validate(metadata) for metadata in scores if "judge" in metadata]
    return Outcome(
        row=str(cell.get("row")),
        goals=str(cell.get("goals")),
        attack=str(cell.get("attack")),
        goal=str(sample.id),
        prompt=str((sample.metadata or {}).get("goal", "")),
        judged={each.judge: each for each in judged},
        texts=dict(sample.store.get("texts") or {}),
        record=read_record(sample.store),
        error=sample.error.message if sample.error else None,
        adapter=str(cell.get("adapter") or ""),
        subject=goal_of_log(sample).subject,
    )


# --- the summary -------------------------------------------------------------------------------------------


def of_matrix(matrix: Matrix, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The summary of a run, see `summarise`; with what its attacks are, where they are from and where they stand in
    taxonomies, what its rows, roles and seed are, its profile, why its figures are no evidence (or None), and the
    refusals of harmless goals."""
    rows = [row.label for row in matrix.rows]
    summary = summarise(
        outcomes,
        rows=rows,
        sets={name: matrix.sizes[name] for name in matrix.sets},
        attacks=[planned.info.name for planned in matrix.attacks],
        judges=matrix.judges,
    )
    summary |= {"profile": matrix.profile, "roles": dict(matrix.roles), "seed": matrix.seed}
    infos = [planned.info for planned in matrix.attacks]
    summary["about"] = {info.name: info.about for info in infos}
    summary["sources"] = {info.name: info.citation for info in infos}
    summary["taxonomy"] = {"versions": VERSIONS, "attacks": {info.name: list(info.taxonomy) for info in infos}}
    summary["warning"] = matrix.no_evidence
    if matrix.harmless:
        sizes = {name: matrix.sizes[name] for name in matrix.harmless}
        judges = matrix.refusal_judges
        summary["harmless"] = summarise(outcomes, rows=rows, sets=sizes, attacks=["direct"], judges=judges)
    summary["models"] = {
        label: {
            "model": seeds[0].model,
            "adapter": seeds[0].adapter if len(seeds) == 1 else f"{seeds[0].adapter} ({len(seeds)} seeds)",
            "guard": seeds[0].guard_path or (seeds[0].theirs and f"{seeds[0].theirs}, the server's"),
        }
        for label, seeds in matrix.seeds.items()
    }
    return summary


def summarise(
    outcomes: Sequence[Outcome],
    *,
    rows: Sequence[str],
    sets: Mapping[str, int],
    attacks: Sequence[str],
    judges: Sequence[str],
) -> dict[str, Any]:
    """Everything that the tables show, as JSON.

    Args:
        outcomes: those of other sets are left out.
        rows, attacks, judges: names, in the tables' order; the judges are `ranked`. A row that is named several times
            is of so many training seeds.
        sets: name -> number of goals.

    Returns:
        `asr` and `refusals`: judge -> text -> goals -> attack -> row -> a rate's record, over goals and seeds, with
        `errors`: goals without a result, which aren't in its n; of judges that measure attack success, and of those
        that say who refused. `measures` says which is which. `paired`: the rows compared by goal. `unscored`: for each
        judge and text how many got no verdict, and the commonest reason; `empty`: how many texts were empty. `prompts`:
        see `prompts`. `costs`: attack -> row -> see `cost`.
    """
    outcomes = [outcome for outcome in outcomes if outcome.goals in sets]
    judges, seeds = ranked(judges), Counter(rows)
    measures = {judge: find(judge).measures for judge in judges}
    done = Counter((outcome.row, outcome.goals, outcome.attack) for outcome in outcomes if outcome.error is None)
    rates: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for judge in judges:
        rates[judge], pairs[judge] = {}, {}
        for text in TEXTS:
            cells = success(outcomes, judge, text)
            rates[judge][text] = {
                name: {
                    attack: {
                        row: rate_of(cells.get((row, name, attack), []), "success").record()
                        | {"errors": count * seeds[row] - done[row, name, attack]}
                        for row in seeds
                    }
                    for attack in attacks
                }
                for name, count in sets.items()
            }
            pairs[judge][text] = {name: _pairs(cells, list(seeds), name, attacks) for name in sets}
    of_text = {
        judge: {text: [o for o in outcomes if o.verdict(judge, text) is not None] for text in TEXTS} for judge in judges
    }
    return {
        "rows": list(seeds),
        "goals": dict(sets),
        "attacks": list(attacks),
        "judges": judges,
        "measures": measures,
        "asr": {judge: rates[judge] for judge in judges if measures[judge] != "refused"},
        "refusals": {judge: rates[judge] for judge in judges if measures[judge] == "refused"},
        "paired": pairs,
        "unscored": {
            judge: {text: why for text in TEXTS if (why := commonest(_silences(by_text[text], judge, text)))}
            for judge, by_text in of_text.items()
        },
        "empty": {
            judge: {text: n for text in TEXTS if (n := sum(o.empty(judge, text) for o in by_text[text]))}
            for judge, by_text in of_text.items()
        },
        "prompts": {row: prompts([outcome for outcome in outcomes if outcome.row == row]) for row in seeds},
        "costs": {
            attack: {row: cost([o for o in outcomes if (o.row, o.attack) == (row, attack)]) for row in seeds}
            for attack in attacks
        },
    }


def success(outcomes: Iterable[Outcome], judge: str, text: str = "reply") -> Cells:
    """The verdicts of each cell; what failed, or has no such text, is left out.

    Args:
        outcomes: of any rows, sets and attacks.
        judge: whose verdicts.
        text: on which text: reply, replay or authored.
    """
    cells: Cells = {}
    for outcome in outcomes:
        rows = cells.setdefault((outcome.row, outcome.goals, outcome.attack), [])
        if outcome.error is None and outcome.verdict(judge, text) is not None:
            asked = {"seed": outcome.adapter, "goal": outcome.goal, "subject": outcome.subject}
            rows.append(asked | {"success": outcome.success(judge, text)})
    return cells


def _silences(outcomes: Iterable[Outcome], judge: str, text: str) -> Iterator[str]:
    """Why a judge gave no verdict, for each text that it gave none on."""
    for outcome in outcomes:
        verdict = outcome.verdict(judge, text)
        if outcome.error is None and verdict is not None and outcome.success(judge, text) is None:
            yield verdict.explanation or "no reason given"


def commonest(reasons: Iterable[str]) -> dict[str, Any] | None:
    """{"n", "why"}: how many reasons there are, and the first of those that begin as most do; None for none."""
    kinds = grouped(reasons, lambda reason: reason[:60])
    if not kinds:
        return None
    return {"n": sum(map(len, kinds.values())), "why": max(kinds.values(), key=len)[0]}


def _pairs(cells: Cells, rows: Sequence[str], name: str, attacks: Sequence[str]) -> dict[str, Any]:
    """attack -> "second - first" -> every two rows compared, where they share a goal; one family of comparisons."""
    sides = {
        (attack, f"{second} - {first}"): [cells.get((row, name, attack), []) for row in (second, first)]
        for attack in attacks
        for first, second in itertools.combinations(rows, 2)
    }
    sides = {key: [a, b] for key, (a, b) in sides.items() if {row["goal"] for row in a} & {row["goal"] for row in b}}
    records: dict[str, Any] = {attack: {} for attack in attacks}
    pairs = corrected([paired_of(a, b, "success") for a, b in sides.values()])
    for (attack, title), pair in zip(sides, pairs, strict=True):
        records[attack][title] = pair.record()
    return records


def cost(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of one attack on one row, over all its goals: means a goal (records of `stats`, and plain seconds, which are the
    machine's), and counts of what went wrong."""
    kept = [(outcome, outcome.record) for outcome in outcomes if outcome.record]
    records = [record for _, record in kept]
    goals, seeds = [o.subject or (o.goals, o.goal) for o, _ in kept], [o.adapter for o, _ in kept]

    def mean_record(name: str) -> dict[str, Any] | None:
        return mean([getattr(record, name) for record in records], goals, seeds, COUNTS).record() if records else None

    return {
        "n": len(outcomes),
        "errors": sum(outcome.error is not None for outcome in outcomes),
        "queries": mean_record("target_queries"),
        "nfe": mean_record("nfe"),
        "role_calls": mean_record("role_calls"),
        "seconds": fmean(record.seconds for record in records) if records else None,
        "role_failures": sum(record.role_failures for record in records),
        "role_trouble": commonest(why for record in records for why in record.why.values()),
        "budget_spent": sum(record.spent for record in records),
        "capabilities": sorted({capability for record in records for capability in record.capabilities}),
        "access": sorted({record.access for record in records}),
    }


def prompts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Which prompts the attacks on one row share: columns that put the same ones are one mechanism.

    Args:
        outcomes: of the row.

    Returns:
        asked: prompts of all attacks; distinct: those that differ; alike: groups of attacks that put the same ones
        (half or more of the smaller attack's); mechanisms: how many groups there are, single attacks included.
    """
    asked: dict[str, set[tuple[str, str]]] = {}
    for outcome in outcomes:
        hashes = outcome.record.prompts if outcome.record else ()
        asked.setdefault(outcome.attack, set()).update((f"{outcome.goals}/{outcome.goal}", each) for each in hashes)
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


def trouble(matrix: Matrix, outcomes: Sequence[Outcome], text: str) -> tuple[str, str]:
    """What went wrong in a run.

    Args:
        matrix: what was run.
        outcomes: its samples.
        text: whose verdicts are shown.

    Returns:
        What some samples failed of, and why there is nothing to read off the table; empty where that isn't so.
    """
    failed = [outcome for outcome in outcomes if outcome.error]
    failures = (
        f"{len(failed)} of {matrix.samples} samples failed, e.g. {failed[0].goal}: {failed[0].error}\n"
        "The same command tries them again."
        if failed
        else ""
    )
    errors = {row.label: {bool(o.error) for o in outcomes if o.row == row.label} for row in matrix.rows}
    reasons = []
    if lost := [label for label, kinds in errors.items() if kinds == {True}]:
        reasons.append(f"every sample of {', '.join(lost)} failed: there is nothing to read off the table.")
    for judge in matrix.judges:
        asked = [o for o in outcomes if not o.empty(judge, text)]
        silences = commonest(_silences(asked, judge, text))
        if silences and all(o.success(judge, text) is None for o in asked):
            reasons.append(f"{judge} scored nothing: {silences['why']}")
    return failures, "\n".join(reasons)


# --- files -------------------------------------------------------------------------------------------------


def export(
    folder: Path, outcomes: Sequence[Outcome], judge: str, *, date: str, defenses: Mapping[str, str | None] = {}
) -> str:
    """Write what was put to the models as artifacts in JailbreakBench's layout, a file an attack and row.

    Args:
        folder: of the files, see `artifacts.place`; those of earlier exports are written over.
        outcomes: those that failed are left out.
        judge: who says of the reply whether it is `jailbroken`.
        date: of the run, ISO 8601.
        defenses: row -> the guard in front of it.

    Returns:
        What was written, in a line; attacks of which nothing was scored have no file, and are named.

    Raises:
        InputError: the judge doesn't measure attack success, or the folder can't be written.
    """
    if not find(judge).of_attacks:
        raise InputError(f"the judge {judge!r} says who refused; `jailbroken` needs one of attack success.")
    attempts: dict[tuple[str, str], list[tuple[Record, bool | None]]] = {}
    for outcome in outcomes:
        if outcome.record and outcome.error is None and outcome.verdict(judge, "reply") is not None:
            attempt = outcome.record, outcome.success(judge, "reply")
            attempts.setdefault((outcome.row, outcome.attack), []).append(attempt)
    scored = {cell: tried for cell, tried in attempts.items() if any(verdict is not None for _, verdict in tried)}
    written: list[Path] = []
    for (row, _), tried in scored.items():
        path = artifacts.place(folder, tried[0][0], row, written)
        written.append(path)
        try:
            artifacts.write(path, tried, judge=judge, defense=defenses.get(row), date=date)
        except OSError as error:
            raise InputError(f"--export {folder} can't be written: {error.strerror}; give another folder.") from None
    verdicts = Counter(verdict is not None for tried in scored.values() for _, verdict in tried)
    line = f"{len(written)} artifacts, {verdicts[True]} attempts judged by {judge}"
    line += f", {verdicts[False]} unscored kept apart" if verdicts[False] else ""
    left = [f"{attack} on {row}" for row, attack in attempts.keys() - scored.keys()]
    return line + (f"; nothing scored, so no file: {', '.join(sorted(left))}" if left else "")


def write_samples(folder: Path, outcomes: Sequence[Outcome], judges: Sequence[str]) -> None:
    """samples.csv: a line a sample: where it stands, verdicts (1, 0, or empty for unscored or none), costs, texts, the
    error."""
    verdicts = [(judge, text) for judge in dict.fromkeys(judges) for text in TEXTS]
    place = ("row", "adapter", "goals", "attack", "goal", "subject", "prompt")
    rows = []
    for outcome in outcomes:
        labels = [outcome.success(*pair) for pair in verdicts]
        rows.append(
            [
                *(getattr(outcome, name) for name in place),
                *("" if label is None else int(label) for label in labels),
                *(_spent(outcome.record) if outcome.record else [""] * len(_SPENT)),
                *(outcome.texts.get(text) or "" for text in TEXTS),
                outcome.error or "",
            ]
        )
    head = [*place, *(f"{judge}_{text}" for judge, text in verdicts), *_SPENT, *TEXTS, "error"]
    write_text(folder / SAMPLES, csv_text(head, rows))


def write_learned(folder: Path, outcomes: Sequence[Outcome]) -> list[str]:
    """ATTACK-ROW.json: what an attack learned on a row's goals, of each attack and row that did; their names.

    Args:
        folder: of the run.
        outcomes: those that failed are left out. Their order doesn't matter, nor how often the run was cut off.
    """
    records: dict[tuple[str, str], list[Record]] = {}
    for outcome in outcomes:
        if outcome.record and outcome.error is None:
            records.setdefault((outcome.attack, outcome.row), []).append(outcome.record)
    texts = {f"{attack}-{row}.json": find_attack(attack).learned(kept) for (attack, row), kept in records.items()}
    names = [name for name, text in texts.items() if text is not None]
    for name in names:
        write_text(folder / name, texts[name] or "")
    return names


_SPENT = ("score", "queries", "nfe", "role_calls", "role_failures", "capabilities", "seconds", "taxonomy", "asked")


def _spent(record: Record) -> list[Any]:
    counts = [record.target_queries, record.nfe, record.role_calls, record.role_failures]
    asked = record.asks[-1].text if record.asks else ""
    score = "" if record.score is None else record.score
    taxonomy = " ".join(ids(record.taxonomy))
    return [score, *counts, " ".join(record.capabilities), round(record.seconds, 3), taxonomy, asked]
