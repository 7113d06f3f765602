"""Checkpoints of ZHZisZZ/dllm's recipes (a2d, bd3lm, bert): official logits and tokens, and what no config says."""

import json
import re
import shutil

import pytest
import torch
from checkpoints import FIXTURES
from published import ENCODERS, ROWS, write, write_encoder
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import midward
from midward import Request, Sampling, sample
from midward.alignment import SentenceSet, align
from midward.dynamics import PooledStates
from midward.sampling import Forced, Span, span_gradient, span_log_probs
from midward.sampling.schedules import rounded

#: How far a logit may be off. ModernBERT's reach 32, and float32 is 3e-4 off float64 there; with the kernels that they
#: were made by (AVX-512) both differ by nothing.
GOLDEN = {"a2d-qwen3-tiny": 1e-4, "modernbert-tiny": 5e-4}
MASK = 3


def logits(model, ids, mask=None):
    with torch.no_grad():
        return model.head(model.hidden(ids, mask))


def load(folder, **options):
    return midward.load(folder, **{"device": "cpu", "dtype": "float32", **options})


def changed(folder, to, **entries):
    """A copy of a checkpoint with these entries of config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **entries}))
    return to


def prompts(*lengths):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(10, ROWS, (length,), generator=generator).tolist() for length in lengths]


# --- the official numbers -------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", GOLDEN)
def test_official_logits(name, padding):
    golden = load_file(FIXTURES / name / "golden.safetensors")
    ids, model = golden["ids"], load(FIXTURES / name)
    if padding == "left":  # as without it
        pads = torch.full((len(ids), 9), model.family.pad_id)
        mask = torch.cat([torch.zeros_like(pads), torch.ones_like(ids)], 1)
        difference = logits(model, torch.cat([pads, ids], 1), mask)[:, 9:] - golden["logits_none"]
        assert difference.abs().max() < 1e-4 * golden["logits_none"].abs().max()
        return
    mask = golden.get(padding, torch.ones_like(ids))
    difference = (logits(model, ids, None if mask.all() else mask) - golden[f"logits_{padding}"]).abs()
    assert difference[mask.bool()].max() < GOLDEN[name]


@pytest.mark.parametrize("kind", ["tokens_b32s32", "tokens_b8s32", "tokens_b16s8", "tokens_b32s32shift"])
@pytest.mark.parametrize("name", GOLDEN)
def test_official_tokens(name, kind, tmp_path):
    """Each prompt alone, and all in one batch. That logits are shifted stands in config.json."""
    golden = load_file(FIXTURES / name / "golden.safetensors")
    block, steps = map(int, re.search(r"b(\d+)s(\d+)", kind).groups())
    folder = FIXTURES / name
    if kind.endswith("shift"):
        folder = changed(folder, tmp_path / "shifted", right_shift_logits=True)
    model = load(folder)
    assert model.family.shift == kind.endswith("shift")
    rows = [[token for token in row if token >= 0] for row in golden["prompts"].tolist()]
    assert len({len(row) for row in rows}) > 1
    settings = Sampling.for_model(model, length=32, steps=steps, block=block, end="keep")
    assert settings.schedule == "rounded"
    for batch_size in (1, 3):
        responses = sample(model, rows, settings, batch_size=batch_size)
        assert [response.raw_ids for response in responses] == golden[kind].tolist()


def transfers(masks, steps):
    """Commits of each step as dllm counts them: round(masks left * (1 - (1 - alpha(s)) / (1 - alpha(t)))), float32."""
    counts = []
    for step in range(steps):
        t, s = (torch.tensor(at / steps) for at in (steps - step, steps - step - 1))
        alpha = {"t": 1 - t, "s": 1 - s}
        share = 1 - ((1 - alpha["s"]) / (1 - alpha["t"])).item()
        counts.append(int(torch.round(torch.tensor(masks, dtype=torch.float64) * share)))
        masks -= counts[-1]
    return counts


def test_the_rounded_schedule():
    for masks in (0, 1, 5, 12, 31, 32, 128):
        for steps in (1, 2, 3, 5, 7, 8, 20, 32):
            assert rounded(masks, steps) == transfers(masks, steps)
            assert sum(rounded(masks, steps)) == masks and min(rounded(masks, steps)) >= 0
    assert rounded(32, 5) != sorted(rounded(32, 5), reverse=True)  # not the even one


def block_sampler(model, prompt, *, length, block, steps):
    """Response tokens at temperature 0 of the published block sampler: the prompt is padded to whole blocks on its
    left; `steps` for each block, which sees all before it and nothing behind."""
    pad = -len(prompt) % block
    x = torch.tensor([[model.family.pad_id] * pad + prompt])
    for start in range(0, length, block):
        count = min(block, length - start)
        x = torch.cat([x, torch.full((1, count), MASK)], 1)
        mask = torch.ones_like(x)
        mask[:, :pad] = 0
        for transfer in transfers(count, steps):
            here = logits(model, x, mask)[0].double()
            if model.family.shift:
                here = torch.cat([here[:1], here[:-1]])
            p, token = here.softmax(-1).max(-1)
            p[(x[0] != MASK) | (torch.arange(x.shape[1]) < x.shape[1] - count)] = -torch.inf
            for place in p.topk(transfer).indices.tolist():
                x[0, place] = token[place]
    return x[0, -length:].tolist()


@pytest.mark.parametrize("shift", [False, True])
def test_the_tokens_of_block_diffusion(shift, tmp_path):
    model = load(write("bd3lm", tmp_path / "m", right_shift_logits=shift))
    rows = prompts(5, 8, 19, 11)
    settings = Sampling(length=20, steps=15, block=8, schedule="rounded", end="keep")  # the last block has 4
    expected = [block_sampler(model, row, length=20, block=8, steps=5) for row in rows]
    assert len({token for row in expected for token in row}) > 6, "the model says too little for a comparison"
    for batch_size in (1, 4):
        responses = sample(model, rows, settings, batch_size=batch_size)
        assert [response.raw_ids for response in responses] == expected


def test_scores_and_gradients_of_block_diffusion_are_of_the_response(tmp_path):
    """A prompt that is no whole number of blocks is padded, and slots still count its tokens."""
    model = load(write("bd3lm", tmp_path / "m"))
    [row] = prompts(11)
    span = Span(row, 2, (40, 41, 42), forced=(Forced(0, (50,)),))
    [score] = span_log_probs(model, [span], mode="parallel", length=16)
    x = torch.tensor([[0] * 5 + row + [MASK] * 16])
    x[0, 16] = 50
    mask = (torch.arange(32) >= 5).long()[None]
    table = logits(model, x, mask).log_softmax(-1)[0]
    assert score.tokens == pytest.approx([table[18 + k, token].item() for k, token in enumerate(span.ids)], abs=1e-4)
    gradient = span_gradient(model, span, [0, 10], length=16)
    step, swap = 1e-2, 60
    embedding = model.causal_lm.get_input_embeddings().weight.data
    before = embedding[row[10]].clone()
    assert row.count(row[10]) == 1 and row[10] not in (MASK, 50)
    losses = []
    for sign in (1, -1):
        embedding[row[10]] = before + sign * step * (embedding[swap] - before)
        losses.append(-span_log_probs(model, [span], mode="parallel", length=16)[0].total)
    embedding[row[10]] = before
    expected = gradient[1, swap] - gradient[1, row[10]]
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(expected.item(), rel=0.05, abs=0.02)


def test_training_sees_the_samplers_blocks(tmp_path, monkeypatch):
    """The response of a training row begins where a block does."""
    model, widths = load(write("bd3lm", tmp_path / "m")), []
    own = midward.LanguageModel.hidden

    def hidden(self, ids, mask=None, *rest):
        widths.append(ids.shape[1] - 10)
        assert mask is not None and (mask[:, -10:] == 1).all()
        return own(self, ids, mask, *rest)

    monkeypatch.setattr(midward.LanguageModel, "hidden", hidden)
    sentences = SentenceSet(safe=["t60 t61"], harmful=["t64 t65"])
    harmful = ["t50 t51 t52", "t53", "t54 t55"]
    align(
        model, harmful, tmp_path / "a", sentences=sentences, benign=[("t70", "t72")], length=10, window_start=2,
        window_end=6, lora_rank=2, max_steps=1,
    )  # fmt: skip
    assert widths and all(width % 8 == 0 for width in widths)


# --- what no config says --------------------------------------------------------------------


def test_blocks_are_told_by_the_name_or_the_config(folders, tmp_path):
    full = folders["a2d-qwen3"]
    assert load(full).family.attention == "full"
    named = load(shutil.copytree(full, tmp_path / "Qwen3-0.6B-diffusion-bd3lm-v0.1"))
    assert (named.family.name, named.family.attention_block, named.family.sampling["block"]) == ("bd3lm", 32, 32)
    # what config.json says goes before the name, full attention too
    said = load(changed(full, tmp_path / "a" / "bd3lm", block_size=4))
    assert (said.family.attention, said.family.attention_block) == ("block", 4)
    assert load(changed(full, tmp_path / "b" / "bd3lm", block_size=None)).family.attention == "full"
    # other families' names mean nothing
    assert load(shutil.copytree(folders["dream"], tmp_path / "c" / "bd3lm")).family.name == "dream"
    prints = {named.fingerprint, said.fingerprint, load(full).fingerprint}
    assert len(prints) == 3


def test_the_mask_token_is_the_tokenizers(folders, tmp_path):
    folder = shutil.copytree(folders["a2d-qwen3"], tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "mask_token": "t20"}))
    assert load(folder).family.mask_id == 20
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load(folder).family.mask_id == 3  # <|mask|> by its text
    tokenizer = (folder / "tokenizer.json").read_text().replace("<|mask|>", "<|nothing|>")
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings).replace("<|mask|>", "<|nothing|>"))
    with pytest.raises(midward.ModelError, match=r"names the mask token; set mask_token_id in config\.json"):
        load(folder)
    assert load(changed(folder, tmp_path / "n", mask_token_id=21)).family.mask_id == 21


def test_ends(folders, tmp_path):
    """The tokenizer's end and padding end a response, and so do the config's and the turn's."""
    folder = changed(folders["a2d-qwen3"], tmp_path / "m", eos_token_id=[30, 31])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|im_end|>"}))
    family = load(folder).family
    assert (family.end_ids, family.pad_id) == ((2, 0, 30, 31), 0)
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|im_end|>"}))
    family = load(folder).family
    assert (family.end_ids, family.pad_id) == ((2, 30, 31), 2)


