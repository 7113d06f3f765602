"""The score of Algorithm 1, and the loss against its literal statement on full logits."""

import pytest
import torch
from align_world import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from midward.alignment import MosaObjective, best_start, resolve, span_scores
from midward.alignment.data import Example, Row, SentenceCollator


def algorithm_1(log_probs, sentence, window, limit):
    """Plain restatement: every start, every token of the sentence, one number at a time."""
    best = None
    for k in range(*window):
        if k + len(sentence) > limit:
            continue
        total = 0.0
        for j in range(len(sentence)):
            total = total + log_probs[k + j, sentence[j]]
        if best is None or total > best:
            best = total
    return best


def padded(sentences):
    longest = max(map(len, sentences))
    return torch.tensor([list(s) + [-1] * (longest - len(s)) for s in sentences])


@settings(max_examples=60)
@given(st.data())
def test_score_is_algorithm_1(data):
    length = data.draw(st.integers(6, 20))
    vocabulary = data.draw(st.integers(2, 9))
    sentences = data.draw(
        st.lists(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=4), min_size=1, max_size=3)
    )
    longest = max(map(len, sentences))
    first = data.draw(st.integers(0, length - longest - 1))
    end = data.draw(st.integers(first + longest, length))
    fit = data.draw(st.booleans())
    seed = data.draw(st.integers(0, 1000))
    logits = 3 * torch.randn(len(sentences), length, vocabulary, generator=torch.Generator().manual_seed(seed))
    log_probs = logits.double().log_softmax(-1)
    scores = best_start(span_scores(log_probs, padded(sentences), (first, end), fit=fit))
    for row, sentence in enumerate(sentences):
        expected = algorithm_1(log_probs[row], sentence, (first, end), end if fit else length)
        assert scores[row].item() == pytest.approx(expected.item(), abs=1e-12)


def test_gradient_of_the_score_is_its_finite_difference():
    torch.manual_seed(0)
    logits = torch.randn(2, 12, 7, dtype=torch.float64, requires_grad=True)
    sentences = padded([[1, 2, 3], [4, 4]])

    def score(x):
        return best_start(span_scores(x.log_softmax(-1), sentences, (3, 9)))

    assert torch.autograd.gradcheck(score, (logits,))


def test_hard_maximum_sends_gradient_to_one_window_only():
    log_probs = torch.zeros(1, 10, 3)
    log_probs[0, 5:7, 1] = 1.0
    log_probs.requires_grad_()
    best_start(span_scores(log_probs, torch.tensor([[1, 1]]), (0, 9))).sum().backward()
    assert log_probs.grad.nonzero().tolist() == [[0, 5, 1], [0, 6, 1]]


def test_start_only_reaches_past_the_window_and_fit_does_not():
    log_probs = torch.full((1, 12, 2), -1.0)
    log_probs[0, 7:10, 1] = 0.0
    sentence = torch.tensor([[1, 1, 1]])
    assert best_start(span_scores(log_probs, sentence, (4, 8))).item() == 0
    assert best_start(span_scores(log_probs, sentence, (4, 8), fit=True)).item() == -2


def test_a_span_over_revealed_tokens_does_not_count():
    log_probs = torch.full((1, 10, 2), -1.0)
    log_probs[0, 3:5, 1] = 0.0
    masked = torch.ones(1, 10, dtype=torch.bool)
    masked[0, 4] = False
    scores = span_scores(log_probs, torch.tensor([[1, 1]]), (0, 9), masked=masked)
    assert scores[0, [3, 4]].tolist() == [-torch.inf, -torch.inf]
    assert best_start(scores).item() == -1


# --- the whole loss ------------------------------------------------------------------------------------


