"""Methods that learn answers: what their rows are, and their losses against literal statements on full logits."""

import json
import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from align_world import BENIGN, HARMFUL, SENTENCES, SMALL, TINY, words
from peft import PeftModel
from test_align_objective import adapted, assert_as_restated, gradient
from test_align_run import close, same, weights

import midward.models
from midward.alignment import AlignError, align, resolve
from midward.alignment.data import Prompt, encode_prompts
from midward.alignment.methods import METHODS, objective_of
from midward.alignment.sentences import SentenceIds
from midward.alignment.trainer import read_curve

END = 1
SAFE = SentenceIds(safe=((40, 41, 42, END), (50, 51, END)), harmful=((60, 61),))
TRIPLES = [
    (prompt, words(*range(300 + i, 306 + i)), words(*range(340 + i, 344 + i))) for i, prompt in enumerate(HARMFUL)
]
SIZES = {"length": 24, "lr": 1e-3, "log_steps": 5, "save_steps": 5, "batch_size": 4, "lora_dropout": 0.0}
ANSWERS = ("sft", "rt", "a2d")


def schedule(method, prompts=10, calm=6, end=END, **settings):
    config = resolve({**SIZES, "method": method, **settings})
    harmful = [
        Prompt((5, *range(100, 101 + i % 3), 7, 100 + i), tuple(range(220, 230)), tuple(range(240, 245)))
        for i in range(prompts)
    ]
    benign = [Prompt((5, 200 + i, 7), tuple(range(250, 254 + i))) for i in range(calm)]
    return METHODS[method].schedule(config, harmful, benign, SAFE, end)


def full(answer, length=24):
    return (*answer, *[END] * length)[:length]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, shown, targets",
    [
        ("sft", {full(range(240, 245))}, {full(range(240, 245))}),
        ("rt", {full((40, 41, 42, END)), full((50, 51, END))}, {full((40, 41, 42, END)), full((50, 51, END))}),
        ("a2d", {full(range(220, 230))}, {(END,) * 24}),
    ],
)
def test_what_is_shown_and_what_is_learnt(method, shown, targets):
    plan = schedule(method, epochs=4)
    seen = set()
    for i in range(len(plan)):
        for row in plan[i].rows:
            assert row.targets in targets
            assert any(all(text[at] == token for at, token in row.row.revealed.items()) for text in shown)
            seen.add(row.targets)
        for row in plan[i].benign:
            text = full(range(250, 254 + row.row.prompt[1] - 200))
            assert row.targets == text and all(text[at] == token for at, token in row.row.revealed.items())
    assert seen == targets


def test_rates_are_uniform_and_tokens_are_masked_at_them():
    plan = schedule("a2d", prompts=40, epochs=20, least_rate=0.001, length=64)
    rows = [plan[i].rows[0] for i in range(800)]
    rates = torch.tensor([row.rate for row in rows])
    shares = torch.tensor([row.masked / 64 for row in rows])
    assert 0.001 <= rates.min() < 0.02 and rates.max() > 0.98 and rates.mean() == pytest.approx(0.5, abs=0.03)
    assert (shares - rates).mean().abs() < 0.01 and (shares - rates).abs().max() < 0.3
    assert [schedule("a2d", prompts=40)[i] for i in reversed(range(8))][::-1] == [
        schedule("a2d", prompts=40)[i] for i in range(8)
    ]


def test_a_missing_answer_is_named(model, tmp_path):
    for method, data, benign, message in (
        ("a2d", HARMFUL, BENIGN, r"learns from the answer of every prompt and data\[0\] has none"),
        ("sft", [(t, a) for t, a, _ in TRIPLES], BENIGN, r"the safe answer of every prompt and data\[0\] has none"),
        ("rt", HARMFUL, [words(200, 201)], r"the answer of every prompt and benign\[0\] has none"),
        ("a2d", [(*TRIPLES[0], "t1")], BENIGN, r"data\[0\] has 3 answers"),
    ):
        with pytest.raises(AlignError, match=message):
            align(model, data, tmp_path / "a", method=method, benign=benign, sentences=SENTENCES, **SIZES)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "a2d", "window_start": 3}, "'a2d' has no window_start; mosa, initial have"),
        ({"method": "mosa", "token_mean": "masked"}, "'mosa' has no token_mean; sft, rt, a2d have"),
        ({"method": "rt", "recipe": "published"}, "unknown recipe 'published'.*stable, paper"),
        ({"method": "sft", "least_rate": 0}, "least_rate"),
    ],
)
def test_settings_of_another_method_are_refused(settings, message):
    with pytest.raises(AlignError, match=message):
        resolve(settings)
    assert resolve({"method": "a2d", "length": 8}).length == 8  # no window to fit in


