"""Files of one's own, names that don't exist, samples."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midward.errors import InputError, MissingFile
from midward.goals import Goal, GoalsError, load, says_harm
from midward.goals.loading import sample

# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["goal", "prompt", "behavior", "Goal", "BEHAVIOR"])
def test_the_column_of_goals_is_found(tmp_path, column):
    (tmp_path / "mine.csv").write_text(f"other,{column}\nx,Placeholder one\ny,Placeholder two\n")
    goals = load(tmp_path / "mine.csv")
    assert [(goal.id, goal.text, goal.source, goal.harmful) for goal in goals] == [
        ("mine-0000", "Placeholder one", "mine", True),
        ("mine-0001", "Placeholder two", "mine", True),
    ]


def test_a_request_may_stand_alone_in_a_list(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": [{"role": "user", "content": "Placeholder"}]}\n{"prompt": ["Other"]}\n')
    assert [goal.text for goal in load(path)] == ["Placeholder", "Other"]


def test_or_named(tmp_path):
    (tmp_path / "mine.csv").write_text("goal,question\nPlaceholder goal,Placeholder question\n")
    assert load(tmp_path / "mine.csv", column="question")[0].text == "Placeholder question"
    with pytest.raises(InputError, match=r"no column 'questions'. Did you mean 'question'\? Its columns: goal"):
        load(tmp_path / "mine.csv", column="questions")


def test_the_other_columns_are_read_where_they_are_there(tmp_path):
    rows = [
        {"id": "a", "goal": "Placeholder", "target": "Sure", "context": "Before it", "category": 3, "harmful": False},
        {"id": 7, "goal": "Placeholder", "target": None, "context": "", "harmful": "yes"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(str(path)) == [
        Goal("a", "Placeholder", "mine", False, "Sure", "Before it", "3"),
        Goal("mine-7", "Placeholder", "mine", True),
    ]
    assert load(path)[0].prompt == "Before it\n\n---\n\nPlaceholder"


@pytest.mark.parametrize(
    "given, ids",
    [
        (["1", "", "0001"], ["t-1", "t-row-0001", "t-0001"]),
        (["", "", "x"], ["t-0000", "t-0001", "x"]),
        (["t-7", "7", "t-0002"], ["t-7", "7", "t-0002"]),
    ],
)
def test_made_up_ids_give_way_to_those_given(tmp_path, given, ids):
    path = tmp_path / "t.csv"
    path.write_text("id,goal\n" + "".join(f"{name},Placeholder\n" for name in given))
    assert [goal.id for goal in load(path)] == ids


def test_a_file_without_a_word_of_harm_is_what_it_is_said_to_be(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("goal\nPlaceholder\n")
    assert not says_harm(path) and says_harm("sandbox")
    assert load(path)[0].harmful and not load(path, harmless=True)[0].harmful
    path.write_text("goal,harmful\nPlaceholder,false\nPlaceholder,true\n")
    assert says_harm(path)
    with pytest.raises(GoalsError, match="1 of its 2 requests are harmful ones"):
        load(path, harmless=True)
    with pytest.raises(GoalsError, match="harmful ones"):
        load("sandbox", harmless=True)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.csv", "", "holds no rows"),
        ("t.csv", "text,kind\na,b\n", "has none of the columns goal, prompt, behavior; .* Its columns: text, kind"),
        ("t.csv", "goal\nPlaceholder\n''\n\" \"\n", "row 3: the column 'goal' holds ' ', no text"),
        ("t.jsonl", '{"goal": 3}\n', "row 1: the column 'goal' holds 3, no text"),
        ("t.jsonl", '{"goal": []}\n', "no text"),
        ("t.jsonl", '{"goal": ["a", "b"]}\n', "row 1: the column 'goal' holds a conversation of 2 turns"),
        ("t.csv", "id,goal\na,Placeholder\na,Other\n", "has the id 'a' more than once"),
        ("t.csv", "goal,harmful\nPlaceholder,perhaps\n", "holds 'perhaps', neither true nor false"),
    ],
)
def test_a_bad_file_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / name)


# --- names -----------------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest_and_all_others():
    with pytest.raises(GoalsError, match=r"'advbnch'. Did you mean 'advbench'\? Available: sandbox, .*xstest"):
        load("advbnch")


def test_a_misspelt_file_gets_the_nearest(tmp_path):
    (tmp_path / "goals.csv").touch()
    with pytest.raises(MissingFile, match=r"there is no file .*gaols.csv. Did you mean '.*goals.csv'"):
        load(tmp_path / "gaols.csv")
    for ask in (load, says_harm):
        with pytest.raises(GoalsError, match=r"no set of goals .*goals.cvs'. Did you mean '.*goals.csv'"):
            ask(tmp_path / "goals.cvs")


def test_what_has_no_effect_is_refused():
    with pytest.raises(GoalsError, match="column goes with a file; sandbox is a set"):
        load("sandbox", column="goal")
    for count in (0, -1):
        with pytest.raises(GoalsError, match=f"count must be 1 or more; received {count}"):
            load("sandbox", count=count)


# --- samples ---------------------------------------------------------------------------------------------------

FIRST = ["sandbox-0257", "sandbox-0304", "sandbox-0212", "sandbox-0199"]  # of seed 0, on every machine
GOALS = st.lists(st.integers(0, 999), unique=True, max_size=12).map(
    lambda ids: [Goal(f"t-{number}", "Placeholder", "t", True) for number in ids]
)


@given(GOALS, st.integers(1, 15), st.integers(1, 15), st.integers(0, 3))
def test_a_larger_sample_begins_with_the_smaller(goals, count, more, seed):
    small, large = sample(goals, count, seed), sample(goals, count + more, seed)
    assert small == large[: len(small)] and len(small) == min(count, len(goals))
    assert len(set(large)) == len(large) and set(large) <= set(goals)


@given(GOALS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_a_sample_depends_on_ids_and_seed_alone(goals, random, seed):
    order = sample(goals, len(goals) or 1, seed)
    shuffled = random.sample(goals, len(goals))
    assert sample(shuffled, len(goals) or 1, seed) == order
    kept = [goal for goal in shuffled if random.random() < 0.5]
    assert sample(kept, len(goals) or 1, seed) == [goal for goal in order if goal in kept]


def test_samples_stay_what_they_are_and_differ_by_seed():
    assert [goal.id for goal in load("sandbox", count=4)] == FIRST
    assert [goal.id for goal in load("sandbox", count=4, seed=1)] != FIRST
    assert len(load("sandbox", count=10_000)) == 500
    assert [goal.id for goal in load("sandbox")][:2] == ["sandbox-0000", "sandbox-0001"]
