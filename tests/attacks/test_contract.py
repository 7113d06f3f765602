"""The target, the record, and what every attack can rely on."""

import asyncio

import anyio
import pytest
from attack_double import CANARY, REFUSAL, Double, Stub, said
from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
from inspect_ai.solver._task_state import sample_state
from inspect_ai.util import LimitExceededError, collect

from midward.attacks import ATTACKS, Ask, AttackInfo, BudgetSpent, Capability, CapabilityError, Target, find, solver_of
from midward.attacks.direct import DIRECT, Direct
from midward.attacks.profiles import PROFILES
from midward.attacks.roles import SCORE, Roles, whole
from midward.attacks.taxonomy import VERSIONS, by_taxonomy, ids
from midward.errors import InputError
from midward.sampling import Ban, Forced
from midward.sampling.likelihood import Span
from midward.serving.assistant import AssistantAPI
from midward.world.players import PLAYERS

CHAT_ONLY = frozenset({Capability.CHAT, Capability.HIST})


def own(rule=lambda seen: CANARY, **more):
    return Double(rule, **more)


def put(target, *asks, n=1):
    return asyncio.run(target.respond(*asks, n=n))


def info_of(search, **more):
    about = dict(
        name="mine",
        version="1",
        about="",
        citation="",
        needs=(),
        roles=(),
        settings=Direct,
        calls=lambda settings: {"target": 10},
        search=search,
    )
    return AttackInfo(**{**about, **more})


# --- capabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask, lacking, instead",
    [
        (Ask.of("a", forced=(Forced(0, (7,)),)), "POS", "a model that this process loads"),
        (Ask.of("a", bans=(Ban((7,)),)), "BAN", "a model that this process loads"),
        (Ask.of("a", fill="fill_only"), "PMASK", "masks=allow"),
    ],
)
def test_what_the_target_lacks_is_an_error_that_names_it(ask, lacking, instead):
    target = Target(said("x")[0])
    with pytest.raises(CapabilityError) as error:
        put(target, ask)
    assert f"the capability {lacking}, which mockllm/model lacks" in str(error.value)
    assert "CHAT" in str(error.value) and instead in str(error.value)
    assert target.queries["respond"] == 0


def test_fabricated_turns_and_samples_are_capabilities_too():
    target = Target(own(caps=frozenset({Capability.CHAT})).as_model())
    with pytest.raises(CapabilityError, match="HIST"):
        put(target, Ask((("user", "a"), ("assistant", "b"), ("user", "c"))))
    with pytest.raises(CapabilityError, match="capability N,"):
        put(target, Ask.of("a"), n=2)


def test_an_attack_is_refused_before_it_begins(attack):
    info = info_of(None, name="grabby", needs=(Capability.CHAT, Capability.GRAD))
    message = attack(info, own(caps=CHAT_ONLY), error=True)
    assert "the attack 'grabby' needs the capability GRAD" in message


def test_reading_tokens_is_no_capability_used():
    target = Target(own(language_model=Stub(), caps=frozenset({Capability.CHAT, Capability.SLP})).as_model())
    assert target.tokens("ab c") == (2, 1) and target.length == 64 and target.encode((("user", "a"),)) == [1, 97]
    assert target.used == set()


def test_the_record_says_what_was_used(attack):
    async def search(attempt, settings):
        await attempt.target.respond(Ask.of("a", forced=(Forced(3, (4,)),)), n=2)
        attempt.offer(*await attempt.target.respond(Ask.of("b", system="Be kind.")))

    record, _ = attack(info_of(search), own(language_model=Stub()))
    assert record["capabilities"] == ["CHAT", "N", "POS", "SYS"]


# --- system turns --------------------------------------------------------------------------------------------

SYSTEM = (("system", "one"), ("user", "two"), ("assistant", "three"), ("system", "four"), ("user", "five"))
FOLDED = [("user", "one\n\ntwo"), ("assistant", "three"), ("user", "four\n\nfive")]


