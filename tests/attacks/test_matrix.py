"""The matrix: goes on where it stopped, runs again what changed and nothing else, counts what fails."""

import json
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from endpoints import endpoint
from holding import in_a_fork
from inspect_ai import eval as inspect_eval
from inspect_ai.log import list_eval_logs, read_eval_log

from midward._asking import ModelDownError
from midward.attacks import AttackError, CapabilityError, Target, evalset, results, solver
from midward.attacks import matrix as room
from midward.errors import MidwardError
from midward.goals import Goal
from midward.models import memory
from midward.serving.provider import MidwardAPI
from midward.world import ASSISTANT

SHORT = {"device": "cpu", "length": 12, "steps": 6}
GOALS = [Goal(f"g{i}", f"t{30 + i} t{40 + i}", "made-up", True) for i in range(4)]


def plan(folder, *, attacks=("direct", "pair"), goals=GOALS, profile="quick", **changes):
    planned = room.plan_attacks(attacks, profile)
    judges = changes.pop("judges", ["refusal"])
    settings = {
        "rows": [room.Row("base", str(folder), arguments=SHORT)],
        "attacks": planned,
        "sets": {"made-up": goals},
        "judges": judges,
        "roles": dict.fromkeys(room.roles_needed(planned, judges), ASSISTANT),
    }
    return room.Matrix(**{**settings, **changes})


def go(matrix, out):
    return results.read(evalset.run(matrix, out, display="none"))


def lasting(outcomes):
    """All of outcomes but the time it took."""
    return sorted(
        (
            one.row,
            one.goals,
            one.attack,
            one.goal,
            str({judge: judged.model_dump() for judge, judged in sorted(one.judged.items())}),
            json.dumps(one.texts),
            str(one.record and one.record.model_dump(exclude={"seconds"})),
            one.error,
        )
        for one in outcomes
    )


@pytest.fixture
def asked(monkeypatch):
    """The prompts that models of this process get."""
    prompts = []
    original = MidwardAPI.generate

    async def generate(self, input, tools, tool_choice, config):
        prompts.append(input[-1].text)
        return await original(self, input, tools, tool_choice, config)

    monkeypatch.setattr(MidwardAPI, "generate", generate)
    return prompts


def test_what_a_model_needs_is_told_before_it_is_loaded(llada_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "GB", 1)  # of fewer bytes nothing is told
    told = []

    def load(row):
        raise InterruptedError

    monkeypatch.setattr(room.Row, "load", load)
    with pytest.raises(InterruptedError):
        evalset.run(plan(llada_folder), tmp_path, tell=told.append)
    assert [line.split()[0] for line in told] == ["memory"]


# --- going on --------------------------------------------------------------------------------------------------


@contextmanager
def begun(tell):
    """Tells of every sample that begins in this process: (attack, goal)."""
    original = solver.run_search

    async def run_search(info, attempt, settings):
        tell(info.name, attempt.goal.id)
        await original(info, attempt, settings)

    solver.run_search = run_search
    try:
        yield
    finally:
        solver.run_search = original


@pytest.fixture(scope="module")
def whole(llada_folder, tmp_path_factory):
    """An uninterrupted run: its folder (copy it, if you run into it) and its outcomes."""
    out = tmp_path_factory.mktemp("whole")
    return out, go(plan(llada_folder), out)


