"""The schedule: what is drawn depends on the seed and the place alone."""

import random
from collections import Counter

import pytest
import torch
from align_world import BENIGN, HARMFUL, SENTENCES, SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from midward.alignment import AlignError, resolve
from midward.alignment.data import Prompt, SentenceCollator, SentenceSchedule, encode_prompts
from midward.alignment.sentences import SentenceIds, encode_sentences

IDS = SentenceIds(safe=((40, 41, 42, 43, 1), (50, 51, 1)), harmful=((60, 61, 62), (70, 71, 72, 73)))


def schedule(prompts=10, calm=6, **settings):
    config = resolve({**SMALL, **settings})
    harmful = [Prompt((5, 100 + i, 7), tuple(range(300, 320)) if i % 2 else None) for i in range(prompts)]
    benign = [Prompt((5, 200 + i, 7), tuple(range(400, 400 + i))) for i in range(calm)]
    return SentenceSchedule(config, harmful, benign, IDS, end_id=1)


def test_an_epoch_shows_every_prompt_once_and_the_tail_is_filled_from_the_next():
    plan = schedule(prompts=10, epochs=1, batch_size=4)
    prompts = [plan[i].harmful.prompt for i in range(len(plan))]
    assert (plan.steps, len(plan)) == (3, 12)
    assert set(Counter(prompts[:10]).values()) == {1} and len(set(prompts)) == 10
    two = schedule(prompts=10, epochs=2, batch_size=5)
    assert [two[i].harmful.prompt for i in range(10)] != [two[i].harmful.prompt for i in range(10, 20)]


def test_draws_do_not_depend_on_the_order_of_access_or_on_global_random_state():
    settings = {"reveal": 0.5, "epochs": 3}
    forwards = [schedule(**settings)[i] for i in range(12)]
    random.seed(123)
    torch.manual_seed(9)
    plan = schedule(**settings)
    assert [plan[i] for i in reversed(range(12))][::-1] == forwards
    assert [schedule(**settings, seed=1)[i] for i in range(12)] != forwards


def test_benign_prompts_go_round_evenly():
    plan = schedule(prompts=12, calm=6, benign_per_prompt=2, epochs=1)
    seen = Counter(row.prompt for i in range(12) for row, _ in plan[i].benign)
    assert set(seen.values()) == {4}


def test_the_paper_draws_one_pair_a_step():
    paper = schedule(prompts=40, recipe="paper", epochs=1)
    pairs = [tuple(paper[i].pairs) for i in range(len(paper))]
    assert all(len(set(pairs[i : i + 4])) == 1 for i in range(0, 40, 4)) and len(set(pairs)) > 1
    stable = schedule(prompts=40, epochs=1)
    assert any(len({tuple(stable[i].pairs) for i in range(j, j + 4)}) > 1 for j in range(0, 40, 4))


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["prefix", "subset", "both"]),
    fit=st.booleans(),
    seed=st.integers(0, 10_000),
    place=st.integers(0, 30),
)
def test_whatever_is_revealed_leaves_room_for_every_sentence(kind, fit, seed, place):
    plan = schedule(reveal=1.0, benign_reveal=1.0, reveal_kind=kind, fit=fit, seed=seed, max_steps=8)
    example = plan[place]
    shown = set(example.harmful.revealed)
    first, end = plan.config.window
    starts = [
        k
        for k in range(first, end)
        if k + IDS.longest <= (end if fit else plan.config.length) and not shown & set(range(k, k + IDS.longest))
    ]
    assert starts
    for row, _ in example.benign:
        assert len(row.revealed) < plan.config.length, "a benign row keeps one masked token or more"


def test_defaults_draw_what_they_drew():
    """Rates and room are later settings: named, the defaults change no draw."""
    for kind in ("prefix", "subset", "both"):
        plan = schedule(reveal=1.0, reveal_kind=kind, epochs=2)
        named = schedule(reveal=1.0, reveal_kind=kind, epochs=2, reveal_rate="uniform", reveal_room="kept")
        assert [plan[i] for i in range(20)] == [named[i] for i in range(20)]


def share(row, length=24):
    return len(row.revealed) / min(length, 20 if row.prompt[1] % 2 else length)


