"""MaskForge: the bandit follows UCB1; a library is the sum of a run, whatever the order; frozen, it only chooses."""

import json
import math
import random
import string

import pytest
from attack_double import CANARY, REFUSAL, Double, said
from test_matrix import GOALS, go, plan

from midward.attacks import find, results, solver
from midward.attacks.dija import scaffold_of
from midward.attacks.maskforge import (
    EMPTY,
    LEARNED,
    STYLES,
    Arm,
    Library,
    MaskForge,
    Tally,
    choose,
    filled,
    learned,
    pattern_of,
    read_library,
)
from midward.attacks.matrix import plan_attacks
from midward.attacks.record import Record
from midward.attacks.shapes import GAP
from midward.errors import InputError
from midward.goals import Goal

MASK = "<|mdm_mask|>"
TEXT = "Make a drex valm skorn."
GOAL = Goal("goal-1", TEXT, "test", True)


def scores(text):
    """A scorer: 10 for the canary, else 1."""
    return json.dumps({"score": 10 if CANARY in text else 1})


def run(attack, sandbox, rule, *, drawn=True, **settings):
    api = Double(rule, language_model=sandbox)
    settings = {"roles": {"scorer": said(scores)[0]}, "replay": False, **settings}
    record, _ = attack("maskforge", api, **settings)
    return api, record


def never(seen):
    return REFUSAL


def arms_of(record):
    return [pull["arm"] for pull in record["bandit"]["pulls"]]


def sealed(**content):
    library = Library(**content)
    return library.model_copy(update={"hash": library.digest})


@pytest.fixture
def saved(tmp_path):
    def save(library, name="library.json"):
        path = tmp_path / name
        path.write_text(library.model_dump_json())
        return str(path)

    return save


# --- the bandit ------------------------------------------------------------------------------------------------------


def test_ucb1_takes_new_arms_in_order_then_the_highest_bound():
    assert choose({"a": Tally(3, 3.0), "b": Tally(0, 0.0), "c": Tally(0, 0.0)}, 1.0) == "b"
    tallies = {"a": Tally(50, 30.0), "b": Tally(4, 1.6), "c": Tally(46, 27.0)}
    bounds = {
        name: each.reward / each.pulls + math.sqrt(2 * math.log(100) / each.pulls) for name, each in tallies.items()
    }
    assert choose(tallies, 1.0) == max(bounds, key=bounds.get) == "b"
    assert choose(tallies, 0.0) == "a"
    assert choose({"x": Tally(2, 1.0), "y": Tally(2, 1.0)}, 1.0) == "x"


def test_ucb1_finds_the_best_arm():
    rng, chances = random.Random(0), {"a": 0.2, "b": 0.8, "c": 0.5}
    tallies = {name: Tally(0, 0.0) for name in chances}
    for _ in range(600):
        name = choose(tallies, 0.5)
        tallies[name].pulls += 1
        tallies[name].reward += rng.random() < chances[name]
    assert tallies["b"].pulls > 450


def test_the_patterns_are_of_any_goal_and_hold_gaps():
    assert len(set(STYLES.values())) == len(STYLES) >= 4
    for pattern in STYLES.values():
        text = filled(pattern, GOAL)
        assert text.startswith(TEXT) and "$" not in text and 0 < sum(map(int, GAP.findall(text))) <= MaskForge().most


def test_it_stops_at_the_pattern_that_works(attack, sandbox):
    api, record = run(attack, sandbox, lambda seen: CANARY if "Pupil:" in seen.prompt else REFUSAL)
    assert arms_of(record)[-1] == "dialogue" and arms_of(record).count("dialogue") == 1
    assert record["response"] == CANARY and record["score"] == 10 and record["note"]["arm"] == "dialogue"
    assert record["queries"]["respond"] == len(api.seen) == len(record["bandit"]["pulls"])
    assert all(seen.fill == "fill_only" and MASK in seen.prompt and TEXT in seen.prompt for seen in api.seen)
    assert record["capabilities"] == ["CHAT", "PMASK"] and record["access"] == "black"


@pytest.mark.parametrize("queries, fallback", [(10, 3), (6, 0), (4, 2)])
def test_where_nothing_works_all_queries_are_spent_the_last_on_the_rewriter(attack, sandbox, queries, fallback):
    api, record = run(attack, sandbox, never, queries=queries, fallback=fallback)
    assert record["queries"]["respond"] == len(api.seen) == queries
    assert arms_of(record).count("rewriter") == fallback == record["calls"].get("rewriter", 0)
    assert arms_of(record)[queries - fallback :] == ["rewriter"] * fallback
    assert len({seen.seed for seen in api.seen}) == queries