def test_after_a_kill_no_finished_sample_begins_again_and_the_result_is_the_same(
    llada_folder, tmp_path, monkeypatch, whole
):
    model, ours, last_words = tmp_path / "model", tmp_path / "begun", tmp_path / "last_words.txt"
    shutil.copytree(llada_folder, model)  # in the fork nobody serves what is loaded here

    def die_at_the_fourth(*sample):
        with ours.open("a") as file:
            print(*sample, file=file)
        if len(ours.read_text().splitlines()) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def search():
        with begun(die_at_the_fourth):
            evalset.run(plan(model), tmp_path / "out", display="none")

    with monkeypatch.context() as patch:  # one after the other, so that whoever begins has all before it in the log
        for limit in ("MAX_SAMPLES", "MAX_TASKS"):
            patch.setattr(evalset, limit, 1)
        status = in_a_fork(search, last_words)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, last_words.read_text()
    before = [tuple(line.split()) for line in ours.read_text().splitlines()]
    logs = [read_eval_log(info, header_only=True) for info in list_eval_logs(str(tmp_path / "out" / "logs"))]
    finished = {(one.attack, one.goal) for one in results.read(logs)}
    assert len(before) == 4 and finished <= set(before)
    assert len(finished) >= 2  # the last is cut short, the one before may not be written yet
    after = []
    with begun(lambda *sample: after.append(sample)):
        again = go(plan(model), tmp_path / "out")
    assert sorted([*finished, *after]) == sorted((one.attack, one.goal) for one in whole[1])
    for result in again:
        result.record.target = whole[1][0].record.target  # the folder is another
    assert lasting(again) == lasting(whole[1])