def test_system_turns_go_into_the_user_turns_behind_them_where_there_are_none():
    api = own(caps=CHAT_ONLY)
    target = Target(api.as_model())
    [reply] = put(target, Ask(SYSTEM))
    assert api.seen[0].turns == FOLDED == list(reply.ask.turns)
    assert "SYS-folded" in target.used and "SYS" not in target.used


@pytest.mark.parametrize("system, folded", [(("head", "inner"), False), (("head",), True), (("head", "raise"), True)])
def test_system_turns_in_the_middle_are_folded_where_the_template_loses_them(system, folded):
    api = own(language_model=Stub(system))
    target = Target(api.as_model())
    put(target, Ask(SYSTEM), Ask.of("two", system="one"))
    assert api.seen[0].turns == (FOLDED if folded else list(SYSTEM))
    assert api.seen[1].turns == [("system", "one"), ("user", "two")]
    assert ("SYS-folded" in target.used) == folded


@pytest.mark.parametrize("turns", [(), (("user", "a"), ("assistant", "b")), (("tool", "a"), ("user", "b"))])
def test_turns_that_cannot_be_put_are_an_error(turns):
    with pytest.raises(ValueError, match="the last one the user's; received"):
        Ask(turns)


# --- budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget, n, seeds", [(2, 1, {"a": [0], "b": [0]}), (5, 2, {"a": [0, 1], "b": [0, 1], "c": [0]})]
)
def test_the_first_requests_are_answered_where_the_budget_does_not_suffice(budget, n, seeds):
    api = own(lambda seen: seen.prompt)
    target = Target(api.as_model(), budget=budget)
    replies = put(target, Ask.of("a"), Ask.of("b"), Ask.of("c"), n=n)
    assert [reply.text for reply in replies] == [name for name in seeds for _ in seeds[name]]
    assert [reply.ask.seed for reply in replies] == [seed for name in seeds for seed in seeds[name]]
    assert target.left == 0 and len(api.seen) == budget
    with pytest.raises(BudgetSpent):
        put(target, Ask.of("d"))


def test_scores_count_in_the_same_budget():
    api = own(language_model=Stub(), score_rule=lambda span: -1.0)
    target = Target(api.as_model(), budget=3)
    put(target, Ask.of("a"))
    spans = [Span("a", position, (7,)) for position in range(5)]
    scores = asyncio.run(target.score(*spans))
    assert len(scores) == 2 == len(api.spans) and target.queries == {"respond": 1, "score": 2, "gradient": 0}
    with pytest.raises(BudgetSpent):
        asyncio.run(target.score(spans[0]))


def test_a_spent_budget_ends_the_search_and_keeps_the_best(attack):
    async def search(attempt, settings):
        for number in range(9):
            attempt.offer(*await attempt.target.respond(Ask.of(f"try {number}")), score=min(number, 2))

    api = own(lambda seen: seen.prompt)
    record, sample = attack(info_of(search), api, budget=4)
    assert record["spent"] and record["budget"] == 4 and record["tried"] == 4
    assert sample.store["texts"]["reply"] == "try 2" == record["response"]  # the first of equals
    assert len(api.seen) == 5  # and the replay


def test_several_that_find_the_budget_spent_at_once_are_one_end(attack):
    async def search(attempt, settings):
        attempt.offer(*await attempt.target.respond(Ask.of("a")))
        await collect(*(attempt.target.respond(Ask.of("b")) for _ in range(3)))

    record, _ = attack(info_of(search), own(), budget=1)
    assert record["spent"] and record["response"] == CANARY


def test_a_budget_below_one_is_an_error():
    with pytest.raises(ValueError, match="direct: budget must be 1 or more queries; received 0"):
        solver_of(DIRECT)(budget=0)


# --- replies -------------------------------------------------------------------------------------------------


