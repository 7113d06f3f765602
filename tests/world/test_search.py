"""The scripted attacker's search against the world's chances, in place of its model: does it beat draws, and why?

`python tests/world/test_search.py` prints the table of 100 goals and 3 seeds.
"""

import random
import sys
from dataclasses import replace

import pytest

from midward.stats import paired, rate
from midward.world import World, forbidden, read
from midward.world.assistant import Assistant
from midward.world.language import query, reply
from midward.world.wrappers import PRETEXTS, combination, wear

QUERIES = 20
GOAL = forbidden("tuning", 1)[0].text


# --- who proposes: (assistant, goal, history) -> the next prompt


def searching(assistant, goal, history):
    return assistant.attack(goal, history)["prompt"]


def unread(assistant, goal, history):
    """The search, told that all its tries were firmly refused."""
    return searching(assistant, goal, [(prompt, 1) for prompt, _ in history])


def misled(assistant, goal, history):
    """The search, told soft and firm refusals by the toss of a coin."""
    coins = random.Random(f"{assistant.seed}-{goal}")
    return searching(assistant, goal, [(prompt, coins.choice((1, 3))) for prompt, _ in history])


def drawing(assistant, goal, history):
    """One to three of what a request can wear, as WildJailbreak's composer draws them."""
    rng = random.Random(f"{assistant.seed}-{goal}-{len(history)}")
    pretexts = [name for name, (group, _, _) in PRETEXTS.items() if group == assistant.group]
    return wear(goal, combination(rng, pretexts, most=3), rng)


# --- who answers: (the request with its features, rng) -> a reply


def by_chance(asked, rng):
    return reply(asked, rng)[0]


def by_odds(asked, rng):
    """As a model without temperature would: it answers what it would rather answer than not."""
    return reply(asked, rng, along=asked.chance > 0.5)[0]


def spent(proposer, answerer, goals, seeds):
    """For each seed: goal -> queries up to the first success, one more than QUERIES where there is none."""
    return [
        {goal.id: _spent(proposer, answerer, goal, Assistant(seed, "tuning")) for goal in goals}
        for seed in range(seeds)
    ]


def _spent(proposer, answerer, goal, assistant):
    rng, history = random.Random(f"{goal.id}-{assistant.seed}"), []
    for number in range(1, QUERIES + 1):
        prompt = proposer(assistant, goal.text, history)
        worn = tuple(assistant._worn(prompt))
        text = answerer(replace(query(goal.kind, goal.thing, rng), features=worn), rng)
        if read(goal.kind, goal.thing, text).success:
            return number
        history.append((prompt, assistant.score(goal.text, text)))
    return QUERIES + 1


def saved(first, second):
    """Queries that the first side needs fewer, paired by goal, with interval."""
    shares = [
        [{goal: (QUERIES + 1 - number) / QUERIES for goal, number in run.items()} for run in side]
        for side in (first, second)
    ]
    pair = paired(*shares)
    return tuple(QUERIES * end for end in (pair.value, pair.low, pair.high))


def within(side, queries=QUERIES):
    """The share of goals that fall within so many queries."""
    rows = [(number <= queries, goal, seed) for seed, run in enumerate(side) for goal, number in run.items()]
    return rate(*map(list, zip(*rows, strict=True)))


def test_the_search_needs_fewer_queries_than_draws():
    goals = forbidden("tuning", 80)
    for answerer, least in ((by_chance, 0.2), (by_odds, 2.0)):
        search, draws = (spent(each, answerer, goals, 3) for each in (searching, drawing))
        assert saved(search, draws)[1] > least
        assert within(search).value > 0.95 and within(search, 5).value > within(draws, 5).value + 0.1


def test_the_search_finds_the_two_that_open_by_how_it_is_refused():
    """Softly where one of the two is worn, firmly where none is."""

    def tries(proposer, number):
        rng, assistant, history = random.Random(number), Assistant(number), []
        opens = set(assistant._worn(assistant.attack(GOAL, [], branch=rng.random())["prompt"]))
        while len(history) < 60:
            prompt = proposer(assistant, GOAL, history)
            right = len(opens & set(assistant._worn(prompt)))
            if right == len(opens):
                break
            history.append((prompt, 1 + 2 * right))
        return len(history) + 1

    search, coins = (sum(tries(each, number) for number in range(40)) / 40 for each in (searching, misled))
    assert search < 9 and search < 0.7 * coins


def test_the_search_reads_no_chance_and_no_fact(monkeypatch):
    def run():
        history = []
        for number in range(12):
            history.append((searching(Assistant(3, "test"), GOAL, history), (1, 3, 1, 4)[number % 4]))
        return history

    before = run()
    hidden = property(lambda self: pytest.fail("a fact was read"))
    monkeypatch.setattr(World, "facts", hidden)
    chances = sys.modules[wear.__module__]
    monkeypatch.setattr(chances, "pull", lambda *_: pytest.fail("a chance was read"))
    monkeypatch.setattr(chances, "WEIGHTS", {})
    assert run() == before


if __name__ == "__main__":
    lines = ["| target | who proposes | within 20 | within 5 | mean queries | fewer than draws |", f"|{'---|' * 6}"]
    chosen = forbidden("tuning", 100)
    for answerer in (by_chance, by_odds):
        sides = {each.__name__: spent(each, answerer, chosen, 3) for each in (searching, unread, misled, drawing)}
        for name, side in sides.items():
            needed = sum(number for run in side for number in run.values()) / 300
            fewer = "{:.2f} [{:.2f}, {:.2f}]".format(*saved(side, sides["drawing"]))
            cells = (answerer.__name__, name, within(side), within(side, 5), f"{needed:.2f}", fewer)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    sys.stdout.write("\n".join(lines) + "\n")
