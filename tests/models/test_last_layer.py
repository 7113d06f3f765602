"""The columns that are read have the states of a whole forward, in every family and behind adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from published import CHECKPOINTS, ENCODERS

import midward
from midward.sampling import Sampling, sample


@pytest.mark.parametrize("name", [*CHECKPOINTS, *ENCODERS])
@pytest.mark.parametrize("padded", [False, True])
def test_read_columns_have_the_states_of_a_whole_forward(name, padded, folders):
    model = midward.load(folders[name], device="cpu", dtype="float32")
    ids = torch.randint(0, 40, (3, 24), generator=torch.manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1:, : 5 * padded] = 0
    with torch.no_grad():
        whole = model.hidden(ids, mask)
        for read in (slice(8, 16), slice(0, 3), slice(23, 24), slice(0, 24)):
            part = model.hidden(ids, mask, read=read)
            assert part.shape == whole[:, read].shape
            torch.testing.assert_close(part, whole[:, read], atol=2e-5, rtol=2e-5)
        assert torch.equal(model.hidden(ids, mask), whole)  # nothing stays


def test_behind_an_adapter_and_after_one_was_put_on(llada_folder):
    model = midward.load(llada_folder, device="cpu", dtype="float32")
    ids, read = torch.randint(0, 40, (2, 20)), slice(4, 12)
    with torch.no_grad():
        model.hidden(ids, read=read)
        model.network = get_peft_model(
            model.network, LoraConfig(target_modules=["o_proj", "down_proj"], init_lora_weights=False)
        )
        torch.testing.assert_close(model.hidden(ids, read=read), model.hidden(ids)[:, read], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("cache", [None, "prefix"])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_the_sampler_reads_what_it_needs(name, cache, llada_folder, folders, monkeypatch):
    """Its blocks, unless a watcher may look at all; the tokens are the same."""
    model = midward.load({**folders, "llada": llada_folder}[name], device="cpu", dtype="float32")
    settings = Sampling.for_model(
        model, length=24, block=8, steps=24, threshold=None, cache=cache, temperature=0.7, order="random"
    )
    own, read = model.hidden, []

    def hidden(*given):
        read.append(given[4] if len(given) > 4 else None)
        return own(*given)

    monkeypatch.setattr(model, "hidden", hidden)

    class Watching:
        needs_all_steps = False

        def on_start(self, canvas):
            self.states = []

        def on_step(self, step):
            self.states.append(step.hidden.clone())

        def on_end(self, canvas):
            pass

    bare = sample(model, ["t30 t40", "t50"], settings)
    shifted = int(model.family.shift)
    assert {None if each is None else each.stop - each.start for each in read} >= {8 + shifted}
    read.clear()
    watching = Watching()
    watched = sample(model, ["t30 t40", "t50"], settings, watchers=[watching])
    assert set(read) == {None}
    assert [each.raw_ids for each in watched] == [each.raw_ids for each in bare]
    if cache is None:  # one that said that it needs no others gets them all the same, by a forward
        declared = Watching()
        declared.needs_all_positions = False
        again = sample(model, ["t30 t40", "t50"], settings, watchers=[declared])
        assert [each.raw_ids for each in again] == [each.raw_ids for each in bare]
        for few, many in zip(declared.states, watching.states, strict=True):
            torch.testing.assert_close(few, many, atol=2e-5, rtol=2e-5)


def test_masks_that_stand_before_a_block_are_filled(llada_folder):
    """Those of the prompt, and one that the published algorithm has chosen as a token."""
    model = midward.load(llada_folder, device="cpu", dtype="float32")
    mask = model.family.mask_id
    prompt = [30, mask, 31, mask]
    settings = Sampling.for_model(model, length=16, block=4, steps=16, threshold=None, end="keep")

    class Whole:  # may look at all
        needs_all_steps = False
        on_start = on_step = on_end = lambda self, shown: None

    bare, watched = sample(model, [prompt], settings), sample(model, [prompt], settings, watchers=[Whole()])
    assert bare[0].raw_ids == watched[0].raw_ids
    with torch.no_grad():  # the mask wins everywhere
        states = model.hidden(torch.tensor([[30, 31, *[mask] * 16]]))
        model.causal_lm.get_output_embeddings().weight[mask] = 50 * states[0, 2:].mean(0)
    bare, watched = sample(model, [[30, 31]], settings), sample(model, [[30, 31]], settings, watchers=[Whole()])
    assert bare[0].raw_ids == watched[0].raw_ids
    assert mask in bare[0].raw_ids
