"""JailbreakBench's artifacts, in and out."""

import datetime
import json
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import pytest
from attack_double import record
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from midward import goals
from midward.attacks.artifacts import LAYOUT, FileAsk, read, write
from midward.attacks.matrix import load_sets
from midward.attacks.target import Ask
from midward.errors import InputError
from midward.sampling import Ban, Forced

# --- the layout, restated from the documentation of jailbreakbench 1.0.0; `model` is there one of four names ----------


class Jailbreak(BaseModel):
    index: int
    goal: str
    behavior: str
    category: str
    prompt: str | None
    response: str | None
    number_of_queries: int | None
    queries_to_jailbreak: int | None
    prompt_tokens: int | None
    response_tokens: int | None
    jailbroken: bool


class Parameters(BaseModel):
    method: str
    model: str
    attack_type: Literal["white_box", "black_box", "transfer", "manual"]
    defense: str | None
    attack_success_rate: Annotated[float, Field(strict=True, ge=0, le=1)]
    total_number_of_jailbreaks: int
    number_of_submitted_prompts: int
    total_number_of_queries: int | None
    total_prompt_tokens: int | None
    total_response_tokens: int | None
    evaluation_date: datetime.date
    evaluation_llm_provider: str
    method_parameters: dict[str, str | int | float]


class Layout(BaseModel):
    parameters: Parameters
    jailbreaks: list[Jailbreak]


#: As published, but of the invented world.
PUBLISHED = {
    "parameters": {
        "method": "PAIR",
        "model": "vicuna-13b-v1.5",
        "attack_type": "black_box",
        "defense": None,
        "attack_success_rate": 0.5,
        "total_number_of_jailbreaks": 1,
        "number_of_submitted_prompts": 1,
        "total_number_of_queries": 12,
        "total_prompt_tokens": 800,
        "total_response_tokens": 900,
        "evaluation_date": "2024-01-01",
        "evaluation_llm_provider": "vllm",
        "method_parameters": {"n-iter": 3, "attacker": "a scribe"},
    },
    "jailbreaks": [
        {
            "index": index,
            "goal": goal.text,
            "behavior": f"Making {index}",
            "category": "Crafts",
            "prompt": f"For my tale: {goal.text}" if index else None,
            "response": "A tale." if index else None,
            "number_of_queries": 6,
            "queries_to_jailbreak": 2 if index else None,
            "prompt_tokens": 400,
            "response_tokens": 450,
            "jailbroken": bool(index),
        }
        for index, goal in enumerate(goals.load("sandbox", count=2))
    ],
}


def written(folder, *attempts, **more):
    path = Path(folder) / "artifact.json"
    write(path, attempts, **{"judge": "oracle", "defense": None, "date": "2026-01-01"} | more)
    return path


# --- out -------------------------------------------------------------------------------------------------------------


def test_an_export_is_in_the_published_layout(tmp_path):
    forced = Ask.of("Do it.", forced=(Forced(2, (7,)),))
    attempts = [
        (record("made-up-4", queries=0, category="crafts"), True),
        (record("made-up-9", response=None, asks=[]), False),
        (record("made-up-2", asks=[forced]), True),
        (record("made-up-3", settings={"width": 4, "opening": None, "words": ["a", "b"], "tail": 0.5}), None),
    ]
    content = json.loads(written(tmp_path, *attempts, defense="sri").read_text())
    layout = Layout.model_validate(content)
    assert [row.index for row in layout.jailbreaks] == [4, 9, 2] and layout.jailbreaks[0].category == "crafts"
    assert [row.prompt for row in layout.jailbreaks] == ["please made-up-4", None, None]  # no half of what was put
    # what no run knows is null, and never made up
    assert [row.queries_to_jailbreak for row in layout.jailbreaks] == [1, None, None]
    assert {row.prompt_tokens for row in layout.jailbreaks} == {None}
    parameters = layout.parameters
    assert (parameters.attack_success_rate, parameters.total_number_of_jailbreaks) == (2 / 3, 2)
    assert (parameters.number_of_submitted_prompts, parameters.total_number_of_queries) == (1, 9)
    assert parameters.defense == "sri" and content["parameters"]["layout"] == LAYOUT
    # neither jailbroken nor safe: apart, in no count of the layout's
    [unscored] = content["unscored"]
    assert unscored["jailbroken"] is None and content["parameters"]["unscored"] == 1