def test_a_template_that_can_think_does_not(folders, tmp_path):
    folder = shutil.copytree(folders["a2d-qwen3"], tmp_path / "m")
    plain = (folder / "chat_template.jinja").read_text()
    thinks = plain + "{% if enable_thinking is defined and enable_thinking is false %}t50 t51{% endif %}"
    (folder / "chat_template.jinja").write_text(thinks)
    model, bare = load(folder), load(folders["a2d-qwen3"])
    assert model.encode("t20") == [*bare.encode("t20"), 50, 51]
    assert model.fingerprint != bare.fingerprint


def test_tied_and_scaled_configs(tmp_path):
    """A tied head has no weight of its own; Llama 3's scaled rotary embedding is the backbone's own affair."""
    tied = load(write("a2d-qwen3", tmp_path / "tied", tie_word_embeddings=True))
    assert tied.causal_lm.lm_head.weight is tied.causal_lm.model.embed_tokens.weight
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    plain, scaled = (
        load(write("a2d-llama", tmp_path / "p")),
        load(write("a2d-llama", tmp_path / "s", rope_scaling=scaling)),
    )
    ids = torch.arange(10, 40)[None]
    assert (logits(plain, ids) - logits(scaled, ids)).abs().max() > 1e-2


# --- encoders -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_compute_what_transformers_does(name, folders):
    """Under any padding and either attention, without dropout; RoBERTa's positions begin behind its padding id."""
    model = load(folders[name])
    network_class, *_ = ENCODERS[name]
    theirs = network_class.from_pretrained(folders[name], attn_implementation="sdpa").eval()
    ids = torch.randint(10, ROWS, (3, 30), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    with torch.no_grad():
        expected = theirs(input_ids=ids.masked_fill(mask == 0, model.family.pad_id), attention_mask=mask).logits
    assert expected.std() > 0.5
    ours = logits(model, ids, mask)
    assert (ours - expected)[mask.bool()].abs().max() < 1e-4 * expected.abs().max()
    model.network.train()
    assert torch.equal(logits(model, ids, mask), ours)
    assert model.max_positions == 128
    longest = torch.full((1, 128), 20)
    assert logits(model, longest).isfinite().all()
    # A window that holds padding alone.
    left = torch.cat([torch.full((1, 60), model.family.pad_id), ids[:1]], 1)
    seen = torch.cat([torch.zeros(1, 60), torch.ones(1, 30)], 1).long()
    assert (logits(model, left, seen)[:, 60:] - logits(model, ids[:1])).abs().max() < 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_batches_of_encoders_change_nothing(name, folders):
    model = load(folders[name])
    rows = prompts(3, 17, 9)
    for settings in (
        Sampling.for_model(model, length=12, steps=7, block=6),
        Sampling(length=12, steps=6, temperature=0.8, guidance=0.5),
        Sampling(length=12, threshold=0.2, end="keep"),
    ):
        alone = [sample(model, [row], settings)[0] for row in rows]
        assert sample(model, rows, settings, batch_size=3) == alone
        assert sample(model, rows[::-1], settings, batch_size=2) == alone[::-1]
    states = PooledStates(layers=(0, 2, -1))
    sample(model, rows, Sampling(length=12, steps=4), watchers=[states])
    assert all(states.states(row, layer).shape == (4, 32) for row in range(3) for layer in (0, 2, -1))


def test_what_encoders_refuse(folders, tmp_path):
    model = load(folders["bert"])
    for cache in ("prefix", "dual"):
        with pytest.raises(ValueError, match="keeps no keys and values"):
            sample(model, prompts(3), Sampling(length=8, steps=8, cache=cache))
    with pytest.raises(midward.ModelError, match="is_decoder=true"):
        load(changed(folders["bert"], tmp_path / "m", is_decoder=True))


def test_what_pretraining_left_beside_is_no_error(tmp_path):
    from safetensors.torch import save_file

    folder = write_encoder("bert", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "bert.pooler.dense.weight": torch.ones(32, 32)}, folder / "model.safetensors")
    load(folder)
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(midward.ModelError, match="1 missing weights"):
        load(folder)


