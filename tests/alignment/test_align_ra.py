"""Recovery Alignment: its starts, its rewards, its gradient against a plain loop, and runs that are taken up again."""

import json

import pytest
import torch
from align_world import BENIGN, HARMFUL, words
from test_align_objective import adapted, assert_as_restated
from test_align_run import close, same, weights

from midward.alignment import AlignError, align, resolve
from midward.alignment.data import Prompt
from midward.alignment.methods import METHODS, objective_of
from midward.alignment.ra import advantages
from midward.alignment.trainer import read_curve
from midward.sampling import Forced, Request, Sampling, sample

LENGTH = 12
SIZES = {"length": LENGTH, "lr": 1e-2, "clip": 1.0, "log_steps": 5, "save_steps": 5, "batch_size": 2, "group": 3}
SIZES |= {"rollout_steps": 3, "lora_dropout": 0.0}
PAIRS = [(prompt, words(*range(300 + i, 308 + i))) for i, prompt in enumerate(HARMFUL)]
CALM = [(prompt, answer) for prompt, answer in BENIGN]


class Worth:
    """A response is worth the share of its words that are even numbers, to benign prompts odd ones."""

    def __init__(self, key="even"):
        self.asked, self.key = [], {"worth": key}

    def __call__(self, harmful, rows, responses):
        self.asked += [(harmful, row, text) for row, text in zip(rows, responses, strict=True)]
        numbers = [[int(word[1:]) for word in text.split() if word[1:].isdecimal()] for text in responses]
        return [sum(number % 2 != harmful for number in line) / max(1, len(line)) for line in numbers]


def schedule(prompts=10, calm=6, **settings):
    config = resolve({**SIZES, "method": "ra", **settings})
    harmful = [
        Prompt((5, *range(100, 101 + i % 3), 7, 100 + i), tuple(range(220 + i, 230 + i))) for i in range(prompts)
    ]
    benign = [Prompt((5, 200 + i, 7), tuple(range(250, 254 + i))) for i in range(calm)]
    return METHODS["ra"].schedule(config, harmful, benign, None, 1)


# --- starts ----------------------------------------------------------------------------------------------------------


def test_a_start_holds_tokens_of_the_answer_more_and_more_of_them():
    plan = schedule(prompts=40, epochs=20, most_anchors=0.5)
    shares = []
    for place in range(len(plan)):
        start = plan[place].harmful
        answer = plan.harmful[start.index].answer
        assert plan.harmful[start.index].ids == start.row.prompt
        assert all(answer[at] == token for at, token in start.row.revealed.items())
        shares.append(len(start.row.revealed) / 10)
    fifth = len(shares) // 5
    assert sum(shares[:4]) == 0, "none in the first steps"
    for part in range(5):
        mean = sum(shares[part * fifth : (part + 1) * fifth]) / fifth
        assert mean == pytest.approx(0.5 * (part + 0.5) / 5, abs=0.04)
    assert not any(start.row.revealed for place in range(9) for start in schedule(most_anchors=0)[place].benign)


def test_starts_and_seeds_hang_on_seed_epoch_and_place_alone():
    whole, again = schedule(), schedule()
    assert [whole[place] for place in range(8)] == [again[place] for place in reversed(range(8))][::-1]
    assert whole[3] != schedule(seed=1)[3]
    seeds = [whole[place].harmful.seed for place in range(10)]
    assert len(set(seeds)) == 10


def test_something_stays_to_be_written():
    plan = schedule(most_anchors=1.0, length=4, max_steps=40)
    starts = [start for place in range(len(plan)) for start in (plan[place].harmful, *plan[place].benign)]
    assert max(len(start.row.revealed) for start in starts) == 3


# --- the loss --------------------------------------------------------------------------------------------------------


def test_advantages_are_told_within_a_group_and_the_unscored_have_none():
    nan = float("nan")
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, nan, 0.0], [0.3, 0.3, 0.3], [nan, nan, nan]], dtype=torch.float64)
    values, spread = advantages(rewards)
    sd = (1 / 6) ** 0.5
    assert values[0].tolist() == pytest.approx([0.5 / (sd + 1e-6), -0.5 / (sd + 1e-6), 0])
    assert values[1].tolist() == pytest.approx([0.5 / (0.5 + 1e-6), 0, -0.5 / (0.5 + 1e-6)])
    assert not values[2:].any() and spread.tolist() == pytest.approx([sd, 0.5, 0, 0])


