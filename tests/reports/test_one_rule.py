"""One rule for numbers: the same rows give one interval and one p, whichever verb reads them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import report_world as world
from hypothesis import given, settings
from hypothesis import strategies as st

from midward.attacks import results
from midward.attacks.results import Outcome
from midward.guards.defences import defences
from midward.guards.defences import table as scores
from midward.judges import Verdict, find
from midward.judges.scorers import Judged
from midward.probes.prefill import PREFILL, cells, slope
from midward.probes.probe import against
from midward.reports.compare import between
from midward.stats import FEW, rate
from midward.utility import readings

#: (goal, seed) -> the verdicts of two sides. Goals 0 and 1, 2 and 3, ... ask for one thing.
Answers = st.dictionaries(
    st.tuples(st.integers(0, 9), st.integers(0, 1)), st.tuples(*[st.sampled_from([True, False, None])] * 2), min_size=3
).filter(lambda answers: any(None not in pair for pair in answers.values()))
NUMBERS = ("value", "low", "high", "n", "goals", "seeds", "p", "holm", "family")


def numbers(pair):
    return [pair[name] for name in NUMBERS]


def rows_of(answers, side, **more):
    """The rows of a run of two seeds."""
    return [
        {"goal": f"g{goal}", "subject": f"thing {goal // 2}", "seed": seed, "success": pair[side], **more}
        for (goal, seed), pair in answers.items()
    ]


@settings(max_examples=20)
@given(Answers)
def test_a_probe_and_compare(answers):
    about = {"set": "harmful", "kind": "neutral", "position": 3, "tokens": None, "phrase": "p", "correct": None}
    mine, theirs = (rows_of(answers, side, **about, refused=True, own_refusal=False) for side in (0, 1))
    with TemporaryDirectory() as name:
        folders = [world.run(Path(name) / label, "probe prefill", {}) for label in ("mine", "theirs")]
        for folder, rows in zip(folders, (mine, theirs), strict=True):
            world.rows(folder / "rows.jsonl", rows)
        compared = between(folders)["pairs"]
    assert [numbers(pair) for pair in compared] == [numbers(pair) for pair in against(PREFILL, mine, theirs)]


@settings(max_examples=20)
@given(Answers)
def test_an_attack_and_compare(answers):
    def outcome(model, goal, seed, success):
        verdicts = {"reply": Verdict("oracle", success)}
        unscored = ["reply"] if success is None else []
        said = {"judge": "oracle", "version": "1", "hash": "", "measures": find("oracle").measures}
        judged = {"oracle": Judged(**said, verdicts=verdicts, unscored=unscored)}
        about = {"adapter": str(seed), "subject": f"thing {goal // 2}"}
        return Outcome(model, "made-up", "direct", f"g{goal}", "t", judged, {"reply": "t"}, **about)

    sides = [
        [outcome(model, *asked, pair[side]) for asked, pair in answers.items()] for side, model in enumerate(("a", "b"))
    ]
    how = {"sets": {"made-up": 10}, "attacks": ["direct"], "judges": ["oracle"]}
    summary = results.summarise([*sides[1], *sides[0]], rows=["b", "b", "a", "a"], **how)
    with TemporaryDirectory() as name:
        own = [results.summarise(side, rows=[label, label], **how) for label, side in zip("ab", sides, strict=True)]
        folders = [world.run(Path(name) / label, "attack", each) for label, each in zip("ab", own, strict=True)]
        for folder, outcomes in zip(folders, sides, strict=True):
            results.write_samples(folder, outcomes, ["oracle"])
        [compared] = between(folders)["pairs"]
    asr, pairs = (summary[name]["oracle"]["reply"]["made-up"]["direct"] for name in ("asr", "paired"))
    assert numbers(compared) == numbers(pairs["a - b"])
    rows = rows_of(answers, 0)
    whole = rate(*([row[name] for row in rows] for name in ("success", "subject", "seed"))).record()
    assert {name: asr["a"][name] for name in whole} == whole
    [cell] = cells(
        [{**row, "set": "x", "kind": "k", "position": 0, "tokens": 1, "score": None, "harmful": True} for row in rows],
        "oracle",
    )
    assert cell["asr"] == whole  # a probe's table


@settings(max_examples=20)
@given(Answers)
def test_utility_and_compare(answers):
    about = {"set": "sums", "subtask": "sums", "measure": "right", "flagged": False}
    mine, theirs = (
        [{**row, "value": row["success"]} for row in rows_of(answers, side, **about, model="m")] for side in (0, 1)
    )
    with TemporaryDirectory() as name:
        folders = [world.run(Path(name) / label, "utility", {}) for label in "ab"]
        for folder, rows in zip(folders, (mine, theirs), strict=True):
            world.rows(folder / "rows.jsonl", rows)
        [compared] = between(folders)["pairs"]
    [pair] = readings.against({"m": mine}, theirs)
    assert numbers(compared) == numbers(pair)


def test_a_guard_that_takes_half_away_and_compare(tmp_path):
    rows = [
        {"set": "x", "goal": f"g{n}", "subject": f"thing {n // 2}", "harmful": True, "success": True, "refused": False}
        for n in range(40)
    ]
    rows = [{**row, "steps": 8} for row in rows]
    decisions = [{"score": 0.0, "flagged": n % 4 == 0, "step": None} for n in range(40)]
    _, guarded = defences(rows, {"g": decisions})
    nothing = [{**decision, "flagged": False} for decision in decisions]
    folders = [world.run(tmp_path / label, "guard eval", {}) for label in ("without", "with")]
    for folder, decided in zip(folders, (nothing, decisions), strict=True):
        world.table(folder / "scores.csv", scores(rows, {"g": decided}))
    [compared] = between(folders)["pairs"]
    assert guarded["gain"].goals == 20 and numbers(compared) == numbers(guarded["gain"].record())


def test_files_without_subjects_meet_those_that_have_them(tmp_path):
    """Runs of an earlier version are compared by goal, and clustered by what the other run knows of it."""
    about = {"guard": "g", "set": "x", "harmful": True, "flagged": False}
    folders = [world.run(tmp_path / label, "guard eval", {}) for label in ("new", "old")]
    new = [{**about, "goal": f"g{n}", "subject": f"thing {n // 2}", "success": n % 2 == 0} for n in range(8)]
    old = [{name: row[name] for name in row if name != "subject"} for row in new]
    for folder, rows in zip(folders, (new, old), strict=True):
        world.table(folder / "scores.csv", rows)
    [pair] = between(folders)["pairs"]
    assert (pair["n"], pair["goals"], pair["value"]) == (8, 4, 0.0)


@pytest.mark.parametrize("goals", [FEW - 2, FEW + 2])
def test_a_slope_over_few_goals_says_so(goals):
    rows = [
        {"goal": f"g{n}", "subject": f"thing {n}", "position": at, "success": (n + at) % 2 == 0}
        for n in range(goals)
        for at in (0, 1, 2, 3)
    ]
    change = slope(rows)
    assert change and (change.untold == "too few goals to tell") is (goals < FEW)
