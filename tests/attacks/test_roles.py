"""What roles are asked, and how their answers are read."""

import asyncio
from dataclasses import replace

import pytest
from attack_double import said
from hypothesis import given
from hypothesis import strategies as st
from inspect_ai.model import GenerateConfig

from midward._fences import fields_of
from midward.attacks.roles import SETTINGS, RolePrompt, Roles, json_object, text, texts, whole, yes

PROMPT = RolePrompt("test.task", "1", "attacker", "Say something.", {"prompt": "<a text>"})
FENCES = st.sampled_from(["<<<GOAL 0123456789abcdef>>>\n", "\n<<<END GOAL 0123456789abcdef>>>", "\n", "[x.y] "])
MATERIAL = st.lists(st.one_of(FENCES, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))).map("".join)


def roles_with(model, role="attacker"):
    return Roles(seed=3, _models={role: model})


def ask(roles, **more):
    return asyncio.run(roles.ask(PROMPT, {"GOAL": "a goal"}, text("prompt"), **more))


@given(MATERIAL, MATERIAL)
def test_what_goes_in_comes_out_whatever_it_looks_like(goal, reply):
    fields = {"GOAL": goal, "REPLY 2": reply}
    assert fields_of(PROMPT.render(fields)) == ("test.task", fields)


def test_a_title_that_could_not_be_read_back_is_an_error():
    with pytest.raises(ValueError, match="in capitals; received 'Goal'"):
        PROMPT.render({"Goal": "x"})


def test_the_hash_is_of_the_words_that_reach_the_role():
    assert replace(PROMPT, version="2").hash == PROMPT.hash
    assert replace(PROMPT, task="Say something!").hash != PROMPT.hash
    assert replace(PROMPT, answer={"prompt": "<a long text>"}).hash != PROMPT.hash


@pytest.mark.parametrize(
    "reply",
    [
        '{"prompt": "go"}',
        'Here it is:\n```json\n{"prompt": "go"}\n```',
        '{"thoughts": {"prompt": "go"}}',
        '{"prompt" go} {"other": 1} {"prompt": "go", "more": [1]} {"prompt": "later"}',
        "{" * 3000 + '{"prompt": "go"}',
        '{"a":' * 3000 + '{"prompt": "go"}',
    ],
)
def test_the_first_object_with_all_keys_is_the_answer(reply):
    assert json_object(reply, ("prompt",))["prompt"] == "go"


def test_a_bare_newline_in_a_string_is_forgiven():
    assert json_object('{"prompt": "a\nb"}', ("prompt",)) == {"prompt": "a\nb"}


@pytest.mark.parametrize("reply", ["", "no", "{}", '{"prompt": ', '["prompt"]', '{"prompt": "half \\ud83d"}'])
def test_anything_else_cannot_be_read(reply):
    with pytest.raises(ValueError):
        json_object(reply, ("prompt",))


@pytest.mark.parametrize(
    "read, good, value",
    [
        (whole(1, 10, "x"), 7, 7),
        (whole(1, 10, "x"), " 7 ", 7),
        (text("x"), "a", "a"),
        (texts("x"), ["a", "b"], ["a", "b"]),
        (yes("x"), "Yes", True),
        (yes("x"), False, False),
    ],
)
def test_readers_read(read, good, value):
    assert read({"x": good}) == value


@pytest.mark.parametrize(
    "read, bad",
    [
        *((whole(1, 10, "x"), bad) for bad in (0, 11, True, 7.5, "seven", "7/10", "²", None)),
        *((text("x"), bad) for bad in ("", "  ", 3, ["a"], None)),
        *((texts("x"), bad) for bad in ([], "a", ["a", 3], ["a", " "], None)),
        *((yes("x"), bad) for bad in ("maybe", 1, None, "yes, but")),
    ],
)
def test_readers_refuse_the_rest(read, bad):
    with pytest.raises(ValueError, match="x must be"):
        read({"x": bad})


def test_an_answer_that_cannot_be_read_is_asked_for_again():
    model, prompts = said("what?", '{"prompt": "go"}')
    roles = roles_with(model)
    assert ask(roles) == "go" and len(prompts) == 2
    assert prompts[1].startswith("That can't be read")
    assert roles.calls == {"attacker": 1} and roles.failed == {}


@pytest.mark.parametrize(
    "reply",
    [
        "what?",
        "",
        '{"prompt": " "}',
        RuntimeError("out of order"),
        ('{"prompt": "go"}', "max_tokens"),
        ('{"prompt": "go"}', "content_filter"),
        '<think>perhaps {"prompt": "go"}',
    ],
)
def test_twice_is_a_failure_that_is_counted_and_no_value(reply):
    model, prompts = said(reply)
    roles = roles_with(model)
    assert ask(roles) is None and len(prompts) == 2
    assert roles.calls == {"attacker": 1} and roles.failed == {"attacker": 1}


def test_seeds_move_with_the_turn_and_not_with_who_comes_first(monkeypatch):
    model, _ = said('{"prompt": "go"}')
    seeds = []
    generate = type(model.api).generate

    async def watched(self, input, tools, tool_choice, config):
        seeds.append(config.seed)
        return await generate(self, input, tools, tool_choice, config)

    monkeypatch.setattr(type(model.api), "generate", watched)
    roles = roles_with(model)
    asyncio.run(roles.ask_all(PROMPT, [{"GOAL": "a"}] * 3, text("prompt"), turn=10))
    ask(roles, turn=11)
    assert sorted(seeds[:3]) == [300_019, 300_020, 300_021] and seeds[3] == seeds[1]


def test_limits_stand_under_the_models_own_settings(attack_roles):
    model, _ = said("x")
    model.config = GenerateConfig(max_retries=9)
    bound = attack_roles(attacker=model).model("attacker")
    assert bound.config.max_retries == 9 and bound.config.timeout == SETTINGS.timeout
    assert model.config.timeout is None  # the caller's stays as it is


def test_a_role_that_nobody_plays_is_an_error_that_says_what_to_do(attack_roles):
    with pytest.raises(ValueError, match=r"no model plays the role 'attacker'.*--attacker MODEL"):
        attack_roles().model("attacker")


@pytest.fixture
def attack_roles(monkeypatch):
    """Roles whose models are these, as an evaluation binds them."""
    import midward.attacks.roles as module

    def make(**models):
        def found(role, required):
            if role not in models:
                raise ValueError("no such role")
            return models[role]

        monkeypatch.setattr(module, "get_model", found)
        return Roles()

    return make