def test_the_same_again_asks_nobody(llada_folder, tmp_path, asked, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    assert lasting(go(plan(llada_folder), tmp_path)) == lasting(whole[1]) and not asked
    # nor does what changes no answer: the batch size
    wide = plan(llada_folder, rows=[room.Row("base", str(llada_folder), arguments=SHORT | {"batch_size": 3})])
    assert lasting(go(wide, tmp_path)) == lasting(whole[1]) and not asked


@pytest.mark.parametrize("drawing, known", [({}, True), ({"temperature": 0.7}, False), ({"order": "random"}, False)])
def test_a_replay_that_no_seed_has_a_say_in_is_not_asked_for(
    lively_folder, tmp_path, asked, monkeypatch, drawing, known
):
    rows = [room.Row("base", str(lively_folder), arguments=SHORT | drawing)]
    matrix = plan(lively_folder, rows=rows, goals=GOALS[:2])
    found, calls = go(matrix, tmp_path / "one"), len(asked)
    assert {one.record.replay for one in found} == {"known" if known else "asked"}
    assert known or any(one.texts["reply"] != one.texts["replay"] for one in found)
    monkeypatch.setattr(Target, "settled", lambda self, ask: None)
    asked.clear()
    anew = go(matrix, tmp_path / "other")
    assert {one.record.replay for one in anew} == {"asked"}
    assert len(asked) - calls == len(found) * known
    for one in (*found, *anew):
        one.record.replay = None
    assert lasting(found) == lasting(anew)


@pytest.mark.parametrize(
    "change, again",
    [
        ({"seed": 1}, {"direct", "pair"}),
        ({"budget": 1}, {"direct", "pair"}),
        ({"replay": False}, {"direct", "pair"}),
        ({"goals": GOALS[:3]}, {"direct", "pair"}),
        ({"goals": [replace(GOALS[0], text="t99"), *GOALS[1:]]}, {"direct", "pair"}),
        ({"judges": ["refusal", "harmfulness"]}, {"direct", "pair"}),
        ({"profile": "jbb"}, {"pair"}),
        ({"roles": {"attacker": f"{ASSISTANT}/tuning", "scorer": ASSISTANT}}, {"pair"}),
    ],
)
def test_what_changed_is_run_again_and_nothing_else(llada_folder, tmp_path, asked, whole, change, again):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    changed = plan(llada_folder, **change)
    if "profile" in change:  # the profile's many rounds aren't the point
        changed = replace(changed, attacks=[*room.plan_attacks(["direct"], "jbb"), *_short_pair()])
    found = go(changed, tmp_path)
    plain = {goal.text for goal in changed.sets["made-up"]}
    assert bool(plain & set(asked)) == ("direct" in again)
    assert len(found) == 2 * len(changed.sets["made-up"]) and len(asked) > 0


def _short_pair():
    return room.plan_attacks(["pair"], "quick", {"pair": {"cutoff": 9}})


def test_new_weights_under_the_same_path_are_run(llada_folder, lively_folder, tmp_path, asked):
    folder = tmp_path / "model"
    shutil.copytree(llada_folder, folder)
    first = go(plan(folder, attacks=["direct"]), tmp_path / "out")
    shutil.rmtree(folder)
    shutil.copytree(lively_folder, folder)
    asked.clear()
    second = go(plan(folder, attacks=["direct"]), tmp_path / "out")
    assert asked and lasting(second) != lasting(first)
    assert lasting(second) == lasting(go(plan(folder, attacks=["direct"]), tmp_path / "fresh"))


def test_a_file_that_an_attack_reads_counts_by_content(llada_folder, tmp_path, asked):
    path = tmp_path / "artifacts.json"

    def planned(prompt):
        path.write_text(json.dumps([{"goal": goal.text, "prompt": f"{prompt} {goal.text}"} for goal in GOALS]))
        replayed = room.plan_attacks(["replay"], "quick", {"replay": {"path": str(path)}})
        return replace(plan(llada_folder, attacks=["direct"]), attacks=replayed)

    go(planned("t50"), tmp_path / "out")
    asked.clear()
    go(planned("t50"), tmp_path / "out")
    assert not asked
    go(planned("t51"), tmp_path / "out")
    assert f"t51 {GOALS[0].text}" in asked


def test_rows_share_nothing_but_the_table(llada_folder, lively_folder, tmp_path):
    rows = [room.Row("a", str(llada_folder), arguments=SHORT), room.Row("b", str(lively_folder), arguments=SHORT)]
    both = go(plan(llada_folder, rows=rows, goals=GOALS[:2]), tmp_path / "both")
    for row in rows:
        alone = go(plan(llada_folder, rows=[row], goals=GOALS[:2]), tmp_path / row.label)
        assert lasting(alone) == lasting(one for one in both if one.row == row.label)
    assert {one.row for one in both} == {"a", "b"} and len(both) == 8


# --- before anything runs ----------------------------------------------------------------------------------------


def test_what_cannot_run_is_told_before_anything_runs(llada_folder, tmp_path, asked, monkeypatch):
    monkeypatch.setenv("NOWHERE_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("NOWHERE_API_KEY", "none")
    served = [
        room.Row("base", str(llada_folder), arguments=SHORT),
        room.Row("far", "openai-api/nowhere/x", served=True),
    ]
    with pytest.raises(CapabilityError, match=r"'pad' needs the capability POS, which far lacks .*use a model that"):
        go(plan(llada_folder, rows=served, attacks=["direct", "pad"]), tmp_path)
    for changes, message in [
        ({"rows": served[:1] * 2}, "two rows are called 'base'"),
        ({"goals": []}, "no goals in made-up"),
        ({"judges": []}, "no judges"),
        ({"attacks": ["tpa"]}, r"Did you mean 'tap'\?"),
        ({"attacks": ["replay"]}, "replay can't run without its setting path"),
        ({"profile": "mossa"}, r"Did you mean 'mosa'\?"),
    ]:
        with pytest.raises(ValueError, match=message):
            go(plan(llada_folder, **changes), tmp_path)
    for name in ("nobody/x", "openai-api/unset/x"):
        with pytest.raises(AttackError, match=name):
            go(plan(llada_folder, rows=[room.Row("far", name, served=True)]), tmp_path)
        with pytest.raises(AttackError, match=name):
            go(plan(llada_folder, roles={"attacker": name, "scorer": ASSISTANT}), tmp_path)
    with pytest.raises(MidwardError, match=r"^midward[^:]*: no adapter"):
        go(plan(llada_folder, rows=[room.Row("a", str(llada_folder), str(tmp_path / "none"), SHORT)]), tmp_path)
    assert not asked and not list(tmp_path.glob("logs/*.eval"))


def test_settings_for_an_attack_that_is_not_run(llada_folder):
    with pytest.raises(ValueError, match="settings for 'tap', which isn't among the attacks: direct"):
        room.plan_attacks(["direct"], "quick", {"tap": {"width": 3}})
    with pytest.raises(ValueError, match=r"tap has no setting 'widht'. Did you mean 'width'\?"):
        room.plan_attacks(["tap"], "quick", {"tap": {"widht": 3}})


# --- endpoints that misbehave ------------------------------------------------------------------------------------


ROUGH = {
    "fine": lambda times: (200, "All is well."),
    "moody": lambda times: (500, b"{}") if times == 1 else (200, "All is well."),
    "broken": lambda times: (500, b'{"error": {"message": "out of order"}}'),
    "garbled": lambda times: (200, b'{"choices": ['),
    "empty": lambda times: (200, ""),
    "slow": lambda times: (200, None),
}


def test_a_target_that_misbehaves_ends_in_errors_that_are_counted(llada_folder, tmp_path, monkeypatch):
    goals = [Goal(name, name, "made-up", True) for name in ROUGH]
    matrix = plan(
        llada_folder,
        rows=[room.Row("far", "openai-api/rough/x", served=True)],
        attacks=["direct"],
        goals=goals,
        replay=False,
    )
    behaviour = dict(ROUGH)
    with endpoint(lambda text, times: behaviour[text](times), monkeypatch) as seen:
        started = time.monotonic()
        found = {one.goal: one for one in go(matrix, tmp_path)}
        assert time.monotonic() - started < 180  # it ends; half a minute where the machine is idle
        times = dict(seen)
        behaviour = dict.fromkeys(ROUGH, ROUGH["fine"])
        seen.clear()
        again, asked_again = go(matrix, tmp_path), set(seen)
    assert set(found) == set(ROUGH)
    for name in ("fine", "moody"):
        assert found[name].error is None and found[name].success("refusal", "reply") is False
    for name in ("broken", "garbled", "empty", "slow"):
        assert found[name].error and not found[name].judged
    assert "empty reply" in found["empty"].error
    # Tried again, but not forever. How often depends on the machine: where it is busy an attempt may time out.
    assert all(2 <= times[name] <= 6 for name in ("moody", "broken", "slow"))
    summary = results.summarise(
        list(found.values()), rows=["far"], sets={"made-up": 6}, attacks=["direct"], judges=["refusal"]
    )
    cell = summary["asr"] or summary["refusals"]["refusal"]["reply"]["made-up"]["direct"]["far"]
    assert (cell["value"], cell["n"], cell["errors"]) == (0.0, 2, 4)
    assert len(again) == 6 and not any(one.error for one in again)
    assert asked_again == {"broken", "garbled", "empty", "slow"}  # the failed ones anew, and no other


@pytest.mark.slow  # it waits for what doesn't answer
def test_a_judge_and_an_attacker_that_misbehave_are_counted(llada_folder, tmp_path, monkeypatch):
    kinds = list(ROUGH.values())

    def behave(text, times):
        return kinds[sum(map(ord, text)) % len(kinds)](times)  # the same for the same prompt

    far = "openai-api/rough/x"
    matrix = plan(
        llada_folder,
        attacks=["pair"],
        judges=["harmfulness"],
        goals=GOALS[:2],
        replay=False,
        roles={"attacker": far, "scorer": far, "judge": far},
    )
    with endpoint(behave, monkeypatch):
        found = go(matrix, tmp_path)
    assert len(found) == 2
    assert any(one.record.role_failures for one in found if one.record)
    judged = [one.success("harmfulness", "reply") for one in found]
    assert judged and set(judged) == {None}  # "All is well." is no score either
    summary = results.summarise(found, rows=["base"], sets={"made-up": 2}, attacks=["pair"], judges=["harmfulness"])
    cell = summary["asr"]["harmfulness"]["reply"]["made-up"]["pair"]["base"]
    assert (cell["value"], cell["n"], cell["unscored"]) == (None, 0, 2)
    trouble = summary["unscored"]["harmfulness"]["reply"]
    assert trouble["n"] == 2 and re.match("the judge|there is no such text", trouble["why"])
    assert re.match("the (attacker|scorer)", summary["costs"]["pair"]["base"]["role_trouble"]["why"])


DOWN = {
    "401": ({"first": (401, b'{"error": {"message": "no such key"}}')}, "AuthenticationError.*no such key"),
    "500": ({"first": (500, b'{"error": {"message": "out of order"}}')}, "InternalServerError.*out of order"),
    "404": ({"first": (404, b'{"error": {"message": "no model x"}}')}, "NotFoundError.*no model x"),
}


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        pytest.param(kind, role, marks=[] if kind == "401" or role == "judge" else pytest.mark.slow)
        for kind in DOWN
        for role in ("judge", "attacker", "served")
    ],
)
def test_an_endpoint_that_is_down_is_told_before_anything_runs(llada_folder, tmp_path, monkeypatch, asked, kind, role):
    far = "openai-api/rough/x"
    roles = {"attacker": ASSISTANT, "scorer": ASSISTANT, "judge": ASSISTANT}
    changes = {"roles": roles | {role: far}} if role != "served" else {}
    if role == "served":
        changes = {"rows": [room.Row("far", far, served=True)], "roles": roles}
    matrix = plan(llada_folder, attacks=["pair"], judges=["harmfulness"], **changes)
    how, why = DOWN[kind]
    with endpoint(lambda text, times: (200, "SCORE: 1"), monkeypatch, **how) as seen:
        started = time.monotonic()
        who = "the served model" if role == "served" else f"the {role}"
        with pytest.raises(ModelDownError, match=rf"{who} {far} at http://127.*can't be asked: {why}.*key right"):
            go(matrix, tmp_path)
    assert time.monotonic() - started < 30 and not seen and not asked