def adapted(model, spread=0.3):
    """`model` with an adapter that already does something."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=list(model.family.lora_targets))
    model.network = get_peft_model(model.network, lora)
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=spread)
    return model


def gradient(model):
    grads = [p.grad for p in model.network.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in grads])


def assert_as_restated(model, expected, objective, batch, loss=1e-9, slope=(1e-7, 1e-9)):
    """An objective's loss and gradient on a batch are those of a restatement, whose loss is `expected`.

    loss: relative bound. slope: relative and absolute bound of the gradient.
    """
    expected.backward()
    wanted = gradient(model)
    model.network.zero_grad()
    terms = objective(batch)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(expected.item(), rel=loss)
    assert torch.allclose(gradient(model), wanted, rtol=slope[0], atol=slope[1])


PROMPTS = [(5, 100, 101, 102, 7), (5, 110, 111, 7), (5, 120, 121, 122, 123, 7)]
SAFE, STEP = (40, 41, 42, 1), (60, 61, 62)


def examples(benign=False, revealed=()):
    shown = {i: 60 + i for i in revealed}
    return [
        Example(
            Row(prompt, shown),
            [(SAFE, STEP)],
            [(Row((5, 200 + i, 201, 7), dict.fromkeys(range(3 * i), 90)), SAFE[:2])] if benign else [],
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def batch_of(model, config, rows):
    return SentenceCollator(config, model.family, 4)(rows)


def literal_loss(model, config, rows):
    """The paper's formula, a prompt at a time, on full logits, nothing shared with the implementation."""
    total = 0.0
    family, length = model.family, config.length
    for row in rows:

        def log_probs(one):
            response = [one.revealed.get(i, family.mask_id) for i in range(length)]
            ids = torch.tensor([[*one.prompt, *response]])
            logits = model.head(model.hidden(ids))[0]
            return logits[len(one.prompt) :].log_softmax(-1)

        def kl(one, positions):
            policy = log_probs(one)
            with torch.no_grad(), model.reference():
                reference = log_probs(one)
            at = [i for i in positions if i not in one.revealed]
            each = (policy.exp() * (policy - reference)).sum(-1)[at]
            return each.sum() if config.kl_reduction == "sum" else each.mean()

        policy = log_probs(row.harmful)
        for safe, harmful in row.pairs:
            best = [algorithm_1(policy, sentence, config.window, length) for sentence in (safe, harmful)]
            total = total - (best[0] - best[1]) / len(row.pairs)
        reach = range(config.window_start, config.window_end - 1 + 4)
        total = total + config.beta * kl(row.harmful, range(length) if config.kl_rows == "response" else reach)
        for benign, _ in row.benign:
            total = total + config.benign_beta * kl(benign, range(length)) / len(row.benign)
    return total / len(rows)


@pytest.mark.parametrize(
    "recipe, benign, changes",
    [
        ("paper", False, {}),
        ("paper", False, {"kl_rows": "window", "kl_reduction": "sum"}),
        ("paper", False, {"method": "initial"}),
        ("stable", True, {"harmful_floor": None}),
        ("stable", True, {"harmful_floor": None, "kl_reduction": "sum", "kl_rows": "window"}),
    ],
)
def test_loss_and_gradient_are_the_literal_formula(model64, recipe, benign, changes):
    window = {} if changes.get("method") == "initial" else {"window_start": 6, "window_end": 14}
    config = resolve({"recipe": recipe, "length": 24, **window, **changes})
    model, rows = adapted(model64), examples(benign)
    expected = literal_loss(model, config, rows)
    assert_as_restated(model, expected, MosaObjective(model, config), batch_of(model, config, rows))


def test_shifted_logits_read_one_place_to_the_left(model64):
    """A family that predicts token i from the state at i - 1."""
    from dataclasses import replace

    config = resolve({"recipe": "paper", **SMALL})
    model, rows = adapted(model64), examples()
    plain = batch_of(model, config, rows)
    model.family = replace(model.family, shift=True)
    shifted = batch_of(model, config, rows)
    assert torch.equal(shifted["rows"], plain["rows"] - 1)
    assert torch.equal(shifted["slot"], plain["slot"])


def test_padding_and_batching_change_nothing(model64):
    config = resolve({**SMALL, "benign_beta": 2.0})
    model, rows = adapted(model64), examples(benign=True, revealed=(0, 1, 8))
    objective = MosaObjective(model, config)
    together = objective(batch_of(model, config, rows))
    assert "mask" in batch_of(model, config, rows)
    alone = [objective(batch_of(model, config, [row])) for row in rows]
    assert together.loss.item() == pytest.approx(sum(t.loss.item() for t in alone) / 3, rel=1e-10)
    for name, (total, count) in together.metrics.items():
        assert float(total) == pytest.approx(sum(float(t.metrics[name][0]) for t in alone), abs=1e-8), name
        assert int(count) == sum(int(t.metrics[name][1]) for t in alone), name


def test_an_untouched_adapter_has_no_kl_and_gains_nothing(model):
    model = adapted(model, spread=0.0)
    terms = MosaObjective(model, resolve(SMALL))(batch_of(model, resolve(SMALL), examples(benign=True)))
    for name in ("kl", "kl_benign", "safe_gain", "harmful_gain", "over_refusal", "floored"):
        assert float(terms.metrics[name][0]) == pytest.approx(0, abs=1e-5), name
    reward, safe, harmful = (float(terms.metrics[n][0]) for n in ("reward", "safe", "harmful"))
    assert reward == pytest.approx(safe - harmful, rel=1e-5)
    assert terms.loss.item() == pytest.approx(-reward / 3, rel=1e-5)