def test_all_requests_are_under_way_at_once():
    api = own()
    put(Target(api.as_model()), *(Ask.of(f"{number}") for number in range(7)))
    assert api.most_in_flight == 7


@pytest.mark.parametrize("served", [False, True])
def test_samples_have_seeds_in_a_row_and_say_which(served):
    if served:
        model, _ = said("x")
    else:
        model = own().as_model()
    replies = put(Target(model, seed=5), Ask.of("a"), Ask.of("b", seed=40), n=3)
    assert [reply.ask.seed for reply in replies] == [5, 6, 7, 40, 41, 42]


def test_a_served_model_that_says_nothing_is_an_error_and_not_a_harmless_answer(attack):
    model, prompts = said("  ")
    message = attack("direct", model, error=True)
    assert "mockllm/model sent an empty reply twice" in message and len(prompts) == 2


def test_a_served_model_gets_a_second_chance(attack):
    model, _ = said("", "fine")
    record, _ = attack("direct", model)
    assert record["response"] == "fine" and record["queries"]["respond"] == 1


def test_a_model_of_this_process_may_say_nothing(attack):
    record, sample = attack("direct", own(lambda seen: ""))
    assert record["response"] == "" == sample.store["texts"]["reply"]


def configs_of(model):
    """The settings of every call to this model."""
    seen = []
    generate = model.api.generate

    async def watched(input, tools, tool_choice, config):
        seen.append(config)
        return await generate(input, tools, tool_choice, config)

    model.api.generate = watched
    return seen


def test_only_a_served_model_has_limits_of_time():
    local, served = own().as_model(), said("x")[0]
    seen, sent = configs_of(local), configs_of(served)
    put(Target(local), Ask.of("a"))
    served.config = GenerateConfig(timeout=7)
    put(Target(served), Ask.of("a"))
    assert seen[0].timeout is None and seen[0].attempt_timeout is None
    assert sent[0].timeout == 7 and sent[0].attempt_timeout and sent[0].max_retries


def test_what_an_attack_forces_leaves_the_models_other_settings():
    model = own(language_model=Stub()).as_model()
    model.config = GenerateConfig(max_tokens=40, extra_body={"sampling": {"steps": 9}})
    seen = configs_of(model)
    target = Target(model)
    put(target, Ask.of("a", forced=(Forced(1, (4,)),)))
    assert seen[0].extra_body == {"sampling": {"steps": 9}, "forced": [{"position": 1, "ids": [4]}]}
    assert seen[0].max_tokens == 40 == target.length


# --- the record ----------------------------------------------------------------------------------------------


def test_the_record_holds_what_is_needed_to_put_it_again(attack):
    async def search(attempt, settings):
        [reply] = await attempt.target.respond(Ask.of("again", system="s", bans=(Ban((4, 5), 2),)))
        attempt.facts["middle"] = {"landed": False}
        attempt.offer(reply, score=3, depth=1)

    record, sample = attack(info_of(search, version="7"), own(), seed=11)
    assert record["attack"] == "mine" and record["version"] == "7" and record["goal"] == "goal-1"
    assert record["goal_text"] == "Make a drex valm skorn." and record["source"] == "test"
    assert record["response"] == CANARY and record["score"] == 3 and record["scored"]
    assert record["note"] == {"depth": 1} and record["middle"] == {"landed": False}
    [ask] = record["asks"]
    assert ask["turns"] == [["system", "s"], ["user", "again"]] and ask["seed"] == 11
    assert ask["bans"] == [{"position": 2, "ids": [4, 5]}]
    assert [message.text for message in sample.messages] == ["s", "again", CANARY]


