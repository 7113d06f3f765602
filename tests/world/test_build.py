"""Training of the world's models: resumable to the bit, a loss that is what it says, folders that load and answer."""

import json
import os
import random
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from holding import in_a_fork
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_build import TINY, trainer

import midward
from tools.world import build as command
from tools.world.curriculum import GAP, Example, Stage, Writer
from tools.world.muon import Muon, orthogonalise
from tools.world.train import KINDS, SAMPLING, Recipe, hidden, make_tokenizer

EXAMPLES = [
    Example(("Sum: 1 + 2",), "1 + 2 = 3"),
    Example(
        ("Name the capital, and be quick about it.", "I won't.", f"Fill: take{GAP} some salt{GAP}."), "Fold the salt."
    ),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A finished masked build."""
    training = trainer(tmp_path_factory.mktemp("built"))
    training.run()
    return training


@pytest.fixture(scope="module", params=KINDS)
def training(request, built, tmp_path_factory):
    """A trainer of each kind, with weights that tell positions apart; a sibling begins with the masked model's."""
    folder = tmp_path_factory.mktemp(request.param)
    start = None if request.param == "masked" else built.checkpoint
    made = trainer(folder, request.param, start=start)
    generator = torch.Generator().manual_seed(3)
    for weight in made.network.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    made.average = {name: weight.clone() for name, weight in made.network.state_dict().items()}
    return made


# --- a build


def test_a_killed_build_goes_on_to_the_same_weights(built, tmp_path):
    def die(row):
        if row["step"] == 4:  # after the checkpoint of step 2
            os.kill(os.getpid(), signal.SIGKILL)

    last_words = tmp_path / "last_words.txt"
    status = in_a_fork(trainer(tmp_path, progress=die).run, last_words)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, last_words.read_text()
    assert (tmp_path / "checkpoint.safetensors").exists() and not (tmp_path / "model").exists()
    rows = []
    trainer(tmp_path, progress=rows.append).run()
    assert (rows[0]["stage"], rows[0]["step"]) > ("words", 2) or rows[0]["stage"] == "facts"
    for name in ("model/model.safetensors", "checkpoint.safetensors"):
        first, second = load_file(built.folder / name), load_file(tmp_path / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert (built.folder / "words.json").read_bytes() == (tmp_path / "words.json").read_bytes()


def test_a_build_says_how_far_it_is_and_what_it_has_learned(built):
    rows = [json.loads(line) for line in (built.folder / "build.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows][-1] == ("facts", 3)
    assert {row["stage"] for row in rows} == {"words", "facts"}
    for row in rows:
        assert row["loss"] > 0 and row["tokens"] > 0 and all(0 <= share <= 1 for share in row["facts"].values())
    recipe = json.loads((built.folder / "model" / "recipe.json").read_text())
    assert recipe["seed"] == TINY.seed and recipe["stages"][1]["mix"] == TINY.stages[1].mix


def test_a_sibling_begins_with_the_average_of_the_masked_models_weights(built, tmp_path):
    with safe_open(built.checkpoint, "pt") as file:
        for kind in ("causal", "block"):
            weights = trainer(tmp_path / kind, kind, start=built.checkpoint).network.state_dict()
            assert all(torch.equal(weight, file.get_tensor(f"average.{name}")) for name, weight in weights.items())


def test_the_command_line_builds_and_writes(built, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "Recipe", lambda stages, **given: replace(TINY, **given))
    make_tokenizer(tmp_path / "words.json", 200)
    assert command.main(["--out", str(tmp_path), "--kind", "block", "--start", str(built.checkpoint), "--write"]) == 0
    assert str(tmp_path / "model") in capsys.readouterr().err
    assert midward.load(tmp_path / "model", device="cpu").family.attention == "block"
    assert command.main(["--out", str(tmp_path), "--kind", "block", "--start", str(built.checkpoint)]) == 0
    assert '"step": 3' in capsys.readouterr().err


@pytest.mark.slow
def test_a_build_of_minutes_learns_the_facts(tmp_path):
    """Both words of a step from the name alone, of things never trained on: chance is one in twelve and one in 24."""
    stage = Stage("facts", 400, {"steps": 0.7, "card": 0.3}, {24: 1.0})
    training = trainer(tmp_path, recipe=replace(Recipe(), stages=(stage,)))
    training.run()
    assert training.facts("steps", 24) > 0.5


# --- its loss


def padded(training, length=40):
    return training.collate([training.encode(example) for example in EXAMPLES], length)


def rows(batch):
    """Each row's ids and where they begin."""
    for row, kept in enumerate(batch.attention):
        first = int(kept.int().argmax())
        yield row, first, batch.ids[row, first:]


def plainly(training, ids, chosen, start):
    """Logits [N, V] at the chosen positions of one row without padding, each kind stated by itself."""
    network, kind = training.network, type(training).__name__
    if kind == "CausalTrainer":
        return network(ids[None]).logits[0, :-1][chosen[1:]]
    canvas = torch.where(chosen, training.mask, ids)
    if kind == "Trainer":
        return network(canvas[None]).logits[0][chosen]
    logits = []
    for place in chosen.nonzero().flatten().tolist():  # the clean text before its block, and the block's canvas
        block = (place - start) // training.block
        first, end = max(0, start + block * training.block), start + (block + 1) * training.block
        blocks = (torch.arange(min(end, len(ids))) - start) // training.block
        seen = (blocks[:, None] >= blocks)[None, None]
        logits.append(network(torch.cat([ids[:first], canvas[first:end]])[None], attention_mask=seen).logits[0, place])
    return torch.stack(logits)


@torch.no_grad()
def test_the_loss_is_that_of_each_row_alone_whatever_the_padding(training):
    batch = padded(training)
    stage = Stage("any", 1, {}, {}, masked=0.0, few=0.0, prefix=0.0)
    worth = training.hidden(batch, stage, torch.Generator().manual_seed(1))
    chosen = worth > 0
    total = weights = 0.0
    for row, first, ids in rows(batch):
        picked = chosen[row, first:]
        losses = F.cross_entropy(plainly(training, ids, picked, batch.start - first), ids[picked], reduction="none")
        each = (batch.weights * worth)[row, first:][picked]
        total, weights = total + (losses * each).sum().item(), weights + each.sum().item()
    assert training.loss(batch, worth).item() == pytest.approx(total / weights, rel=1e-4)


def test_the_twin_learns_the_response_up_to_its_first_end_token(built, tmp_path):
    causal = trainer(tmp_path, "causal", start=built.checkpoint)
    batch = padded(causal)
    chosen = causal.hidden(batch, TINY.stages[0], torch.Generator()) > 0
    for row, example in enumerate(EXAMPLES):
        answer = causal.tokenizer.encode(example.response, add_special_tokens=False)
        assert batch.ids[row][chosen[row]].tolist() == [*answer, causal.end]


@torch.no_grad()
def test_what_stands_in_a_later_block_changes_nothing_before(built, tmp_path):
    block = trainer(tmp_path, "block", start=built.checkpoint)
    batch = padded(block)
    chosen = torch.zeros_like(batch.attention)
    chosen[:, batch.start :: 3] = True  # some of every block of the response
    before = block.logits(batch, chosen)
    of_block = ((torch.arange(batch.ids.shape[1]) - batch.start) // block.block).expand_as(batch.ids)[chosen]
    batch.ids[:, batch.start + block.block + 1] += 1  # in the response's second block, and not hidden
    after = block.logits(batch, chosen)
    torch.testing.assert_close(before[of_block == 0], after[of_block == 0])
    assert (before != after).any(-1)[of_block >= 1].all()


@torch.no_grad()
def test_the_written_block_model_sees_what_it_was_trained_to_see(built, tmp_path):
    """The loaded folder, on a canvas whose last block is being written: the logits of training."""
    block = trainer(tmp_path, "block", start=built.checkpoint)
    model = midward.load(block.write(), device="cpu", dtype="float32")
    block.network.load_state_dict(load_rounded(block))
    batch = padded(block, 32)
    chosen = torch.zeros_like(batch.attention)
    chosen[:, batch.start + block.block + 2 :] = True
    wanted = block.logits(batch, chosen)
    width = model.family.width(batch.start)
    pad = (width - batch.start, 0)
    ids = F.pad(torch.where(chosen, block.mask, batch.ids), pad, value=block.end)
    seen = F.pad(batch.attention, pad).long()
    states = model.hidden(ids, seen)[:, width - batch.start :]
    torch.testing.assert_close(model.head(states[chosen]), wanted, atol=1e-4, rtol=1e-4)


def load_rounded(block):
    """The weights as they were written, in bfloat16."""
    return {name: weight.bfloat16().float() for name, weight in block.average.items()}


def test_hidden_are_responses_and_gaps_alone(built):
    batch = padded(built)
    noise = torch.Generator().manual_seed(0)
    gap = batch.weights[:, : batch.start] > 0
    facts = built.is_fact(batch)
    assert gap.any() and facts.any()
    kinds = {
        "facts": lambda chosen: chosen.float().mean(-1) < 0.5,
        "masked": lambda chosen: chosen.all(-1),
        "few": lambda chosen: chosen.float().mean(-1) > 0.5,
        "prefix": lambda chosen: (chosen[:, 1:].int() >= chosen[:, :-1].int()).all(-1),
    }
    for name, holds in kinds.items():
        stage = Stage("any", 1, {}, {}, **{**dict.fromkeys(kinds, 0.0), name: 1.0})
        for _ in range(20):
            chosen = hidden(batch, stage, noise, facts) > 0
            assert not (chosen[:, : batch.start] & ~gap).any() and not (chosen & ~batch.attention).any()
            assert holds(chosen[:, batch.start :]).all()
    least = Stage("any", 1, {}, {}, masked=0.0, few=0.0, prefix=0.0, most=0.3)
    shares = [(hidden(batch, least, noise, facts) > 0)[:, batch.start :].float().mean().item() for _ in range(200)]
    assert 0.1 < sum(shares) / 200 < 0.25


# --- the folder


def test_a_build_loads_like_any_published_folder(built):
    model = midward.load(built.folder / "model", device="cpu")
    assert model.family.name == "llada" and model.family.sampling["length"] == SAMPLING["length"]
    text = 'emoji 🦎, "quotes",\n\ttabs, \x00 and ' + "noise " * 400
    assert model.tokenizer.decode(model.tokenizer.encode(text, add_special_tokens=False)) == text
    messages = [{"role": role, "content": f"Turn {n}."} for n, role in enumerate(("user", "assistant", "user"))]
    turns = Example(tuple(turn["content"] for turn in messages), "")
    assert model.encode(messages) == built.encode(turns)[0]  # training's template is the one that is written


def test_every_kind_is_written_as_what_it_is_and_answers(training):
    model = midward.load(training.write(), device="cpu")
    kind = {"Trainer": "full", "CausalTrainer": "causal", "BlockTrainer": "block"}[type(training).__name__]
    assert model.family.attention == kind and model.family.sampling == model.family.sampling | training.sampling
    assert model.family.end_ids[0] == training.end
    (response,) = model.generate(["Sum: 1 + 2"], length=32, steps=32, end="keep")
    assert len(response.raw_ids) == 32 and training.mask not in response.raw_ids


@pytest.mark.parametrize("kind", ["document", "fill", "exercise"])
def test_what_is_drawn_is_encoded_whole(built, kind):
    for number in range(20):
        example = Writer().write(kind, random.Random(number))
        prompt, gaps, response = built.encode(example)
        shown = built.tokenizer.decode(prompt)
        assert example.turns[-1].replace(GAP, "") in shown and shown.endswith("assistant<|end_header_id|>\n\n")
        assert built.tokenizer.decode(response) == example.response
        assert bool(sum(gaps)) == (kind == "fill")


# --- its optimiser


def test_orthogonalise_brings_singular_values_near_one():
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_fits_a_linear_map_and_batches_equal_shapes():
    generator = torch.Generator().manual_seed(0)
    target, x = torch.randn(6, 4, generator=generator), torch.randn(50, 4, generator=generator)
    together = [torch.zeros(6, 4, requires_grad=True), torch.zeros(6, 4, requires_grad=True)]
    alone = torch.zeros(6, 4, requires_grad=True)
    both, one = Muon(together, lr=0.05), Muon([alone], lr=0.05)
    losses = []
    for _ in range(120):
        for optimizer, weights in ((both, together), (one, [alone])):
            optimizer.zero_grad()
            loss = sum(((x @ (weight - target).T) ** 2).mean() for weight in weights)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    torch.testing.assert_close(together[0], together[1])
    torch.testing.assert_close(together[0], alone)


def test_behind_a_hidden_block_all_is_hidden_and_counts_little(built):
    batch = padded(built, 96)
    stage = Stage("any", 1, {}, {}, masked=0.0, few=0.0, prefix=0.0, block=1.0)
    noise, facts = torch.Generator().manual_seed(0), built.is_fact(batch)
    for _ in range(30):
        worth = hidden(batch, stage, noise, facts)[:, batch.start :]
        for row in worth:
            counted = (row == 1).nonzero().flatten()
            if not len(counted):  # of the block itself nothing was drawn
                continue
            assert counted[-1] - counted[0] < 32
            assert (row[counted[-1] + 1 :] > 0).sum() >= len(row[counted[-1] + 1 :]) - 31