def test_the_rate_is_linear_in_the_step_or_between_its_bounds():
    settings = {"prompts": 40, "reveal": 1.0, "reveal_room": "any", "length": 24, "batch_size": 8, "max_steps": 11}
    linear = schedule(reveal_rate="linear", **settings)
    rows = [linear[i].harmful for i in range(88) if linear[i].harmful.prompt[1] % 2]
    steps = [i // 8 for i in range(88) if linear[i].harmful.prompt[1] % 2]
    means = {step: [share(row) for row, at in zip(rows, steps) if at == step] for step in range(11)}
    assert all(value == 0 for value in means[0]) and min(means[10]) > 0.8
    assert all(sum(v) / len(v) == pytest.approx(step / 10, abs=0.25) for step, v in means.items() if v)
    between = schedule(reveal_rate=(0.4, 0.5), **settings)
    shares = [share(between[i].harmful) for i in range(88) if between[i].harmful.prompt[1] % 2]
    assert 0.35 < sum(shares) / len(shares) < 0.55
    prefix = schedule(reveal_rate=(0.5, 0.5), reveal_kind="prefix", **settings)
    assert {len(prefix[i].harmful.revealed) for i in range(88) if prefix[i].harmful.prompt[1] % 2} == {10}


def test_any_room_keeps_nothing_free_but_one_token_of_the_window():
    plan = schedule(reveal=1.0, reveal_room="any", reveal_rate=(1.0, 1.0), window_end=14, epochs=2)
    # Those with an answer of their own, which is longer than the window.
    shown = [set(plan[i].harmful.revealed) for i in range(20) if plan[i].harmful.prompt[1] % 2]
    assert all(len(set(range(6, 14)) - places) == 1 for places in shown)
    assert {min(set(range(6, 14)) - places) for places in shown} > {6}
    # Benign rows are as they were.
    assert all(len(row.revealed) < 24 for i in range(20) for row, _ in plan[i].benign)


def test_what_is_revealed_is_ones_own_answer_anothers_or_a_benign_one():
    def revealed(**settings):
        config = resolve({**SMALL, "reveal": 1.0, "reveal_room": "any", "epochs": 4, **settings})
        harmful = [Prompt((5, 100 + i, 7), tuple(range(300 + 20 * i, 320 + 20 * i))) for i in range(5)]
        benign = [Prompt((5, 200 + i, 7), tuple(range(450 + 9 * i, 459 + 9 * i))) for i in range(4)]
        plan = SentenceSchedule(config, harmful, benign, IDS, 1)
        rows = [plan[i].harmful for i in range(20)]
        return [(row.prompt[1] - 100, {token - at for at, token in row.revealed.items()}) for row in rows]

    own, other, neutral = revealed(), revealed(reveal_text="other"), revealed(reveal_text="neutral")
    assert own == revealed(reveal_text="own") and all(firsts <= {300 + 20 * goal} for goal, firsts in own)
    seen = {(goal, first) for goal, firsts in other for first in firsts}
    assert all(first in range(300, 400, 20) and first != 300 + 20 * goal for goal, first in seen) and len(seen) > 8
    assert {first for _, firsts in neutral for first in firsts} == {450, 459, 468, 477}
    assert all(len(firsts) < 2 for _, firsts in other + neutral)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reveal_text": "other", "prompts": 2}, "answers of data, and it has 1 different ones; give 2 or more"),
        ({"reveal_text": "neutral", "calm": 0}, "answers of benign, and it has 0"),
    ],
)
def test_texts_that_are_not_there_are_told(settings, message):
    with pytest.raises(AlignError, match=message):
        schedule(reveal=0.5, **settings)
    assert schedule(reveal=0.0, benign_reveal=0.0, **settings)[0].harmful.revealed == {}


def test_reveal_shares_and_texts():
    plan = schedule(prompts=400, reveal=0.25, reveal_kind="prefix", epochs=1)
    rows = [plan[i].harmful for i in range(400)]
    assert 60 < sum(bool(row.revealed) for row in rows) < 120
    for row in rows:
        assert sorted(row.revealed) == list(range(len(row.revealed))), "a prefix"
        if row.revealed and row.prompt[1] % 2:
            assert all(token == 300 + i for i, token in row.revealed.items()), "its own answer"
        elif row.revealed:
            assert set(row.revealed.values()) <= {60, 61, 62, 70, 71, 72, 73}, "procedural lines"
    assert not any(schedule(prompts=50, epochs=1, recipe="published")[i].harmful.revealed for i in range(50))


def test_a_benign_answer_is_padded_with_the_end_token():
    plan = schedule(calm=6, benign_reveal=1.0, reveal_kind="subset", epochs=4)
    for i in range(len(plan)):
        for row, _ in plan[i].benign:
            size = row.prompt[1] - 200
            assert all(token == (400 + at if at < size else 1) for at, token in row.revealed.items())


def test_the_canvas_is_padded_left_and_hides_what_is_not_revealed(model):
    plan = schedule(reveal=1.0, epochs=1)
    batch = SentenceCollator(plan.config, model.family, IDS.longest)([plan[i] for i in range(4)])
    length = plan.config.length
    for number in range(4):
        row = plan[number].harmful
        canvas = batch["ids"][number].tolist()
        response = canvas[-length:]
        assert canvas[-length - 3 : -length] == list(row.prompt)
        assert response == [row.revealed.get(i, model.family.mask_id) for i in range(length)]
        assert batch["masked"][number].tolist() == [i not in row.revealed for i in range(length)]


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "is empty"),
        ("a single text", "must be a list of prompts; received a str"),
        (["t100", "  "], r"data\[1\] is an empty prompt"),
        (["t100", 3], r"data\[1\]"),
        ([["t100"]], r"data\[0\].*message"),
        (["t100 t101", "t103", "t100 t101"], r"data\[2\] repeats data\[0\]"),
        ([" ".join(["t100"] * 240)], r"data\[0\] has 2\d\d tokens.*room for 232"),
        ([("t100", 5)], "answer must be a text or None"),
        ([("t100", "t1 <|mdm_mask|>")], "holds a mask token"),
    ],
)
def test_bad_prompts_are_named(model, data, message):
    with pytest.raises(AlignError, match=message):
        encode_prompts(model, data, resolve(SMALL), "data")


def test_prompts_may_be_texts_conversations_or_pairs(model):
    config = resolve(SMALL)
    text, talk, pair = encode_prompts(
        model, ["t100", [{"role": "user", "content": "t101"}], ("t102", "t300 t301 <|endoftext|>")], config, "data"
    )
    assert text.ids == tuple(model.encode("t100")) and text.answer is None
    assert talk.ids == tuple(model.encode("t101"))
    assert pair.answer is not None and len(pair.answer) == 2
    assert len(encode_prompts(model, HARMFUL, config, "data")) == len(HARMFUL)
    assert all(p.answer for p in encode_prompts(model, BENIGN, config, "benign"))
    assert encode_sentences(model, SENTENCES, config).longest == 5