def test_what_cannot_be_scored_rests_and_is_never_a_reward(attack, sandbox):
    _, record = run(attack, sandbox, never, roles={"scorer": said("no json")[0]}, queries=10, fallback=0)
    assert sorted(arms_of(record)) == sorted(STYLES) and record["score"] is None
    assert [pull["score"] for pull in record["bandit"]["pulls"]] == [None] * len(STYLES)


def test_at_temperature_zero_nothing_is_put_twice(attack):
    from inspect_ai.model import get_model

    target = get_model("midward/sandbox", device="cpu")
    record, sample = attack("maskforge", target, goal=TEXT, cutoff=10, roles={"scorer": said(scores)[0]})
    asked = [node["prompt"] for event in sample.events if event.event == "info" for node in event.data["nodes"]]
    assert len(asked) == len(set(asked)) == len(record["bandit"]["pulls"]) <= 10


def test_only_where_the_denoiser_fills_prompts(attack, sandbox):
    api = Double(never, language_model=sandbox, caps=frozenset({"CHAT", "POS"}))
    assert "needs the capability PMASK" in attack("maskforge", api, error=True)
    assert find("maskforge").unguarded(MaskForge()) and not find("maskforge").unguarded(
        MaskForge(mode="fill_then_answer")
    )
    with pytest.raises(InputError, match="leaves none"):
        find("maskforge").configure({"queries": 3, "fallback": 3})


# --- the library -----------------------------------------------------------------------------------------------------


def test_a_rewriters_text_becomes_a_pattern_of_any_goal():
    goal = Goal("g", "Brew the pale kettle.", "test", True, target="Sure, the pale kettle.")
    pattern = pattern_of("Brew the pale kettle. Sure, the pale kettle. It costs $goal: <mask:8>", goal)
    assert pattern == "$goal $opening It costs $$goal: <mask:8>"
    other = Goal("h", "Mend a bell for $5.", "test", True, target="Sure, a bell.")
    assert filled(pattern, other) == "Mend a bell for $5. Sure, a bell. It costs $goal: <mask:8>"
    assert pattern_of("Brew the pale kettle. The kettle is <mask:8>", goal) is None
    assert pattern_of("It is <mask:8>", goal) is None
    assert pattern_of("$goal is <mask:8>", goal) is None
    assert pattern_of("Two of brew a kettles <mask:8>", Goal("k", "brew a kettle", "test", True)) is None


def record_of(number, pulls, cutoff=10, library=""):
    content = dict.fromkeys(Record.model_fields)
    bandit = {"library": library or None, "goal": f"goal-{number}", "pulls": pulls}
    return Record.model_construct(**content | {"settings": {"library": library, "cutoff": cutoff}}, bandit=bandit)


def pull(arm, score, pattern=None):
    return {"arm": arm, "pattern": STYLES.get(arm, pattern), "score": score}


NEW = "$goal In short, <mask:9>"


def test_a_library_is_the_sum_of_its_records_in_any_order():
    records = [
        record_of(0, [pull("steps", 1), pull("table", 10)]),
        record_of(1, [pull("steps", 4), pull("letter", None), pull("rewriter", 10, NEW)]),
        record_of(2, [pull("rewriter", 2, NEW), pull("rewriter", 9, "$goal <mask:1>"), pull("rewriter", 10, None)]),
        record_of(3, [pull("table", 10)], library="known.json"),
    ]
    library = learned(records)
    tallies = {arm.name: (arm.pulls, arm.reward) for arm in library.arms if arm.pulls}
    assert tallies == {"steps": (2, 0.5), "table": (1, 1.0), "learned-1": (2, 1.2)}
    assert [arm.pattern for arm in library.arms] == [*STYLES.values(), NEW]
    assert library.goals == ("goal-0", "goal-1", "goal-2") and library.hash == library.digest
    assert learned(records[::-1]) == library
    assert learned(records[3:]) is None


@pytest.mark.parametrize(
    "scaffold", [f"<mask:9> is how to {TEXT}", f"{TEXT} <mask:08>", f"A <mask:3> to {TEXT} <mask:4>"]
)
def test_whatever_the_rewriter_may_write_can_be_learned(scaffold, saved):
    pattern = pattern_of(scaffold_of({"scaffold": scaffold}, 64), GOAL)
    library = learned([record_of(0, [pull("rewriter", 10, pattern)])])
    assert library.arms[-1].pattern == pattern and filled(pattern, GOAL) == scaffold
    assert read_library(saved(library)) == library