def test_a_spelt_end_ends_the_text(tmp_path):
    """[/Answer] is no token of BERT's: the text ends where it begins, also inside a token."""
    folder = write_encoder("bert", tmp_path / "m")
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "<unk>", *"abcdefgh", "\n[", "/Ans", "wer", "]", "Answer]", " ", "/"]
    plain = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", eos_token="[PAD]", pad_token="[PAD]", mask_token="[MASK]"
    )
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    model = load(folder)
    number = {word: at for at, word in enumerate(words)}
    spelt = [number[word] for word in ("\n[", "/Ans", "wer", "]")]
    answer = [number[word] for word in "abc"]
    assert model.end_of([*answer, *spelt, *answer, 0]) == 3
    assert model.decode([*answer, *spelt, *answer]) == "abc"
    assert model.end_of([*answer, 0, *spelt]) == 3  # the end token comes first
    assert model.end_of([*answer, *spelt[:3]]) is None
    assert model.end_of(spelt) == 0
    forced = Request([5, 6], forced=(Forced(0, tuple(answer)), Forced(3, tuple(spelt)), Forced(7, (8,))))
    [response] = sample(model, [forced], Sampling(length=8, steps=8))
    assert (response.text, response.ids, response.ended) == ("abc", answer, True)
    [kept] = sample(model, [forced], Sampling(length=8, steps=8, end="keep"))
    assert kept.text == "abc\n[/Answer]" + words[8]