def test_a_local_server_under_inspects_openai_provider_is_told_what_to_do(llada_folder, tmp_path, monkeypatch):
    matrix = plan(llada_folder, attacks=["direct"], judges=["harmfulness"], roles={"judge": "openai/x"})
    with endpoint(lambda text, times: (200, "SCORE: 1"), monkeypatch):
        with pytest.raises(ModelDownError, match="A local server is asked as openai-api/NAME/MODEL"):
            go(matrix, tmp_path)
        found = go(replace(matrix, roles={"judge": "openai-api/rough/x"}), tmp_path)
    assert {one.success("harmfulness", "reply") for one in found} == {False}


def test_a_finished_run_needs_no_endpoint(llada_folder, tmp_path, monkeypatch):
    matrix = plan(llada_folder, attacks=["direct"], judges=["harmfulness"], roles={"judge": "openai-api/rough/x"})
    monkeypatch.setattr(evalset, "_identity", lambda model: [str(model)])  # the server's port is another one below
    with endpoint(lambda text, times: (200, "SCORE: 1"), monkeypatch):
        before = go(matrix, tmp_path)
    with endpoint(lambda text, times: (500, b"{}"), monkeypatch, first=(500, b"{}")) as seen:
        assert len(go(matrix, tmp_path)) == len(before) and not seen


# --- other ways in -----------------------------------------------------------------------------------------------


def test_inspects_own_command_line_runs_an_attack(llada_folder, tmp_path):
    [log] = inspect_eval(
        "midward/attack",
        task_args={"attack": "pair", "goals": "sandbox", "count": 2},
        model=f"midward/{llada_folder}",
        model_args=SHORT,
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success" and log.eval.task == "midward/attack"
    assert {score.scorer for score in log.results.scores} == {"oracle", "harmfulness"}
    assert [sample.store["attempt"]["attack"] for sample in log.samples] == ["pair", "pair"]