def test_the_replay_puts_the_same_with_fresh_seeds_and_outside_the_budget(attack):
    async def search(attempt, settings):
        history = (("user", "a"), ("assistant", "b"), ("user", "c"))
        attempt.offer(*await attempt.target.respond(Ask(history, (Forced(2, (1,)),), seed=4)))

    api = own(lambda seen: f"seed {seen.seed}", language_model=Stub())
    record, sample = attack(info_of(search), api, budget=1)
    first, again = api.seen
    assert (first.turns, first.forced) == (again.turns, again.forced) and first.seed == 4 != again.seed
    assert sample.store["texts"]["reply"] == "seed 4" and sample.store["texts"]["replay"] == f"seed {again.seed}"
    assert record["queries"]["respond"] == 1 and not record["spent"]


def test_what_is_put_together_is_put_together_anew(attack):
    async def search(attempt, settings):
        replies = await attempt.target.respond(Ask.of("a"), Ask.of("b"))

        async def compose(texts):
            return None if settings_fail else "+".join(texts)

        attempt.offer(*replies, text="joined", compose=compose)

    settings_fail = False
    record, sample = attack(info_of(search), own(lambda seen: seen.prompt))
    assert record["composite"] and len(record["asks"]) == 2
    assert sample.store["texts"] == {"reply": "joined", "authored": "joined", "replay": "a+b"}
    settings_fail = True
    _, sample = attack(info_of(search), own(lambda seen: seen.prompt))
    assert sample.store["texts"]["replay"] is None  # couldn't be made: unscored


def test_a_sample_in_which_nothing_was_tried_is_unscored(attack):
    async def search(attempt, settings):
        pass

    record, sample = attack(info_of(search), own())
    assert sample.store["texts"] == {"reply": None} and record["response"] is None and not record["scored"]


def test_an_unscored_offer_counts_less_than_any_score(attack):
    async def search(attempt, settings):
        replies = await attempt.target.respond(Ask.of("a"), Ask.of("b"), Ask.of("c"))
        for reply, score in zip(replies, (None, 1, None), strict=True):
            attempt.offer(reply, score=score)

    record, _ = attack(info_of(search), own(lambda seen: seen.prompt))
    assert record["response"] == "b" and record["tried"] == 3


def test_the_in_loop_score_is_never_made_up(attack):
    async def search(attempt, settings):
        attempt.facts["scores"] = await attempt.score_texts("fine", "", "odd")

    scorer, prompts = said(lambda prompt: '{"score": 8}' if "fine" in prompt else "who knows")
    record, _ = attack(info_of(search), own(), roles={"scorer": scorer})
    assert record["scores"] == [8, 1, None]
    assert record["calls"] == {"scorer": 2} and record["failed"] == {"scorer": 1} and len(prompts) == 3


def test_a_limit_of_the_sample_leaves_what_was_found_until_then(attack):
    def rule(seen):
        if seen.prompt == "c":
            raise LimitExceededError("token", value=3, limit=2)
        return seen.prompt

    async def search(attempt, settings):
        for prompt in "abc":
            attempt.offer(*await attempt.target.respond(Ask.of(prompt)), score=ord(prompt))

    record, sample = attack(info_of(search), own(rule))
    assert sample.limit.type == "token" and record["response"] == "b" and record["queries"]["respond"] == 3
    assert sample.store["texts"] == {"reply": "b", "authored": "b", "replay": None}


def test_many_that_fail_at_once_are_one_readable_error(attack):
    gone = anyio.Event()

    class Gone(Double):
        async def generate(self, input, tools, tool_choice, config):
            self.seen.append(input)
            if len(self.seen) == 3:
                gone.set()
            await gone.wait()
            raise RuntimeError("the batch failed")

    async def search(attempt, settings):
        await attempt.target.respond(Ask.of("a"), Ask.of("b"), Ask.of("c"))

    assert attack(info_of(search), Gone(None), error=True) == "RuntimeError('the batch failed')"