def test_the_paper_recipe_has_the_released_numbers():
    config = resolve({"method": "a2d", "recipe": "paper"})
    assert (config.epochs, config.batch_size, config.lr, config.weight_decay) == (10, 16, 5e-5, 0.1)
    assert (config.clip, config.lora_rank, config.lora_alpha, config.lora_dropout) == (None, 32, 64, 0.05)
    assert config.benign_beta == 0 and resolve({"method": "a2d"}).benign_beta > 0
    assert resolve(config.to_dict()) == config


# --- losses ----------------------------------------------------------------------------------------------------------


def canvas_of(model, row):
    shown = row.row.revealed
    return [*row.row.prompt, *(shown.get(i, model.family.mask_id) for i in range(len(row.targets)))]


def released_llada(model, rows):
    """Restated: per row the sum of CE / p over masked tokens, by the response's length, then by the batch."""
    total = 0.0
    for row in rows:
        ids = torch.tensor([canvas_of(model, row)])
        logits = model.head(model.hidden(ids))[0, len(row.row.prompt) :]
        each = F.cross_entropy(logits, torch.tensor(row.targets), reduction="none")
        for i in range(len(row.targets)):
            if i not in row.row.revealed:
                total = total + each[i] / row.rate / len(row.targets)
    return total / len(rows)


def released_dream(model, rows):
    """Restated: the plain mean of CE / p over all masked tokens of the batch, logits moved one place to the right."""
    values = []
    for row in rows:
        ids = torch.tensor([canvas_of(model, row)])
        logits = model.head(model.hidden(ids))[0]
        logits = torch.cat([logits[:1], logits[:-1]])[len(row.row.prompt) :]
        each = F.cross_entropy(logits, torch.tensor(row.targets), reduction="none")
        values += [each[i] / row.rate for i in range(len(row.targets)) if i not in row.row.revealed]
    return torch.stack(values).mean()


def rows_of(examples):
    return [row for example in examples for row in example.rows] + [row for e in examples for row in e.benign]


@pytest.mark.parametrize("method", ANSWERS)
def test_on_llada_loss_and_gradient_are_the_released_arithmetic(model64, method):
    model, plan = adapted(model64), schedule(method, recipe="paper")
    examples = [plan[i] for i in range(4)]
    expected = released_llada(model, rows_of(examples))
    batch = plan.collator(model.family)(examples)
    assert "mask" in batch, "prompts differ in length"
    assert_as_restated(model, expected, objective_of(model, plan.config), batch)


def test_on_dream_the_loss_is_the_released_arithmetic():
    model = midward.models.load(TINY.parent / "dream-tiny", device="cpu", dtype=torch.float32)
    assert model.family.shift
    model = adapted(model, spread=0.1)
    plan = schedule("a2d", recipe="paper", token_mean="masked", end=model.family.end_ids[0])
    examples = [plan[i] for i in range(4)]
    expected = released_dream(model, rows_of(examples))
    batch = plan.collator(model.family)(examples)
    assert_as_restated(model, expected, objective_of(model, plan.config), batch, loss=1e-5, slope=(1e-3, 1e-5))


@pytest.mark.parametrize("method", ANSWERS)
@pytest.mark.parametrize("token_mean", ["length", "masked"])
def test_micro_batches_add_up_and_stable_is_paper_with_a_benign_kl(model64, method, token_mean):
    model = adapted(model64)
    plan = schedule(method, token_mean=token_mean, benign_beta=3.0)
    objective, collate = objective_of(model, plan.config), plan.collator(model.family)
    examples = [plan[i] for i in range(4)]
    together = objective(collate(examples))
    alone = [objective(collate([example])) for example in examples]
    assert together.loss.item() == pytest.approx(sum(t.loss.item() for t in alone) / 4, rel=1e-10)
    for name, (total, count) in together.metrics.items():
        assert float(total) == pytest.approx(sum(float(t.metrics[name][0]) for t in alone), abs=1e-8), name
        assert int(count) == sum(int(t.metrics[name][1]) for t in alone), name
    bare = schedule(method, token_mean=token_mean, recipe="paper")
    without = objective_of(model, bare.config)(collate(examples))
    total, count = together.metrics["kl_benign"]
    assert together.loss.item() == pytest.approx(without.loss.item() + 3.0 * float(total) / int(count), rel=1e-9)
    assert "kl_benign" not in without.metrics


