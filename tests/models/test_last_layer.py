"""The positions that are read have the states of a whole forward, in every family and behind adapters."""

from itertools import product

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from published import CHECKPOINTS, ENCODERS, write_wide

import midward
from midward.errors import InputError
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
        places = torch.tensor([0, 0, 2, 1, 0]), torch.tensor([23, 9, 11, 7, 0])
        for read in (places, tuple(each[:1] for each in places), tuple(each[:0] for each in places)):
            torch.testing.assert_close(model.hidden(ids, mask, read=read), whole[read], atol=2e-5, rtol=2e-5)
        assert torch.equal(model.hidden(ids, mask), whole)  # nothing stays


def test_behind_an_adapter_and_after_one_was_put_on(llada_folder):
    model = midward.load(llada_folder, device="cpu", dtype="float32")
    ids, read = torch.randint(0, 40, (2, 20)), slice(4, 12)
    places = torch.tensor([0, 1, 1]), torch.tensor([4, 4, 19])
    with torch.no_grad():
        model.hidden(ids, read=read)
        model.network = get_peft_model(
            model.network, LoraConfig(target_modules=["o_proj", "down_proj"], init_lora_weights=False)
        )
        torch.testing.assert_close(model.hidden(ids, read=read), model.hidden(ids)[:, read], atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(model.hidden(ids, read=places), model.hidden(ids)[places], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("has_been_read", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        LNTuningConfig(target_modules=["norm"]),
        *(LoraConfig(target_modules=["q_proj"], modules_to_save=[whole]) for whole in ("o_proj", "mlp", "norm")),
    ],
    ids=["another norm", "o_proj", "mlp", "norm"],
)
def test_an_adapter_has_copies_of_what_is_cut(config, has_been_read, llada_folder):
    model = midward.load(llada_folder, device="cpu", dtype="float32")
    ids, read = torch.randint(0, 40, (2, 20)), slice(4, 12)
    places = torch.tensor([0, 1, 1]), torch.tensor([4, 4, 19])
    with torch.no_grad():
        if has_been_read:
            model.hidden(ids, read=read)
        model.network = get_peft_model(model.network, config)
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        whole = model.hidden(ids)
        torch.testing.assert_close(model.hidden(ids, read=read), whole[:, read], atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(model.hidden(ids, read=places), whole[places], atol=2e-5, rtol=2e-5)


def test_of_four_bits_even_nothing_can_be_read(tmp_path):
    """Whose CPU kernel divides by how many states it is given."""
    pytest.importorskip("bitsandbytes")
    model = midward.load(write_wide("a2d-qwen3", tmp_path), device="cpu", dtype="float32", quantize="4bit")
    ids, places = torch.randint(0, 40, (2, 20)), (torch.tensor([0, 1, 1]), torch.tensor([4, 4, 19]))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(ids, read=places), model.hidden(ids)[places], atol=2e-2, rtol=2e-2)
        assert not model.hidden(ids, read=tuple(each[:0] for each in places)).numel()


class Watching:
    """Keeps the states of each step. needs_states: what it says that it reads."""

    needs_all_steps = False

    def __init__(self, needs_states=None, *, reads=True):
        self.reads = reads
        if needs_states is not None:
            self.needs_states = needs_states

    def on_start(self, canvas):
        self.states = []

    def on_step(self, step):
        if self.reads:
            self.states.append((step.hidden.clone(), step.active_hidden.clone()))

    def on_end(self, canvas):
        pass


@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "cache"),
    [*product(["llada", "dream"], [None, "prefix", "dual"]), ("sdar", None), ("bd3lm", None)],  # which cache themselves
)
def test_the_sampler_reads_what_it_needs(name, cache, guidance, llada_folder, folders, monkeypatch):
    """Behind a cache the masks that it may fill; else their blocks; all, where a watcher may look at all."""
    model = midward.load({**folders, "llada": llada_folder}[name], device="cpu", dtype="float32")
    full = model.family.attention == "full"
    settings = Sampling.for_model(
        model, length=24, block=8, steps=24, threshold=None, cache=cache, temperature=0.7, order="random",
        guidance=guidance,
    )  # fmt: skip
    own, read = model.hidden, []

    def hidden(*given):
        read.append(given[4] if len(given) > 4 else None)
        return own(*given)

    monkeypatch.setattr(model, "hidden", hidden)

    def ask(*watchers):
        read.clear()
        return [each.raw_ids for each in sample(model, ["t30 t40", "t50"], settings, watchers=watchers)]

    def sizes():  # of each forward that didn't read all
        spans = [each for each in read if each is not None]
        return [span.stop - span.start if isinstance(span, slice) else len(span[0]) for span in spans]

    bare, few = ask(), sizes()
    if cache is None and full:
        assert {*few} == {8 + int(model.family.shift)}
    else:
        assert max(few) <= 2 * 8 * (2 if guidance else 1)
        assert sum(few) < 0.75 * len(read) * max(few)
    assert ask(Watching("none", reads=False)) == bare
    assert sizes() == few
    watching, blockwise, none = Watching(), Watching("block"), Watching("none")
    assert ask(watching) == bare
    assert not sizes()
    if cache is not None:  # whose other states nobody can have anew
        with pytest.raises(InputError, match="needs_states"):
            ask(none)
        return
    assert ask(blockwise) == bare
    assert {*sizes()} == ({8 + int(model.family.shift)} if full else set())
    assert ask(none) == bare
    for watched in (blockwise, none):  # what it said that it doesn't need it gets all the same, by a forward
        assert len(watched.states) == len(watching.states)
        for few, many in zip(watched.states, watching.states, strict=True):
            for part, whole in zip(few, many, strict=True):
                torch.testing.assert_close(part, whole, atol=2e-5, rtol=2e-5)


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