def test_it_keeps_the_best_of_the_rewriters_patterns():
    pulls = [
        pull("rewriter", 10 - (n % 3), f"$goal {letter} <mask:5>") for n, letter in enumerate(string.ascii_letters)
    ]
    library = learned([record_of(0, pulls, cutoff=8)])
    new = [arm for arm in library.arms if arm.name not in STYLES]
    assert len(new) == LEARNED and {arm.reward for arm in new} == {1.0}


def test_a_library_that_was_changed_or_is_none_is_refused_before_anything_runs(saved, tmp_path):
    def error(path):
        with pytest.raises(InputError) as raised:
            plan_attacks(["maskforge"], "quick", {"maskforge": {"library": str(path)}})
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)
        return str(raised.value)

    library = sealed(arms=EMPTY.arms)
    assert read_library(saved(library)) == library
    changed = library.model_copy(update={"arms": (EMPTY.arms[0].model_copy(update={"reward": 3.0}),)})
    assert "was changed after it was learned" in error(saved(changed, "changed.json"))
    for number, (text, why) in enumerate(
        [
            ("", "Invalid JSON"),
            ("[1", "Invalid JSON"),
            ("{}", "arms: field required"),
            ('{"arms": []}', "arms: tuple should have at least 1 item"),
            ('{"arms": [{"name": "x", "pattern": "no gap"}]}', "arms.0.pattern: string should match"),
        ]
    ):
        path = tmp_path / f"none-{number}.json"
        path.write_text(text)
        assert "is no library of maskforge" in error(path) and why in error(path)
    assert "can't be read: No such file" in error(tmp_path / "gone.json")
    assert "can't be read: Is a directory" in error(tmp_path)


def test_frozen_it_only_chooses_and_is_the_same_for_every_seed(attack, sandbox, saved):
    arms = [Arm(name=name, pattern=pattern, pulls=9, reward=n / 2) for n, (name, pattern) in enumerate(STYLES.items())]
    path = saved(sealed(arms=tuple(arms)))
    runs = [run(attack, sandbox, never, library=path, seed=seed, queries=8)[1] for seed in (0, 0, 7)]
    assert len({json.dumps(record["bandit"]) for record in runs}) == 1
    assert arms_of(runs[0])[0] == list(STYLES)[-1] and "rewriter" not in arms_of(runs[0])
    assert all(record["calls"] == {"scorer": 8} for record in runs)
    assert runs[0]["bandit"]["library"] == read_library(path).hash
    assert read_library(path).arms == tuple(arms)


def test_what_was_learned_on_a_goal_is_not_used_on_it(attack, sandbox, saved):
    _, record = run(attack, sandbox, never)
    path = saved(sealed(arms=EMPTY.arms, goals=(record["bandit"]["goal"],)))
    api = Double(never, language_model=sandbox)
    assert "was learned on the goal 'goal-1' too" in attack("maskforge", api, library=path, error=True)
    assert not api.seen
    run(attack, sandbox, never, library=path, goal="Make another thing.")


def test_a_run_that_was_cut_off_leaves_the_same_library(roomy_folder, tmp_path, monkeypatch):
    matrix = plan(roomy_folder, attacks=["maskforge"], goals=GOALS[:3])
    whole = tmp_path / "whole"
    results_of = go(matrix, whole)
    assert results.write_learned(whole, results_of) == ["maskforge-base.json"]
    original = solver.run_search

    async def broken(info, attempt, settings):
        if attempt.goal.id == "g1":
            raise InputError("the power is out")
        await original(info, attempt, settings)

    monkeypatch.setattr(solver, "run_search", broken)
    cut = tmp_path / "cut"
    results.write_learned(cut, go(matrix, cut))
    part = json.loads((cut / "maskforge-base.json").read_text())
    assert len(part["goals"]) == 2
    monkeypatch.setattr(solver, "run_search", original)
    results.write_learned(cut, go(matrix, cut))
    library = (whole / "maskforge-base.json").read_text()
    assert (cut / "maskforge-base.json").read_text() == library
    assert len(read_library(str(whole / "maskforge-base.json")).goals) == 3


def test_runs_that_learn_nothing_leave_no_file(roomy_folder, tmp_path):
    outcomes = go(plan(roomy_folder, attacks=["direct"], goals=GOALS[:1]), tmp_path)
    assert results.write_learned(tmp_path, outcomes) == []