def test_without_room_a_safe_sentence_is_its_end_token_and_a_harmful_one_nothing(model64):
    """All of the window is revealed but for one token, and no sentence starts there."""
    model = adapted(model64)
    config = resolve({**SMALL, "recipe": "paper", "beta": 0.0, "reveal_room": "any"})
    shown = dict.fromkeys((i for i in range(24) if i != 9), 90)
    rows = [Example(Row(PROMPTS[0], shown), [(SAFE, STEP)], [])]
    objective = MosaObjective(model, config)
    terms = objective(batch_of(model, config, rows))
    ids = torch.tensor([[*PROMPTS[0], *(shown.get(i, model.family.mask_id) for i in range(24))]])
    expected = -model.head(model.hidden(ids))[0, len(PROMPTS[0]) + 9].log_softmax(-1)[SAFE[-1]]
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert all(value.isfinite() for value, _ in terms.metrics.values())
    expected.backward()
    wanted = gradient(model)
    model.network.zero_grad()
    terms.loss.backward()
    assert torch.allclose(gradient(model), wanted, rtol=1e-7, atol=1e-9)


def test_with_room_any_is_kept(model64):
    model, rows = adapted(model64), examples(benign=True, revealed=(0, 1, 8))
    losses = []
    for room in ("kept", "any"):
        config = resolve({**SMALL, "reveal_room": room})
        losses.append(MosaObjective(model, config)(batch_of(model, config, rows)).loss.item())
    assert losses[0] == losses[1]


def test_below_the_floor_the_harmful_term_is_constant_and_has_no_gradient(model64):
    model = adapted(model64)
    free = resolve({**SMALL, "recipe": "paper", "beta": 0.0})
    batch = batch_of(model, free, examples())
    # Far above the floor: as if there were none.
    high = resolve({**SMALL, "beta": 0.0, "benign_beta": 0.0, "harmful_floor": 1000})
    assert MosaObjective(model, high)(batch).loss.item() == pytest.approx(MosaObjective(model, free)(batch).loss.item())
    # Everything below it: the loss is the safe term alone, but for a constant.
    low = resolve({**SMALL, "beta": 0.0, "benign_beta": 0.0, "harmful_floor": 0.0})
    terms = MosaObjective(model, low)(batch)
    assert float(terms.metrics["floored"][0]) == 3, "this seed sinks every harmful sentence"
    terms.loss.backward()
    held = gradient(model)
    model.network.zero_grad()
    safe_only = literal_safe(model, free)
    safe_only.backward()
    assert torch.allclose(held, gradient(model), rtol=1e-7, atol=1e-9)


def literal_safe(model, config):
    total = 0.0
    for prompt in PROMPTS:
        ids = torch.tensor([[*prompt, *[model.family.mask_id] * config.length]])
        policy = model.head(model.hidden(ids))[0, len(prompt) :].log_softmax(-1)
        total = total - algorithm_1(policy, SAFE, config.window, config.length)
    return total / len(PROMPTS)


def test_over_refusal_is_the_gain_of_a_refusals_opening_on_benign_prompts(model64):
    config = resolve(SMALL)
    model, rows = adapted(model64), examples(benign=True)
    total, count = MosaObjective(model, config)(batch_of(model, config, rows)).metrics["over_refusal"]
    assert int(count) == 3
    expected = 0.0
    for row in rows:
        benign, opening = row.benign[0]
        response = [benign.revealed.get(i, model.family.mask_id) for i in range(config.length)]
        ids = torch.tensor([[*benign.prompt, *response]])
        best = []
        for reference in (False, True):
            with torch.no_grad():
                if reference:
                    with model.reference():
                        out = model.head(model.hidden(ids))
                else:
                    out = model.head(model.hidden(ids))
            log_probs = out[0, len(benign.prompt) :].log_softmax(-1)
            starts = [s for s in (0, *range(*config.window)) if not {s, s + 1} & set(benign.revealed)]
            best.append(max(float(log_probs[s, opening[0]] + log_probs[s + 1, opening[1]]) for s in starts))
        expected += best[0] - best[1]
    assert float(total) == pytest.approx(expected, rel=1e-8)