def test_the_benign_kl_and_the_end_token_are_those_of_full_logits(model64):
    model, plan = adapted(model64), schedule("a2d")
    examples = [plan[i] for i in range(4)]
    terms = objective_of(model, plan.config)(plan.collator(model.family)(examples))
    kl, end = 0.0, 0.0
    for row in (row for example in examples for row in example.benign):
        ids = torch.tensor([canvas_of(model, row)])
        with torch.no_grad():
            policy = model.head(model.hidden(ids))[0, len(row.row.prompt) :].log_softmax(-1)
            with model.reference():
                reference = model.head(model.hidden(ids))[0, len(row.row.prompt) :].log_softmax(-1)
        at = [i for i in range(24) if i not in row.row.revealed]
        kl += float((policy.exp() * (policy - reference)).sum(-1)[at].mean()) if at else 0.0
        end += float(policy[at[0], END]) if at else 0.0
    assert float(terms.metrics["kl_benign"][0]) == pytest.approx(kl, rel=1e-8)
    assert float(terms.metrics["end_benign"][0]) == pytest.approx(end, rel=1e-8)


def test_the_reference_is_run_on_benign_rows_alone_and_only_for_the_kl(model, monkeypatch):
    model, calls = adapted(model), []
    hidden, reference, inside = model.hidden, model.reference, []

    @contextmanager
    def watched():
        inside.append(True)
        with reference():
            yield
        inside.pop()

    def counted(ids, mask=None):
        calls.append((len(ids), bool(inside)))
        return hidden(ids, mask)

    monkeypatch.setattr(model, "hidden", counted)
    monkeypatch.setattr(model, "reference", watched)
    for recipe, expected in (("paper", [(6, False)]), ("stable", [(6, False), (3, True)])):
        plan = schedule("a2d", recipe=recipe)
        objective = objective_of(model, plan.config)
        assert objective.needs_reference == (recipe == "stable")
        calls.clear()
        objective(plan.collator(model.family)([plan[i] for i in range(3)]))
        assert calls == expected


def test_rows_without_a_mask_add_nothing_and_break_nothing(model64):
    """At a rate near 0 a row may hide no token at all."""
    model, plan = adapted(model64), schedule("a2d", calm=0, recipe="paper")
    long = schedule("a2d", calm=0, recipe="paper", epochs=500)
    empty = next(example for example in (long[i] for i in range(len(long))) if not example.rows[0].masked)
    collate, objective = plan.collator(model.family), objective_of(model, plan.config)
    terms = objective(collate([empty]))
    terms.loss.backward()
    assert terms.loss.item() == 0 and not gradient(model).any()
    assert math.isfinite(objective(collate([empty, plan[0]])).loss.item())


# --- runs ------------------------------------------------------------------------------------------------------------


def run(model, out, method, **changes):
    settings = {**SIZES, "benign": BENIGN, "sentences": SENTENCES, "method": method, **changes}
    return align(model, TRIPLES, out, **settings)


def test_pairs_are_the_safe_answer_then_the_harmful_one_each_masked_anew():
    plan = schedule("dpo", masks=3)
    for i in range(8):
        rows = plan[i].rows
        assert [row.targets for row in rows] == [full(range(240, 245))] * 3 + [full(range(220, 230))] * 3
        assert all(row.targets[at] == token for row in rows for at, token in row.row.revealed.items())
        assert len({row.rate for row in rows}) == 6, "a rate of its own"


@pytest.mark.parametrize("benign_beta", [0.0, 2.0])
def test_dpo_is_the_literal_formula(model64, benign_beta):
    model, plan = adapted(model64), schedule("dpo", masks=2, dpo_beta=0.3, benign_beta=benign_beta)
    examples = [plan[i] for i in range(3)]

    def log_probs(row):
        logits = model.head(model.hidden(torch.tensor([canvas_of(model, row)])))
        return logits[0, len(row.row.prompt) :].log_softmax(-1)

    def hidden_at(row):
        return [i for i in range(24) if i not in row.row.revealed]

    def bound(rows):
        total = 0.0
        for row in rows:
            values = log_probs(row)
            total = total + sum(values[i, row.targets[i]] for i in hidden_at(row)) / row.rate
        return total / len(rows)

    expected, drift = 0.0, 0.0
    for example in examples:
        safe, harmful = example.rows[:2], example.rows[2:]
        with torch.no_grad(), model.reference():
            before = bound(safe) - bound(harmful)
        expected = expected - F.logsigmoid(0.3 * (bound(safe) - bound(harmful) - before)) / 3
        for row in example.benign:
            policy = log_probs(row)
            with torch.no_grad(), model.reference():
                reference = log_probs(row)
            each = (policy.exp() * (policy - reference)).sum(-1)[hidden_at(row)]
            drift = drift + (each.mean() if len(each) else 0.0) / 3
    expected = expected + benign_beta * drift
    batch = plan.collator(model.family)(examples)
    assert_as_restated(model, expected, objective_of(model, plan.config), batch)


