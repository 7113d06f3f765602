"""DiffusionGemma: transformers' own generate, seen through midward's steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from published import CHECKPOINTS, ROWS, write_tokenizer
from scipy.stats import betabinom
from watching import Watching

import midward
from midward import Request, Sampling, Trace, sample
from midward.dynamics.blockwise import States
from midward.dynamics.looks import Looks
from midward.dynamics.states import PooledStates
from midward.goals import Goal
from midward.guards import Exchange, Sizes, SRIBlocksGuard, fit_guards
from midward.guards import load as load_guard
from midward.guards.config import conformal_order
from midward.runs.measure import Case
from midward.sampling import noise
from midward.sampling.requests import Edit, Edited, Forced

if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
    pytest.skip("this transformers has no DiffusionGemma", allow_module_level=True)

PROMPTS = [[20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36], [40, 41]]
CANVAS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random checkpoint: 3 layers, 4 experts, canvases of 12."""
    text = {
        "vocab_size": ROWS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "top_k_experts": 2,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 16,
        "max_position_embeddings": 256,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.DiffusionGemmaConfig(
        text_config=text,
        vision_config={"model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 8, **vision},
        canvas_length=CANVAS,
        image_token_id=5,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("diffusion-gemma")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.DiffusionGemmaForBlockDiffusion(config)
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1 and "vision" not in name:
                parameter.data.normal_(std=0.3)
    network.save_pretrained(folder)
    _, (_, *turns, _), template = CHECKPOINTS["sdar"]
    write_tokenizer(folder, ["<pad>", "<eos>", *turns], template, end="<eos>")
    return folder


@pytest.fixture
def model(folder):
    return midward.load(folder, device="cpu", dtype="float32")


class Steps(Watching):
    def __init__(self, stop_after=None):
        super().__init__(self.keep)
        self.seen, self.stop_after = [], stop_after

    def keep(self, step):
        self.seen.append((step.index, step.rows, step.block, step.new.clone(), step.committed.clone()))
        assert not step.new[~step.committed].any()
        tokens, confidence = step.predictions
        assert torch.equal(tokens, step.ids[:, step.response]) and confidence.min() > 0
        if self.stop_after is not None and step.index >= self.stop_after:
            step.stopped.update(step.rows)


def settings(model, **changes):
    return Sampling.for_model(model, **{"length": 20, "steps": 10, **changes})


def test_tokens_are_those_of_generate(model):
    prompts = PROMPTS[:2]
    got = sample(model, prompts, settings(model))
    for prompt, response in zip(prompts, got, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(noise.row_seed(0, Request(prompt), prompt))
            (expected,) = model.network.generate(
                torch.tensor([prompt]),
                max_new_tokens=20,
                max_denoising_steps=5,
                t_max=0.8,
                t_min=0.4,
                eos_token_id=list(model.family.end_ids),
                pad_token_id=0,
                return_dict_in_generate=False,
            )
        expected = expected[len(prompt) :].tolist()[:20]
        assert response.raw_ids[: len(expected)] == expected
        assert set(response.raw_ids[len(expected) :]) <= {0}
        assert 0 < response.nfe <= 10


def test_batches_and_watchers_change_nothing(model):
    alone = [sample(model, [prompt], settings(model))[0] for prompt in PROMPTS]
    steps, trace = Steps(), Trace()
    assert sample(model, PROMPTS, settings(model), watchers=[steps, trace]) == alone
    assert sample(model, PROMPTS[::-1], settings(model), batch_size=2) == alone[::-1]
    assert sample(model, PROMPTS, settings(model, seed=1)) != alone
    assert len(steps.seen) == sum(response.nfe for response in alone)
    assert not model.network.model.decoder._forward_hooks
    for index, rows, (start, stop), _, committed in steps.seen:
        assert (start, stop) == ((0, 12) if index < 5 else (12, 20))
        assert committed[0, :start].all() and not committed[0, stop:].any() and len(rows) == 1
    assert all((trace.commit_step[row] < 10).all() for row in range(3))


def test_states_for_sri(model):
    pooled = PooledStates(reading="generated", needs_all_steps=True)
    responses = sample(model, PROMPTS, settings(model, length=12, steps=6), watchers=[pooled])
    assert [response.nfe for response in responses] == [6, 6, 6], "with all steps no row stops early"
    for row in range(3):
        states = pooled.states(row)
        assert states.shape == (6, 32) and states.isfinite().all() and states.std(0).max() > 0


@pytest.mark.parametrize("length", [CANVAS, 20])
def test_what_a_step_shows_stays_as_it_is(model, length):
    """So looks that wait are those that don't."""
    kept, readers = [], [States(model.hidden_size) for _ in range(2)]
    readers[1].reads_step = True
    watchers = [Looks(reader) for reader in readers]
    keep = Watching(lambda step: kept.extend((each, each.clone()) for each in (step.active_hidden, step.hidden)))
    sample(model, PROMPTS, settings(model, length=length), watchers=[keep, *watchers])
    assert kept and all(torch.equal(shown, then) for shown, then in kept)
    for row in range(len(PROMPTS)):
        late, now = (watcher.signal(row).numpy() for watcher in watchers)
        np.testing.assert_array_equal(late, now)


def test_a_watcher_can_stop_a_row(model):
    responses = sample(model, PROMPTS, settings(model), watchers=[Steps(stop_after=1)])
    assert [response.steps for response in responses] == [2, 2, 2]
    assert all(len(response.raw_ids) == 20 for response in responses)


def written(*edits):
    return Request(PROMPTS[0], seed=1, edits=edits)


class Edits(Steps):
    """Asks for an edit at its step."""

    def __init__(self, edit):
        super().__init__()
        self.edit = edit

    def edits(self, step):
        return {0: [self.edit]} if (step.rows, step.index) == ([0], self.edit.step) else {}


def test_what_is_written_stands_from_its_step_on(model):
    request = written(Edit(2, (Forced(3, (50, 51)), Forced(14, (60,)))))
    plain, steps, trace = Steps(), Steps(), Trace()
    sample(model, [Request(PROMPTS[0], seed=1)], settings(model), watchers=[plain])
    [response] = sample(model, [request], settings(model), watchers=[steps, trace])
    assert response.raw_ids[3:5] == [50, 51] and response.raw_ids[14] == 60 and response.steps == 10
    assert response.written == {3, 4, 14} and response.edits == (Edited(2, (3, 4, 14)),)
    for index, (*_, new, committed) in enumerate(steps.seen):
        assert index < 2 or (committed[0, [3, 4, 14]].all() and not new[0, [3, 4, 14]].any())
        assert index >= 2 or torch.equal(committed, plain.seen[index][-1])
    assert (trace.commit_step[0][[3, 4, 14]] == -2).all()


def test_who_writes_makes_no_difference_nor_do_others(model):
    edit = Edit(1, (Forced(0, (50, 51, 52)),))
    [wanted] = sample(model, [written(edit)], settings(model))
    requests = [Request(PROMPTS[0], seed=1), *PROMPTS[1:]]
    defence = Edits(edit)
    defence.needs_all_steps = True
    got = sample(model, requests, settings(model), watchers=[defence])
    assert got[0] == wanted and wanted.raw_ids[:3] == [50, 51, 52]
    alone = sample(model, PROMPTS[1:], settings(model))
    assert sample(model, [written(edit), *PROMPTS[1:]], settings(model)) == [wanted, *alone]


def test_an_end_that_is_written_ends_the_text(model):
    [response] = sample(model, [written(Edit(0, (Forced(2, (1,)),)))], settings(model))
    assert response.ended and len(response.ids) == 2 and set(response.raw_ids[3:]) == {0}


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda: Edit(1, (), "all"), "every step draws its canvas anew"),
        (lambda: Edit(6, (Forced(3, (50,)),)), "begins at response position 12"),
        (lambda: Edit(10, (Forced(13, (50,)),)), "too late: the response takes 10 steps"),
    ],
)
def test_what_cannot_be_written_is_refused(model, edit, message):
    for request, watchers in ((written(edit()), []), (PROMPTS[0], [Edits(edit())])):
        if "too late" in message and watchers:
            continue
        with pytest.raises(ValueError, match=f"request 0: .*{message}"):
            sample(model, [request], settings(model), watchers=watchers)


def test_record_and_chat(model):
    family = model.family
    assert (family.kind, family.mask_id, family.end_ids, family.pad_id) == ("canvas", None, (1,), 0)
    assert family.attention_block == CANVAS and (model.hidden_size, model.vocab_size) == (32, ROWS)
    assert Sampling.for_model(model) == Sampling(length=256, steps=48, order="entropy", temperature=0.8)
    (response,) = model.generate("t20 t21", length=12, steps=3)
    assert isinstance(response.text, str) and response.prompt_ids == model.encode("t20 t21")


@pytest.mark.parametrize(
    "changes", [{"order": "random"}, {"temperature": 0.0}, {"block": 4}, {"guidance": 1.0}, {"end": "keep"}]
)
def test_what_it_cannot_follow_is_refused(changes, model):
    with pytest.raises(ValueError, match=f"can't follow {next(iter(changes))}="):
        sample(model, PROMPTS, settings(model, **changes))


def test_what_needs_masks_is_refused(model, tmp_path):
    from midward.alignment import AlignError, align

    with pytest.raises(ValueError, match=r"request 0: .* can't follow forced spans"):
        sample(model, [Request(PROMPTS[0], forced=(Forced(0, (20,)),))], settings(model))
    with pytest.raises(midward.ModelError, match="not aligned or scored"):
        model.hidden(torch.tensor([[5, 6]]))
    with pytest.raises(AlignError, match="what is aligned here are diffusion models"):
        align(model, ["t20"], tmp_path / "out", length=12, window_start=2, window_end=6)


def test_an_old_transformers_is_named(folder, monkeypatch):
    monkeypatch.setattr("midward.models.diffusion_gemma.transformers", SimpleNamespace(__version__="5.18.0"))
    with pytest.raises(midward.ModelError, match=r"transformers 5\.18\.0 has no DiffusionGemma; 5\.23 has"):
        midward.load(folder, device="cpu")


def test_a_guard_by_blocks_goes_with_any_number_of_steps(model, tmp_path):
    """Progress is what a step accepts, its largest so far, since nothing is committed for good."""
    prompts = [[20 + n, 21 + n, 90 - n] for n in range(48)]
    cases = [Case(Goal(f"g{n}", str(n), "made-up", False), Request(prompt)) for n, prompt in enumerate(prompts)]
    steps = settings(model, length=2 * CANVAS, steps=8)
    paths = fit_guards(
        model,
        {"guard": SRIBlocksGuard()},
        cases[:36],
        cases[36:],
        tmp_path,
        refused=lambda text: len(text) % 2 == 1,
        sampling=steps,
        alpha=0.3,
        sizes=Sizes(8, 16, 12),
    )
    for count in (8, 4, 16):
        other = settings(model, length=2 * CANVAS, steps=count)
        guard = load_guard(paths["guard"], model, other)
        behind = guard.sample(model, prompts[:6], other)
        assert all(response.verdict.score is not None for response in behind)
        [alone] = guard.sample(model, prompts[3:4], other)
        assert alone.verdict == behind[3].verdict


@pytest.mark.slow  # a pool of 300 answers each
@pytest.mark.parametrize("is_edited", (False, True), ids=("renoised", "renoised and edited"))
def test_a_guard_by_blocks_keeps_its_rate_on_canvases(model, tmp_path, is_edited):
    """Twenty partings of one pool against the law of split conformal prediction, as in tools/refits.py."""
    train, calibrate, test, alpha = 60, 99, 100, 0.05
    rng = np.random.default_rng(0)
    edits = (Edit(step=3, write=(Forced(5, (40, 41)),)),) if is_edited else ()
    prompts = rng.integers(20, 90, size=(340, 4)).tolist()
    cases = [Case(Goal(f"g{n}", str(n), "made-up", False), Request(ids, edits=edits)) for n, ids in enumerate(prompts)]
    steps, odd = settings(model, length=2 * CANVAS, steps=8), lambda text: len(text) % 2 == 1
    sizes = {"sampling": steps, "alpha": 0.3, "sizes": Sizes(8, 16, 6)}
    paths = fit_guards(model, {"guard": SRIBlocksGuard()}, cases[:30], cases[30:40], tmp_path, refused=odd, **sizes)
    guard = load_guard(paths["guard"], model, steps)
    watcher = guard.watcher()
    sample(model, [case.request for case in cases[40:]], steps, watchers=[watcher], batch_size=16)
    tables = [watcher.signal(row).numpy() for row in range(len(cases) - 40)]
    pool = np.full((len(tables), 2, *tables[0].shape[1:]), np.nan)  # some end with their first canvas
    for row, table in zip(pool, tables, strict=True):
        row[: len(table)] = table
    hits = []
    for seed in range(20):
        training, calibrating, tested = np.split(
            pool[np.random.default_rng(seed).permutation(len(pool))][: train + calibrate + test],
            [train, train + calibrate],
        )
        guard.train(None, training)
        score = lambda tables: guard.score(None, [Exchange(Request("-"), signal=table) for table in tables])  # noqa: E731
        guard.calibrate(score(calibrating), alpha)
        hits.append(int(guard.flag(score(tested)).sum()))
    order = conformal_order(calibrate, alpha)
    low, high = betabinom(test, calibrate + 1 - order, order).ppf([0.025, 0.975])
    assert sum(low <= hit <= high for hit in hits) >= 17, hits
    assert 0.01 < np.mean(hits) / test < 0.12, hits
