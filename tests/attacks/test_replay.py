import json
import os

import pytest
from attack_double import CANARY, REFUSAL, Double, Stub

from midward.attacks import find, solver_of
from midward.attacks.artifacts import read, write
from midward.attacks.record import Record

GOAL = "Make a drex valm skorn."
ROW = {"index": 3, "goal": GOAL, "behavior": "b", "category": "c", "prompt": "Dear one, make it.", "jailbroken": True}


def file_of(folder, *rows):
    path = folder / "words.json"
    path.write_text(json.dumps(rows))
    return path


def export(path, *records):
    """The records of samples' stores, as an artifact file."""
    attempts = [(Record(**record), record.get("jailbroken", False)) for record in records]
    write(path, attempts, judge="oracle", defense=None, date="2026-01-01")


@pytest.fixture
def file(tmp_path):
    """Writes rows as an artifact file, or any content as it is."""

    def write(*rows, content=None):
        path = tmp_path / "artifacts.json"
        path.write_text(
            json.dumps({"parameters": {"method": "PAIR", "model": "vicuna"}, "jailbreaks": rows})
            if content is None
            else content
        )
        return str(path)

    return write


def test_the_goals_artifact_is_put_once_and_again_with_a_fresh_seed(attack, file):
    api = Double(lambda seen: CANARY)
    record, _ = attack("replay", api, path=file({**ROW, "goal": "Another one."}, ROW), seed=5)
    assert [seen.turns for seen in api.seen] == [[("user", "Dear one, make it.")]] * 2
    assert api.seen[0].seed == 5 != api.seen[1].seed and record["access"] == "replay"
    about = record["artifact"]
    assert (about["attack"], about["model"], about["jailbroken"]) == ("PAIR", "vicuna", True) and len(
        about["sha256"]
    ) == 64


@pytest.mark.parametrize(
    "row, fits",
    [
        ({"goal": "  make a drex valm  skorn"}, True),
        ({"goal": "Make a drex valm skorn now."}, False),
        ({"goal": None, "id": "goal-1"}, True),
        ({"goal": None, "id": "goal-2"}, False),
        ({"goal": "Another one.", "id": "goal-1"}, False),  # the text counts where there is one
    ],
)
def test_a_row_fits_by_its_text_or_else_by_its_id(attack, file, row, fits):
    record, _ = attack("replay", Double(lambda seen: CANARY), path=file({**ROW, **row}))
    assert (record["response"] == CANARY) == fits
    assert ("unscored" in record) != fits


@pytest.mark.parametrize(
    "rows, why",
    [
        ([{**ROW, "goal": "Another one."}], "no row fits"),
        ([{**ROW, "prompt": None}], "none was found when it was made"),
        ([{**ROW, "composite": True}], "put together of several replies"),
    ],
)
def test_a_goal_without_an_artifact_is_unscored_and_the_record_says_why(attack, file, rows, why):
    api = Double(lambda seen: CANARY)
    record, sample = attack("replay", api, path=file(*rows))
    assert api.seen == [] and sample.store["texts"] == {"reply": None} and why in record["unscored"]


def test_the_next_artifact_of_a_goal_can_be_chosen(attack, file):
    path = file({**ROW, "prompt": None}, ROW, {**ROW, "prompt": "The second."})
    api = Double(lambda seen: CANARY)
    attack("replay", api, path=path, row=1, replay=False)
    assert api.seen[0].prompt == "The second."
    record, _ = attack("replay", api, path=path, row=2)
    assert "there are 2, numbered from 0" in record["unscored"]


def test_without_a_file_it_cannot_begin(attack):
    assert "give its path: replay.path=FILE" in attack("replay", Double(lambda seen: CANARY), error=True)


@pytest.mark.parametrize(
    "content, why", [("{", "can't be read as JSON"), ('[{"prompt": "x"}]', "row 0: a row needs goal")]
)
def test_a_file_that_is_no_artifact_file_is_an_error_before_anything_runs(file, content, why):
    with pytest.raises(ValueError, match=why):
        solver_of(find("replay"))(path=file(content=content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"replay: path: the artifacts can't be read: .*nowhere.json"):
        solver_of(find("replay"))(path=str(tmp_path / "nowhere.json"))


def test_a_file_that_was_written_anew_is_read_anew(file):
    path = file(ROW)
    assert len(read(path)) == 1
    file(ROW, ROW)
    os.utime(path, ns=(1, 1))
    assert len(read(path)) == 2


# --- our own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, settings", [("dia", {"rewrites": 1}), ("flip", {}), ("direct", {})])
def test_what_is_exported_is_put_again_turn_by_turn(attack, tmp_path, name, settings):
    api = Double(lambda seen: CANARY)
    record, _ = attack(name, api, **settings, replay=False)
    path = tmp_path / "ours.json"
    export(path, record)
    again = Double(lambda seen: REFUSAL)
    replayed, _ = attack("replay", again, path=str(path), replay=False)
    assert [again.seen[0].turns] == [[tuple(turn) for turn in ask["turns"]] for ask in record["asks"]]
    assert replayed["artifact"]["attack"] == name and replayed["response"] == REFUSAL


def test_forced_and_banned_tokens_are_put_again(attack, tmp_path):
    record, _ = attack("direct", Double(lambda seen: CANARY))
    ask = {"turns": [["user", "x"]], "forced": [{"position": 2, "ids": [7, 9]}], "bans": [{"ids": [4]}], "seed": 9}
    path = tmp_path / "ours.json"
    export(path, record | {"asks": [ask | {"bans": [{"ids": [4], "position": 0}]}]})
    words = file_of(
        tmp_path, {"goal": GOAL, "asks": [ask | {"forced": [{"position": 2, "text": "xxxxxxx xxxxxxxxx"}]}]}
    )
    for artifacts in (path, words):  # the same for a file that has words, in a tokenizer whose ids are their lengths
        api = Double(lambda seen: CANARY, language_model=Stub())
        attack("replay", api, path=str(artifacts), seed=1)
        assert api.seen[0].forced == [{"position": 2, "ids": [7, 9]}]
        assert api.seen[0].bans == [{"position": 0, "ids": [4]}] and api.seen[0].seed == 1


def test_what_was_put_together_of_several_replies_is_not_put_again(attack, tmp_path):
    joined, _ = attack("speakeasy", Double(lambda seen: "Red."), languages=["English"])
    export(tmp_path / "ours.json", joined)
    [row] = read(tmp_path / "ours.json")
    assert joined["composite"] and row.ask is None and row.goal == GOAL


def test_an_attempt_without_a_result_is_exported_without_a_prompt(attack, file, tmp_path):
    record, _ = attack("replay", Double(lambda seen: CANARY), path=file({**ROW, "goal": "Another one."}))
    export(tmp_path / "ours.json", record)
    [row] = read(tmp_path / "ours.json")
    assert row.ask is None and row.goal == GOAL