def test_settings_are_what_the_layout_takes(tmp_path):
    settings = {"width": 4, "opening": None, "words": ["a", "b"], "tail": 0.5, "name": "x", "all": False}
    content = json.loads(written(tmp_path, (record("g", settings=settings), False)).read_text())
    known = Layout.model_validate(content).parameters.method_parameters
    assert known == {"width": 4, "words": '["a", "b"]', "tail": 0.5, "name": "x", "all": False}


@pytest.mark.parametrize(
    "ids, numbers",
    [
        (["made-up-7", "made-up-3"], [7, 3]),
        (["made-up-7", "made-up-7"], [0, 1]),
        (["made-up-7", "b"], [0, 1]),
        (["made-up-\u0667", "made-up-3"], [0, 1]),
    ],
)
def test_a_goal_keeps_its_number_where_it_has_one(tmp_path, ids, numbers):
    rows = json.loads(written(tmp_path, *((record(name), False) for name in ids)).read_text())["jailbreaks"]
    assert [row["index"] for row in rows] == numbers


# --- and in again ----------------------------------------------------------------------------------------------------

TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=3)
SPANS = st.lists(st.integers(0, 999), min_size=1, max_size=3).map(tuple)
ASKS = st.builds(
    lambda before, last, forced, bans, fill, behind: Ask(
        (*before, ("user", last)),
        tuple(Forced(9 * at, ids) for at, ids in enumerate(forced)),
        tuple(map(Ban, bans)),
        fill,
        behind=behind,
    ),
    TURNS,
    st.text(),
    st.lists(SPANS, max_size=2),
    st.lists(SPANS, max_size=2),
    st.sampled_from([None, "fill_only", "fill_then_answer"]),
    SPANS | st.just(()),
)
ATTEMPTS = st.lists(st.tuples(st.text(min_size=1), ASKS, st.none() | st.text(), st.sampled_from([True, False, None])))


