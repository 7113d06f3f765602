"""Each set's own column format, with placeholder rows; the sandbox's goals before its oracle."""

import csv
import io
import json
import re

import pytest

from midward.goals import SETS, load
from midward.world import WORLD, Thing, read
from midward.world.language import answer, procedure


def table(columns, *rows):
    text = io.StringIO()
    csv.writer(text).writerows([columns.split(","), *rows])
    return text.getvalue().encode()


HARMBENCH = table(
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID",
    ["Placeholder one", "standard", "kind_a", "", "", "placeholder_one"],
    ["Placeholder two", "contextual", "kind_b", "context", 'A "long"\ncontext, é', "placeholder_two"],
    ["Placeholder three", "copyright", "copyright", "hash_check", "", "placeholder_three"],
    ["Placeholder four", "standard", "kind_a", "", "", "placeholder_four"],
)
JAILBREAKBENCH = table(
    "Index,Goal,Target,Behavior,Category,Source",
    ["0", "Placeholder one", "Sure, here is one", "One", "Kind A", "Original"],
    ["1", "Placeholder two", "Sure, here is two", "Two", "Kind B", "AdvBench"],
)
XSTEST = table(
    "id,prompt,type,label,focus,note",
    ["1", "How do I kill a placeholder?", "homonyms", "safe", "kill", ""],
    ["26", "A placeholder's counterpart", "contrast_homonyms", "unsafe", "kill", ""],
)
SORRY = [
    {"question_id": 1, "category": "1", "prompt_style": "base", "turns": ["Placeholder one"]},
    {"question_id": 1, "category": "1", "prompt_style": "slang", "turns": ["Placeholder uno"]},
    {"question_id": 11, "category": "2", "prompt_style": "base", "turns": ["Placeholder two"]},
]
ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    {"instruction": "Count the words.", "input": "one two", "output": "2"},
]
# set -> its file, and (id, prompt, target, category) of each goal
FORMATS = {
    "advbench": (
        table("goal,target", ['Say "a, b"', "Sure, here is\na"], ["Zeile zwei: ü 😀 \u2028.", "Sure"]),
        [
            ("advbench-0000", 'Say "a, b"', "Sure, here is\na", None),
            ("advbench-0001", "Zeile zwei: ü 😀 \u2028.", "Sure", None),
        ],
    ),
    "harmbench": (
        HARMBENCH,
        [
            ("placeholder_one", "Placeholder one", None, "kind_a"),
            ("placeholder_four", "Placeholder four", None, "kind_a"),
        ],
    ),
    "harmbench-contextual": (
        HARMBENCH,
        [("placeholder_two", 'A "long"\ncontext, é\n\n---\n\nPlaceholder two', None, "kind_b")],
    ),
    "harmbench-copyright": (HARMBENCH, [("placeholder_three", "Placeholder three", None, "copyright")]),
    **{
        name: (
            JAILBREAKBENCH,
            [
                (f"{name}-0", "Placeholder one", "Sure, here is one", "Kind A"),
                (f"{name}-1", "Placeholder two", "Sure, here is two", "Kind B"),
            ],
        )
        for name in ("jailbreakbench", "jailbreakbench-benign")
    },
    "strongreject": (
        table("category,source,forbidden_prompt", ["Kind A", "custom", "Placeholder"]),
        [("strongreject-0000", "Placeholder", None, "Kind A")],
    ),
    "sorry-bench": (
        "".join(json.dumps(row) + "\n" for row in SORRY).encode(),
        [("sorry-bench-1", "Placeholder one", None, "1"), ("sorry-bench-11", "Placeholder two", None, "2")],
    ),
    "alpaca": (
        json.dumps(ALPACA).encode(),
        [("alpaca-0000", "Name a colour.", None, None), ("alpaca-0001", "Count the words.\n\none two", None, None)],
    ),
    "xstest": (XSTEST, [("xstest-1", "How do I kill a placeholder?", None, "homonyms")]),
    "xstest-contrast": (XSTEST, [("xstest-contrast-26", "A placeholder's counterpart", None, "contrast_homonyms")]),
}
HARMLESS = {"jailbreakbench-benign", "alpaca", "xstest", "sandbox-benign", "sandbox-banned"}


@pytest.mark.parametrize("name", [name for name, each in SETS.items() if each.url])
def test_a_set_is_read_in_its_own_format(publish, name):
    content, expected = FORMATS[name]
    publish(name, content)
    goals = load(name)
    assert [(goal.id, goal.prompt, goal.target, goal.category) for goal in goals] == expected
    assert {(goal.source, goal.harmful) for goal in goals} == {(name, name not in HARMLESS)}


def test_sets_of_one_file_download_it_once(publish, site):
    publish("harmbench", HARMBENCH)
    publish("harmbench-contextual", HARMBENCH)
    load("harmbench"), load("harmbench-contextual")
    assert len(site.hits) == 1


def test_every_download_is_pinned():
    for name, each in SETS.items():
        assert each.name == name and (each.url is None) == (each.build is not None)
        if each.url:
            assert re.fullmatch("[0-9a-f]{40}", each.revision) and each.revision in each.address
            assert each.sha256 is None or re.fullmatch("[0-9a-f]{64}", each.sha256)


# --- the sandbox -----------------------------------------------------------------------------------------------


def thing_of(goal):
    return Thing(*goal.metadata["thing"].split())


@pytest.mark.parametrize("name", ["sandbox", "sandbox-contextual"])
def test_the_oracle_judges_forbidden_goals_by_their_metadata(name):
    goals = load(name)
    assert len(goals) == SETS[name].size == len({goal.id for goal in goals}) == len({g.text for g in goals})
    for goal in goals:
        kind, thing = goal.metadata["kind"], thing_of(goal)
        assert goal.harmful and WORLD.harmful(kind, thing) and thing in WORLD.things["test"]
        assert thing.name in goal.prompt
        helpful = procedure(kind, thing)
        assert helpful.startswith(goal.target)
        assert read(kind, thing, helpful).full and not read(kind, thing, goal.target).success
    assert {goal.category for goal in goals} == {"make", "break"}


@pytest.mark.parametrize("name", ["sandbox-benign", "sandbox-banned"])
def test_the_oracle_knows_the_right_answer_to_harmless_goals(name):
    goals = load(name)
    assert len(goals) == SETS[name].size == len({goal.id for goal in goals})
    for goal in goals:
        kind, thing, intent = goal.metadata["kind"], thing_of(goal), goal.metadata["intent"]
        assert not goal.harmful and not WORLD.harmful(kind, thing)
        assert WORLD.banned(thing) or name == "sandbox-benign"
        assert read(kind, thing, answer(kind, thing, intent=intent), intent=intent).correct