def test_policy_and_reference_see_the_same_masks(model64, monkeypatch):
    """So a policy that is still its reference gains exactly nothing, however the masks fall."""
    model, seen = adapted(model64, spread=0.0), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, mask=None: seen.append(ids.clone()) or hidden(ids, mask))
    plan = schedule("dpo")
    terms = objective_of(model, plan.config)(plan.collator(model.family)([plan[i] for i in range(3)]))
    assert len(seen) == 2 and torch.equal(*seen)
    assert [float(terms.metrics[name][0]) for name in ("margin", "safe_gain", "harmful_gain")] == [0, 0, 0]
    assert terms.loss.item() == pytest.approx(math.log(2), rel=1e-12)


def test_micro_batches_of_dpo_add_up(model64):
    model, plan = adapted(model64), schedule("dpo", benign_beta=2.0)
    objective, collate = objective_of(model, plan.config), plan.collator(model.family)
    examples = [plan[i] for i in range(4)]
    together, alone = objective(collate(examples)), [objective(collate([example])) for example in examples]
    assert together.loss.item() == pytest.approx(sum(t.loss.item() for t in alone) / 4, rel=1e-10)
    for name, (total, count) in together.metrics.items():
        assert float(total) == pytest.approx(sum(float(t.metrics[name][0]) for t in alone), abs=1e-8), name
        assert int(count) == sum(int(t.metrics[name][1]) for t in alone), name


def test_dpo_asks_for_both_answers_and_for_no_benign_ones(model, tmp_path):
    with pytest.raises(AlignError, match=r"the safe answer of every prompt and data\[0\] has none"):
        align(model, [TRIPLES[0][:2]], tmp_path / "a", method="dpo", benign=BENIGN, **SIZES)
    quiet = schedule("dpo", calm=0)
    calm = [Prompt((5, 9, 7))]
    plan = type(quiet)(quiet.config, quiet.harmful, calm, None, END)
    assert not plan[0].benign[0].row.revealed, "without an answer all is masked"


@pytest.mark.parametrize(
    "method", ["a2d", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sft", "rt", "dpo"))]
)
def test_a_run_learns_and_plain_peft_loads_what_it_writes(model, tmp_path, method):
    base = model.network
    result = run(model, tmp_path / "a", method, max_steps=30)
    first, last = result.history[0], result.history[-1]
    if method == "dpo":
        assert last["margin"] > first["margin"] + 0.5 and last["accuracy"] > 0.5
    else:
        assert last["ce_harmful"] < first["ce_harmful"] - 0.5 and "end_harmful" in last
    record = json.loads((tmp_path / "a" / "align.json").read_text())
    assert (record["sentences"] is not None) == (method == "rt")
    card = (tmp_path / "a" / "README.md").read_text()
    assert METHODS[method].title in card and ("harmful sentences" in card) == (method == "rt")
    ids = torch.tensor([encode_prompts(model, HARMFUL, resolve(SMALL), "x")[0].ids + (model.family.mask_id,) * 24])
    loaded = midward.models.load(TINY, adapter=result.adapter, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        expected = loaded.head(loaded.hidden(ids))
        model.network = PeftModel.from_pretrained(base, str(result.adapter))
        assert torch.equal(model.head(model.hidden(ids)), expected)


class Stop(Exception):
    pass


def stopped(model, out, method, after, **changes):
    """A run that is broken off behind a row of its curve."""

    def on_log(row):
        if row["step"] == after:
            raise Stop

    with pytest.raises(Stop):
        run(model, out, method, on_log=on_log, **changes)


@pytest.mark.parametrize(
    "method, changes",
    [
        ("a2d", {"lora_dropout": 0.1}),
        pytest.param("rt", {"token_mean": "masked"}, marks=pytest.mark.slow),
        ("dpo", {"masks": 2}),
    ],
)
def test_taken_up_again_is_uninterrupted(model, tmp_path, method, changes):
    stopped(model, tmp_path / "a", method, 10, max_steps=12, **changes)
    resumed = run(model, tmp_path / "a", method, max_steps=12, **changes)
    whole = run(model, tmp_path / "b", method, max_steps=12, **changes)
    assert (resumed.resumed_from, whole.resumed_from) == (5, None)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert read_curve(tmp_path / "a" / "reward.csv") == read_curve(tmp_path / "b" / "reward.csv")


@pytest.mark.parametrize(
    "method, changes", [("a2d", {}), ("sft", {"token_mean": "masked", "recipe": "paper"}), ("dpo", {"masks": 2})]
)
def test_accumulated_micro_batches_equal_one_batch(model64, tmp_path, method, changes):
    one = run(model64, tmp_path / "1", method, max_steps=5, **changes)
    four = run(model64, tmp_path / "4", method, max_steps=5, micro_batch=1, **changes)
    assert close(weights(one.adapter), weights(four.adapter))