@pytest.mark.parametrize("benign_beta", [0.0, 3.0])
def test_loss_and_gradient_are_a_plain_loops(model64, benign_beta):
    """Start by start, response by response, position by position, on full logits."""
    model, plan = adapted(model64), schedule(most_anchors=0.6, beta=0.2, benign_beta=benign_beta)
    examples = [plan[place] for place in (4, 5, 9)]
    starts = [example.harmful for example in examples] + [start for e in examples for start in e.benign]
    sampling = Sampling(length=LENGTH, steps=3, order="random", temperature=1.0, end="keep")
    loss, worth = 0.0, Worth()
    for number, start in enumerate(starts):
        harmful = number < 3
        forced = tuple(Forced(at, (token,)) for at, token in start.row.revealed.items())
        requests = [Request(start.row.prompt, forced, seed=start.seed + g) for g in range(3)]
        rollouts = [sample(model, [request], sampling)[0].raw_ids for request in requests]
        texts = [model.decode(ids[: ids.index(1)] if 1 in ids else ids) for ids in rollouts]
        rewards = worth(harmful, [start.index] * 3, texts)
        mean = sum(rewards) / 3
        sd = (sum((reward - mean) ** 2 for reward in rewards) / 3) ** 0.5
        shown = [start.row.revealed.get(at, model.family.mask_id) for at in range(LENGTH)]
        ids = torch.tensor([[*start.row.prompt, *shown]])
        policy = model.head(model.hidden(ids))[0, -LENGTH:].log_softmax(-1)
        with torch.no_grad(), model.reference():
            reference = model.head(model.hidden(ids))[0, -LENGTH:].log_softmax(-1)
        masked = [at for at in range(LENGTH) if at not in start.row.revealed]
        for ids, reward in zip(rollouts, rewards, strict=True):
            gain = sum(policy[at, ids[at]] for at in masked) / len(masked)
            loss = loss - (reward - mean) / (sd + 1e-6) * gain / 3 / 3
        drift = sum((policy[at].exp() * (policy[at] - reference[at])).sum() for at in masked) / len(masked)
        loss = loss + (0.2 if harmful or not benign_beta else benign_beta) * drift / 3
    batch = plan.collator(model.family)(examples)
    reward = Worth()
    assert_as_restated(model, loss, objective_of(model, plan.config, reward), batch)
    assert sorted(reward.asked) == sorted(worth.asked) and len({text for *_, text in worth.asked}) > 6


def test_micro_batches_add_up(model64):
    model, plan = adapted(model64), schedule(most_anchors=0.5)
    objective, collate = objective_of(model, plan.config, Worth()), plan.collator(model.family)
    examples = [plan[place] for place in range(4, 8)]
    together, alone = objective(collate(examples)), [objective(collate([example])) for example in examples]
    assert together.loss.item() == pytest.approx(sum(t.loss.item() for t in alone) / 4, rel=1e-8)
    for name, (total, count) in together.metrics.items():
        assert float(total) == pytest.approx(sum(float(t.metrics[name][0]) for t in alone), abs=1e-8), name
        assert int(count) == sum(int(t.metrics[name][1]) for t in alone), name


def test_the_text_that_is_judged_ends_at_the_end_token(model):
    objective = objective_of(adapted(model), resolve({**SIZES, "method": "ra"}), Worth())
    assert objective._text([40, 41, 1, 42, 1]) == words(40, 41) and objective._text([40]) == words(40)


# --- runs ------------------------------------------------------------------------------------------------------------


def run(model, out, reward=None, **changes):
    settings = {**SIZES, "benign": CALM, "method": "ra", "reward": reward or Worth(), **changes}
    return align(model, PAIRS, out, **settings)


@pytest.mark.slow
def test_what_is_worth_more_comes_more_often(model, tmp_path):
    result = run(model, tmp_path / "a", max_steps=30, batch_size=4, group=8, beta=0.0, recipe="paper")
    first, last = result.history[0], result.history[-1]
    assert last["safety"] > first["safety"] + 0.15 and last["useful"] > first["useful"] + 0.1
    record = json.loads((tmp_path / "a" / "align.json").read_text())
    assert record["reward"] == Worth().key and record["sentences"] is None


class Stop(Exception):
    pass


def test_taken_up_again_is_uninterrupted(model, tmp_path):
    def stop(row):
        if row["step"] == 10:
            raise Stop

    with pytest.raises(Stop):
        run(model, tmp_path / "a", max_steps=12, on_log=stop)
    resumed, whole = run(model, tmp_path / "a", max_steps=12), run(model, tmp_path / "b", max_steps=12)
    assert (resumed.resumed_from, whole.resumed_from) == (5, None)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert read_curve(tmp_path / "a" / "reward.csv") == read_curve(tmp_path / "b" / "reward.csv")


def test_accumulated_micro_batches_equal_one_batch(model64, tmp_path):
    one = run(model64, tmp_path / "1", max_steps=3)
    two = run(model64, tmp_path / "2", max_steps=3, micro_batch=1)
    assert close(weights(one.adapter), weights(two.adapter))


def test_what_can_not_be_learnt_from_is_told(model, tmp_path):
    with pytest.raises(AlignError, match="pass reward="):
        align(model, PAIRS, tmp_path / "a", method="ra", benign=CALM, **SIZES)
    for data, benign, message in (
        (HARMFUL, CALM, r"learns from the answer of every prompt and data\[0\] has none"),
        (PAIRS, [words(200)], r"the answer of every prompt and benign\[0\] has none"),
    ):
        with pytest.raises(AlignError, match=message):
            align(model, data, tmp_path / "a", method="ra", benign=benign, reward=Worth(), **SIZES)
    for settings, message in (
        ({"method": "mosa", "group": 4}, "'mosa' has no group; ra have"),
        ({"method": "ra", "reveal": 0.9}, "'ra' has no reveal"),
        ({"method": "ra", "group": 1}, "group"),
        ({"method": "a2d", "beta": 1.0}, "'a2d' has no beta; mosa, initial, ra have"),
    ):
        with pytest.raises(AlignError, match=message):
            resolve(settings)
    assert not (tmp_path / "a").exists()


def test_a_run_with_another_reward_is_another_run(model, tmp_path):
    run(model, tmp_path / "a", max_steps=1, log_steps=1, save_steps=1)
    with pytest.raises(ValueError, match="holds another run: reward"):
        run(model, tmp_path / "a", Worth("odd"), max_steps=1, log_steps=1, save_steps=1)