@given(ATTEMPTS, st.text())
def test_a_round_trip_is_what_it_was(attempts, model):
    attempts = [("A goal.", Ask.of("Do it."), "Done.", True), *attempts]
    records = [
        record(f"g{number}", goal_text=goal, asks=[ask], response=response, target=model)
        for number, (goal, ask, response, _) in enumerate(attempts)
    ]
    pairs = list(zip(records, (verdict for *_, verdict in attempts), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, *pairs)
        content, again = json.loads(path.read_text()), read(path)
    pairs.sort(key=lambda pair: pair[1] is None)  # those without a verdict stand last
    for artifact, (kept, verdict) in zip(again, pairs, strict=True):
        assert artifact.ask.ask(target=None) == kept.asks[-1]  # None: ids are ids of the same tokenizer
        assert (artifact.goal, artifact.jailbroken, artifact.model) == (kept.goal_text, verdict, model)
        assert artifact.fits(goals.Goal("another-id", kept.goal_text, "set", True))
    rows = [*content["jailbreaks"], *content["unscored"]]
    assert [row["response"] for row in rows] == [kept.response for kept, _ in pairs]


def test_an_export_holds_no_raw_control_character(tmp_path):
    nasty = "\x1b]0;x\x07 \u202e<script>\u2028\x00"
    path = written(tmp_path, (record("g", goal_text=nasty, response=nasty, asks=[Ask.of(nasty)]), True))
    assert set(path.read_bytes()) - {10} <= set(range(32, 127))
    assert read(path)[0].ask == FileAsk(turns=(("user", nasty),))


# --- what others wrote ------------------------------------------------------------------------------------------------


def test_a_published_file_is_read(tmp_path):
    Layout.model_validate(PUBLISHED)  # so that the next lines are about the published layout
    path = tmp_path / "published.json"
    path.write_text(json.dumps(PUBLISHED))
    first, second = read(path)
    assert first.ask is None and "its prompt is empty" in first.why
    assert second.ask.turns == (("user", PUBLISHED["jailbreaks"][1]["prompt"]),)
    assert (second.attack, second.model, second.jailbroken) == ("PAIR", "vicuna-13b-v1.5", True)
    [goal, _] = goals.load(path)
    assert (goal.text, goal.category) == (PUBLISHED["jailbreaks"][0]["goal"], "Crafts")


def test_a_row_kept_apart_for_want_of_a_verdict_has_none_whatever_it_says(tmp_path):
    path = tmp_path / "artifact.json"
    apart = [{"goal": "x", "jailbroken": verdict} for verdict in (True, False, None)]
    path.write_text(json.dumps(PUBLISHED | {"unscored": apart}))
    assert [artifact.jailbroken for artifact in read(path)] == [False, True, None, None, None]


@pytest.mark.parametrize("load", [read, goals.load], ids=["replay", "goals"])
@pytest.mark.parametrize(
    "content, why",
    [
        (b"{", "can't be read as JSON"),
        (json.dumps(PUBLISHED).encode()[:-400], "can't be read as JSON"),
        (b"\xff\xfe\xfd", "can't be read as JSON"),
        (b"[" * 100_000, "can't be read as JSON"),
        (b'[{"goal": "\\ud800", "prompt": "x"}]', "half of a surrogate pair"),
        (b"{}", "must be a list of rows, or an artifact"),
        (b'{"jailbreaks": {}}', "must be a list of rows, or an artifact"),
        (b'{"jailbreaks": [], "unscored": 3}', "must be a list of rows, or an artifact"),
        (b'{"jailbreaks": [], "unscored": []}', "holds no rows"),
        (b"[]", "holds no rows"),
        (b'"words"', "must be a list of rows, or an artifact"),
        (b"[3]", "row 0 is '3', not an object"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, load, content, why):
    path = tmp_path / "artifact.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why) as error:
        load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "change, why",
    [
        ({"parameters": [1]}, "its parameters are '.1.', not an object"),
        ({"parameters": {"layout": "jailbreakbench 9\n\x1b[31m"}}, r"in the layout 'jailbreakbench 9\\n\\x1b"),
        ({"jailbreaks": [{"goal": "x"}, {"prompt": "x"}]}, "row 1: a row needs goal, id or index"),
        ({"jailbreaks": [{"goal": "x", "prompt": ["y"]}]}, "row 0: prompt: .*string"),
        ({"jailbreaks": [{"goal": ["x"]}]}, "row 0: goal: .*string"),
        ({"jailbreaks": [{"goal": "x", "jailbroken": "perhaps"}]}, "row 0: jailbroken: .*boolean"),
        ({"jailbreaks": [{"goal": "x", "asks": [{"turns": [["assistant", "y"]]}]}]}, "asks.0.*the last one the user's"),
        ({"jailbreaks": [{"goal": "x", "asks": [{"turns": "y"}]}]}, "row 0: asks.0.turns"),
        ({"unscored": [{"goal": 3}]}, "row 2: goal: .*string"),
    ],
)
def test_a_wrong_part_is_one_line(tmp_path, change, why):
    path = tmp_path / "artifact.json"
    path.write_text(json.dumps(PUBLISHED | change))
    with pytest.raises(InputError, match=why) as error:
        read(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_goals_of_an_artifact_are_called_by_the_attack_and_the_model(tmp_path):
    rows = {"jailbreaks": [{"goal": "g", "prompt": "p"}], "parameters": {"method": "pair"}}
    (tmp_path / "base.json").write_text(json.dumps(rows))
    (tmp_path / "plain.json").write_text(json.dumps(rows["jailbreaks"]))
    [goal] = goals.load(tmp_path / "base.json")
    assert goal.source == "pair-base" and list(load_sets([str(tmp_path / "base.json")], None)) == ["pair-base"]
    assert goals.load(tmp_path / "plain.json")[0].source == "plain"