def test_a_limit_before_the_replay_leaves_it_unscored(attack):
    def rule(seen):
        if seen.seed:
            raise LimitExceededError("token", value=3, limit=2)
        return CANARY

    record, sample = attack("direct", own(rule))
    assert sample.limit and sample.store["texts"] == {"reply": CANARY, "authored": CANARY, "replay": None}
    assert record["response"] == CANARY


@pytest.mark.parametrize("tried", [False, True])
def test_another_error_is_the_samples_and_leaves_no_result(attack, tried):
    samples = []

    async def search(attempt, settings):
        if tried:
            attempt.offer(*await attempt.target.respond(Ask.of("a")))
        samples.append(sample_state())
        raise RuntimeError("broken search")

    assert "broken search" in attack(info_of(search), own(), error=True)
    assert "attempt" not in samples[0].store and "texts" not in samples[0].store


# --- the scripted assistant ----------------------------------------------------------------------------------


def test_the_assistant_is_a_chat_model_of_inspect():
    model = get_model("midward/sandbox-assistant")
    roles = Roles(_models={"scorer": model})
    fields = {"GOAL": "Make a drex valm skorn.", "REPLY": CANARY}
    assert asyncio.run(roles.ask(SCORE, fields, whole(1, 10, "score"))) == 6
    assert asyncio.run(roles.ask(SCORE, fields | {"REPLY": REFUSAL}, whole(1, 10, "score"))) == 1


def test_the_assistant_says_so_when_it_cannot_play_a_prompt():
    prompt = find("tap").prompts[0].render({"GOAL": "x"}).replace("[tap.", "[elsewhere.")
    with pytest.raises(ValueError, match="can't play 'elsewhere"):
        asyncio.run(AssistantAPI().generate([ChatMessageUser(content=prompt)], [], "none", GenerateConfig()))


def test_every_role_prompt_has_a_name_of_its_own_and_can_be_played_offline():
    prompts = {id(prompt): prompt for info in ATTACKS.values() for prompt in info.prompts}.values()
    assert len({prompt.name for prompt in prompts}) == len(prompts)
    assert {prompt.name for prompt in prompts} <= PLAYERS.keys()


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_states_its_costs_for_every_profile(name):
    info = ATTACKS[name]
    for settings in ({}, *(profile.settings_of(info) for profile in PROFILES.values())):
        calls = info.calls(info.configure(settings))
        assert calls["target"] >= 1 and set(calls) == {"target", *info.roles}, name
    assert all(prompt.role in info.roles for prompt in info.prompts)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stands_in_each_taxonomy(name):
    stand = by_taxonomy(ATTACKS[name].taxonomy)
    assert stand.keys() == VERSIONS.keys() and all(stand.values())


def test_an_entry_has_an_id_and_a_name_and_an_attack_may_have_none():
    assert not any(by_taxonomy(info_of(None).taxonomy).values())
    for entry in (
        "LLM01:2025",
        "LLM1:2025 Prompt Injection",
        "AML.T54 LLM Jailbreak",
        "S0403 Example",
        "jailbreak",
        "",
    ):
        with pytest.raises(InputError, match="give an id and its name"):
            by_taxonomy([entry])
    assert ids(["LLM01:2025 Prompt Injection", "AML.T0051.000 Direct", "S0403: Adversarial Example"]) == [
        "LLM01:2025",
        "AML.T0051.000",
        "S0403",
    ]


def test_the_hash_is_of_version_settings_and_words():
    info = find("pair")
    plain = info.hash(info.configure({}))
    assert plain == info.hash(info.configure({"streams": 30})) != info.hash(info.configure({"streams": 29}))
    assert find("tap").hash(find("tap").configure({})) != plain


@pytest.mark.parametrize(
    "settings, why",
    [({"stream": 3}, "pair has no setting 'stream'. Did you mean 'streams'"), ({"streams": 0}, "received 0")],
)
def test_wrong_settings_are_an_error_before_anything_runs(settings, why):
    with pytest.raises(ValueError, match=why):
        solver_of(find("pair"))(**settings)
