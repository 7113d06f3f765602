"""A training step's cost beside its arithmetic: no wait for the device, no pass twice, no product that nobody reads."""

from collections import Counter

import pytest
import torch
from align_world import BENIGN, HARMFUL, SENTENCES, SMALL, words
from waits import COPIES, UPLOADS, Copies, Waits

from midward._peft import LoraConfig, get_peft_model
from midward.alignment import AlignTrainer, align
from midward.alignment._head import head_rows
from midward.models import LanguageModel

ANSWERED = [(text, words(*range(300, 310 + i)), words(*range(400, 406))) for i, text in enumerate(HARMFUL)]
#: Method, recipe -> passes of the body with gradient and without, in a step with benign prompts.
PASSES = {
    ("mosa", "paper"): (1, 1),
    ("mosa", "stable"): (1, 1),
    ("a2d", "paper"): (1, 0),
    ("a2d", "stable"): (1, 1),
    ("dpo", "stable"): (1, 1),
}


@pytest.mark.parametrize(("method", "recipe"), PASSES)
def test_a_step_reads_nothing_back_and_passes_the_body_once_each(model, tmp_path, monkeypatch, method, recipe):
    settings = {name: value for name, value in SMALL.items() if method == "mosa" or "window" not in name}
    steps, passes = [], Counter()
    training_step, hidden = AlignTrainer.training_step, LanguageModel.hidden

    def counted(self, *args, **kwargs):
        with Copies(COPIES | UPLOADS) as copies, Waits() as waits:
            loss = training_step(self, *args, **kwargs)
        steps.append(copies.count + waits.count)
        return loss

    def passed(self, ids, *args, **kwargs):
        passes[torch.is_grad_enabled()] += 1
        return hidden(self, ids, *args, **kwargs)

    monkeypatch.setattr(AlignTrainer, "training_step", counted)
    monkeypatch.setattr(LanguageModel, "hidden", passed)
    run = {"method": method, "recipe": recipe, "sentences": SENTENCES, "max_steps": 3, "batch_size": 2}
    align(model, ANSWERED, tmp_path / "a", benign=BENIGN, **run, **settings)
    assert len(steps) == 3 and not sum(steps, Counter())
    assert (passes[True], passes[False]) == tuple(3 * each for each in PASSES[method, recipe])


def test_the_reference_changes_no_flag_and_is_left_whatever_happens(model):
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        bare = model.hidden(ids)
        model.network = get_peft_model(model.network, lora)
        own, flags = model.hidden(ids), [p.requires_grad for p in model.network.parameters()]
        assert not torch.equal(own, bare)
        with pytest.raises(ZeroDivisionError), model.reference():
            assert torch.equal(model.hidden(ids), bare)
            assert [p.requires_grad for p in model.network.parameters()] == flags
            1 / 0  # noqa: B018
        assert torch.equal(model.hidden(ids), own)


@pytest.mark.parametrize(
    ("graded", "scored", "compared", "products"),
    [(True, 9, True, 4), (True, 0, True, 3), (True, 9, False, 2), (False, 9, True, 2), (False, 9, False, 1)],
)
def test_the_head_makes_no_product_that_no_gradient_needs(graded, scored, compared, products):
    layer = torch.nn.Linear(12, 90, bias=False).requires_grad_(False)
    hidden, reference = torch.randn(2, 9, 12)
    hidden.requires_grad_(graded)
    with Waits() as seen:
        head_rows(layer, hidden, reference if compared else None, torch.arange(4), scored, linear=layer)
    assert seen.operators["mm"] == products
