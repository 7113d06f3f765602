"""PAL and RAL: a linear target that only scores, and a proxy that shares half of its weights."""

import json
import random

import pytest
from attack_double import REFUSAL, Double, said

ONE = said(json.dumps({"score": 1}))[0]
SMALL = {"tokens": 6, "steps": 8, "put": 4, "look": 8}
LED = {**SMALL, "batch": 24, "top": 96}


class Linear(Double):
    """The wanted text's log-probability is a sum of weights over the prompt's tokens, divided by ten."""

    def __init__(self, sandbox, weights, **more):
        super().__init__(
            lambda seen: REFUSAL, lambda span: -40 + self.sum(span.prompt) / 10, language_model=sandbox, **more
        )
        self.weights = weights
        self.slots = []

    def sum(self, ids):
        return sum(self.weights[token] for token in ids)

    async def gradient(self, span, slots, *, length, drafts=((),)):
        import torch

        self.slots.append((tuple(self.language_model.encode(span.prompt)), tuple(slots)))
        return -torch.tensor(self.weights).repeat(len(slots), 1)


@pytest.fixture(scope="module")
def pair(sandbox):
    """Weights of the target, and of a proxy that knows every other one."""
    rng = random.Random(4)
    weights = [rng.choice([0.0, 0.0, 0.0, 1.0, 3.0]) for _ in range(sandbox.vocab_size)]
    return weights, [weight if i % 2 else 0.0 for i, weight in enumerate(weights)]


def search(attack, api, proxy=None, name="pal", **settings):
    roles = {"scorer": ONE} | ({"proxy": proxy.as_model()} if proxy else {})
    chosen = {**(LED if name == "pal" else SMALL), **settings}
    return attack(name, api, roles=roles, metadata={"target": "Sure, here."}, **chosen)


def best_of(api):
    return max(-40 + api.sum(span.prompt) / 10 for span in api.spans)


def test_the_proxy_leads_to_what_chance_does_not(attack, sandbox, pair):
    led, random_one = Linear(sandbox, pair[0]), Linear(sandbox, pair[0])
    record, _ = search(attack, led, Linear(sandbox, pair[1]))
    other, _ = search(attack, random_one, name="ral")
    for queries in (record["queries"], other["queries"]):
        assert 30 <= queries["score"] <= 1 + 8 * 4  # of what is drawn some is read as other tokens, and not asked
        assert (queries["respond"], queries["gradient"]) == (1, 0)
    start = -40 + led.sum(led.spans[0].prompt) / 10
    assert best_of(led) >= start + 1.2  # of six swaps at most 1.8
    assert record["note"]["loss"] == pytest.approx(-best_of(led))
    assert best_of(led) > best_of(random_one) > start
    assert 8 * 20 <= record["calls"]["proxy"] <= 8 * 25 and "proxy" not in other["calls"]


def test_the_gradient_is_taken_at_the_suffix(attack, sandbox, pair):
    proxy = Linear(sandbox, pair[1])
    search(attack, Linear(sandbox, pair[0]), proxy)
    assert len(proxy.slots) == 8
    for prompt, slots in proxy.slots:
        text = sandbox.tokenizer.decode(list(prompt))
        suffix = sandbox.tokenizer.decode([prompt[slot] for slot in slots])
        assert len(slots) == 6 and f"drex valm skorn. {suffix}<|eot" in text


def test_every_suffix_is_read_back_as_it_is_and_put_once(attack, sandbox, pair):
    api, proxy = Linear(sandbox, pair[0]), Linear(sandbox, pair[1])
    search(attack, api, proxy)
    prompts = [tuple(span.prompt) for span in api.spans]
    assert len(prompts) == len(set(prompts)) == 1 + 8 * 4
    assert {len(span.prompt) for span in (*proxy.spans, *api.spans)} == {len(prompts[0])}


def test_the_best_few_of_several_steps_wait_for_the_target(attack, sandbox, pair):
    api, proxy = Linear(sandbox, pair[0]), Linear(sandbox, pair[1])
    record, _ = search(attack, api, proxy, period=4)
    assert record["queries"]["score"] == 1 + 2 * 4
    shown = [proxy.sum(span.prompt) for span in proxy.spans[: 4 * 24]]
    put = [proxy.sum(span.prompt) for span in api.spans[1:5]]
    assert sorted(put, reverse=True) == sorted(shown, reverse=True)[:4]


def test_only_a_new_best_suffix_is_asked_with(attack, sandbox):
    api = Linear(sandbox, [0.0] * sandbox.vocab_size)
    record, _ = search(attack, api, name="ral", look=1)
    assert record["queries"]["respond"] == 1


@pytest.mark.parametrize("name", ["pal", "ral"])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 20])
def test_the_budget_is_never_exceeded_and_leaves_a_reply(attack, sandbox, pair, name, budget):
    api = Linear(sandbox, pair[0])
    record, sample = search(attack, api, Linear(sandbox, pair[1]), name, budget=budget)
    assert sum(record["queries"].values()) <= budget
    assert (sample.store["texts"]["reply"] is not None) == (budget > 1)


def test_the_target_needs_no_gradient_and_the_proxy_has_no_budget(attack, sandbox, pair):
    proxy = Linear(sandbox, pair[1])
    record, _ = search(attack, Linear(sandbox, pair[0], caps=frozenset({"CHAT", "SLP"})), proxy, budget=5, steps=1)
    assert record["capabilities"] == ["CHAT", "SLP"] and len(proxy.spans) == 24


def test_a_served_proxy_is_an_error_that_says_what_to_use(attack, sandbox, pair):
    message = attack("pal", Linear(sandbox, pair[0]), roles={"proxy": said("x")[0]}, error=True)
    assert "the proxy mockllm/model isn't run by this process" in message and "midward/<model>" in message


@pytest.mark.parametrize(("position", "text"), [(0, "Sure, here."), (30, " Step 4:")])
def test_what_is_made_probable_and_where(attack, sandbox, pair, position, text):
    api = Linear(sandbox, pair[0])
    search(attack, api, name="ral", position=position, steps=1)
    assert {(span.position, sandbox.tokenizer.decode(list(span.ids))) for span in api.spans} == {(position, text)}
