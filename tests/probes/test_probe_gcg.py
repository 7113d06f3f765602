"""The suffix search: it finds what is there to be found, keeps the best, and goes on where it stopped."""

import json
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from near import near
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from typer.testing import CliRunner

import midward
from midward import goals
from midward.attacks._suffix import plain_tokens
from midward.cli import app, probe_gcg
from midward.goals import Goal
from midward.judges import bench as verdicts
from midward.probes import _gcg_readings, gcg
from midward.probes._candidates import SuffixPrompt, start_of, swaps
from midward.sampling import Forced, Request, Sampling, Span, sample, span_gradient

LENGTH = 16
SAMPLING = Sampling(length=LENGTH, steps=4, block=8)
AIM = gcg.Aim(6, "t40 t41", (40, 41))
DRAFTS = ((Forced(0, (50,)), Forced(9, (51,))), (), (Forced(3, (52,)),))
SMALL = gcg.Gcg(tokens=3, iterations=7, width=4, top=16, stop_loss=0.0)


@pytest.fixture(scope="module")
def harmful():
    return goals.load("sandbox", count=2)


@pytest.fixture(scope="module")
def bpe():
    """The embedded model, for its tokenizer: pieces of words that merge with their neighbours."""
    return midward.load("sandbox", device="cpu", dtype="float32")


def aims(harmful):
    return {goal: [gcg.Aim(0, "t30", (30,)), AIM] for goal in harmful}


def rms_norm(module, states):
    return module.weight * states * (states.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def told(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# --- the loss and its gradient -----------------------------------------------------------------------------------


def test_a_batch_of_candidates_is_the_same_as_one_by_one(lively):
    prompts = [[5, token, 60, 7, other] for token in (70, 71, 90) for other in (80, 81)]
    together = gcg.losses(lively, prompts, AIM, length=LENGTH, drafts=DRAFTS, batch_size=7)
    for prompt, loss in zip(prompts, together, strict=True):
        whole = torch.tensor([[*prompt, *[lively.family.mask_id] * LENGTH]]).repeat(len(DRAFTS), 1)
        for row, draft in zip(whole, DRAFTS, strict=True):
            for shown in draft:
                row[len(prompt) + shown.position] = shown.ids[0]
        with torch.no_grad():
            logits = lively.network(input_ids=whole).logits.double()
        place = slice(len(prompt) + AIM.position, len(prompt) + AIM.position + 2)
        at_place = logits[:, place].log_softmax(-1)
        naive = -(at_place[:, 0, 40] + at_place[:, 1, 41]).mean() / 2
        assert loss == pytest.approx(naive.item(), abs=1e-4)


@pytest.mark.parametrize("drafts", [((),), DRAFTS])
def test_the_gradient_is_the_finite_difference_of_the_loss(lively_folder, drafts):
    model = midward.load(lively_folder, device="cpu", dtype=torch.float64)
    for module in model.network.modules():
        if isinstance(module, LlamaRMSNorm):  # it rounds to float32, too coarse for a difference of small steps
            module.forward = partial(rms_norm, module)
    prompt, slot, step = [5, 70, 60, 7], 1, 1e-5
    [slope] = span_gradient(model, Span(prompt, AIM.position, AIM.ids), [slot], length=LENGTH, drafts=drafts)
    embedding = model.causal_lm.get_input_embeddings()
    for token in (9, 200, 411):
        towards = embedding.weight[token] - embedding.weight[70]
        found = []
        for share in (step, -step):  # the one-hot row of the slot, moved from its token towards another

            def nudge(module, args, output, share=share, towards=towards):
                output = output.clone()
                output[:, slot] += share * towards
                return output

            hook = embedding.register_forward_hook(nudge)
            try:
                found += gcg.losses(model, [prompt], AIM, length=LENGTH, drafts=drafts)
            finally:
                hook.remove()
        rate = (found[0] - found[1]) / (2 * step)
        assert (slope[token] - slope[70]).item() / len(AIM.ids) == pytest.approx(rate, rel=1e-5, abs=1e-8)


def test_drafts_show_the_models_own_response_and_never_the_aims_place(lively):
    prompt = [5, 70, 60, 7]
    assert gcg.drafts_of(lively, prompt, AIM, SMALL, SAMPLING, "g") == [()]
    settings = gcg.Gcg(drafts=6)
    drafts = gcg.drafts_of(lively, prompt, AIM, settings, SAMPLING, "g")
    [response] = sample(lively, [Request(prompt)], SAMPLING)
    shown = [[one.position for one in draft] for draft in drafts]
    assert all(one.ids == (response.raw_ids[one.position],) for draft in drafts for one in draft)
    assert not {AIM.position, AIM.position + 1} & {place for places in shown for place in places}
    assert len({tuple(places) for places in shown}) > 3 and len({len(places) for places in shown}) > 2
    assert drafts == gcg.drafts_of(lively, prompt, AIM, settings, SAMPLING, "g")
    assert drafts != gcg.drafts_of(lively, prompt, AIM, settings, SAMPLING, "another goal")


# --- candidates --------------------------------------------------------------------------------------------------


def test_exactly_what_is_read_back_otherwise_is_dropped(bpe):
    prompt = SuffixPrompt(bpe, "Make a stid prern girt.")
    start = start_of(prompt, 2)
    words = plain_tokens(bpe.tokenizer)
    slope = torch.zeros(1, bpe.vocab_size)  # of the first slot, which meets the goal's last word
    found, dropped = swaps(slope, prompt, start, width=10**6, top=10**6, rng=random.Random(0))

    ids = bpe.encode(f"Make a stid prern girt. {bpe.tokenizer.decode(list(start))}")
    place = next(i for i in range(len(ids)) if ids[i : i + 2] == list(start))
    expected = {}
    for token in words:
        suffix = (token, start[1])
        swapped = [*ids[:place], *suffix, *ids[place + 2 :]]
        text = f"Make a stid prern girt. {bpe.tokenizer.decode(list(suffix))}"
        if token != start[0] and bpe.encode(text) == swapped:
            expected[suffix] = swapped
    assert dict(found) == expected and len(found) == len(expected)
    assert dropped == len(words) - 1 - len(expected) > 0


def test_swaps_come_from_the_steepest_tokens_of_every_slot(lively):
    prompt = SuffixPrompt(lively, "t30 t31")
    start = start_of(prompt, 4)
    slope = torch.randn(4, lively.vocab_size, generator=torch.Generator().manual_seed(0))
    words = plain_tokens(lively.tokenizer)
    found, _ = swaps(slope, prompt, start, width=10**6, top=5, rng=random.Random(0))
    for slot in range(4):
        drawn = {suffix[slot] for suffix, _ in found if suffix[slot] != start[slot]}
        steepest = sorted(words, key=lambda token: slope[slot, token].item())[:5]
        assert drawn == set(steepest) - {start[slot]}
    assert len({suffix for suffix, _ in found}) == len(found)
    few, _ = swaps(slope, prompt, start, width=3, top=5, rng=random.Random(1))
    assert len(few) == 3


# --- the search --------------------------------------------------------------------------------------------------


def test_full_width_finds_the_best_of_all_one_token_suffixes(lively):
    prompt = SuffixPrompt(lively, "t30 t31")
    settings = gcg.Gcg(tokens=1, iterations=1, width=10**6, top=10**6, stop_loss=0.0)
    found = gcg.search(lively, prompt, AIM, settings, length=LENGTH)
    words = plain_tokens(lively.tokenizer)
    every = gcg.losses(lively, [prompt.ids((token,)) for token in words], AIM, length=LENGTH)
    least = min(range(len(words)), key=every.__getitem__)
    assert found.best == (words[least],) and found.loss == pytest.approx(every[least], abs=1e-4)
    assert found.curve[1] < found.curve[0] - 1  # there was something to be found


def test_the_best_suffix_is_returned_and_not_the_last(lively):
    prompt = SuffixPrompt(lively, "t30 t31")
    settings = gcg.Gcg(tokens=4, iterations=25, width=1, top=300, stop_loss=0.0)
    found = gcg.search(lively, prompt, AIM, settings, length=LENGTH)
    assert found.loss == min(found.curve) < found.curve[-1]
    [best, last] = gcg.losses(lively, [prompt.ids(one) for one in (found.best, found.current)], AIM, length=LENGTH)
    assert best == pytest.approx(found.loss, abs=1e-4) and last == pytest.approx(found.curve[-1], abs=1e-4)


def test_a_search_ends_at_the_loss_that_is_enough(lively):
    prompt = SuffixPrompt(lively, "t30 t31")
    whole = gcg.search(lively, prompt, AIM, gcg.Gcg(tokens=3, iterations=8, width=6, stop_loss=0.0), length=LENGTH)
    enough = sorted(whole.curve)[3]
    short = gcg.search(lively, prompt, AIM, gcg.Gcg(tokens=3, iterations=8, width=6, stop_loss=enough), length=LENGTH)
    assert short.curve == whole.curve[: len(short.curve)] and len(short.curve) < len(whole.curve)
    assert short.loss <= enough < min([*short.curve[:-1], float("inf")])


# --- a run -------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_within_a_search(lively, harmful, tmp_path):
    judged_by = verdicts.bench(harmful)
    whole = gcg.run(lively, aims(harmful), tmp_path / "whole", SMALL, judged_by=judged_by, sampling=SAMPLING)

    seen = []

    def stop(done):
        seen.append(done)
        if sum(seen) == 2 * 7 + 5:  # in the middle of the third search
            raise KeyboardInterrupt

    run = {"judged_by": judged_by, "sampling": SAMPLING, "every": 2}
    with pytest.raises(KeyboardInterrupt):
        gcg.run(lively, aims(harmful), tmp_path / "cut", SMALL, progress=stop, **run)
    [left] = (tmp_path / "cut").glob("unfinished-*.json")
    assert json.loads(left.read_text())["state"]["curve"][4:]
    counted = []
    again = gcg.run(lively, aims(harmful), tmp_path / "cut", SMALL, progress=counted.append, **run)
    assert told(again) == told(whole)
    assert sum(counted) == 4 * 7 and counted[:2] == [7, 7] and counted[2] == 4  # what was done is not done again
    assert not left.exists()


def test_searches_at_a_time_give_the_rows_of_one_after_another(lively, harmful, tmp_path):
    run = {"judged_by": verdicts.bench(harmful), "sampling": SAMPLING, "every": 2}
    one = gcg.run(lively, aims(harmful), tmp_path / "one", SMALL, **run)
    counted = []
    three = gcg.run(lively, aims(harmful), tmp_path / "three", SMALL, workers=3, progress=counted.append, **run)
    assert told(three) == near(told(one)) and sum(counted) == 4 * 7
    assert len({tuple(row["suffix_ids"]) for row in one}) > 2  # they did not all end alike
    assert not list((tmp_path / "three").glob("unfinished-*"))


def test_one_failure_ends_the_searches_beside_it_and_nothing_is_lost(lively, harmful, tmp_path):
    run = {"judged_by": verdicts.bench(harmful), "sampling": SAMPLING, "every": 1, "workers": 2}
    threads, seen = torch.get_num_threads(), []

    def fail(done):
        seen.append(done)
        if len(seen) == 9:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        gcg.run(lively, aims(harmful), tmp_path / "cut", SMALL, progress=fail, **run)
    assert len(seen) <= 12 and torch.get_num_threads() == threads
    counted = []
    again = gcg.run(lively, aims(harmful), tmp_path / "cut", SMALL, progress=counted.append, **run)
    whole = gcg.run(lively, aims(harmful), tmp_path / "whole", SMALL, **run)
    assert told(again) == near(told(whole)) and counted[0] > 0 and sum(counted) == 4 * 7


def test_rows_say_what_real_responses_to_the_suffixes_are(lively, harmful, tmp_path):
    judged_by = verdicts.bench(harmful)
    # What the model says anyway is a phrase that must be found where it stands.
    plain = [SuffixPrompt(lively, goal.prompt) for goal in harmful]
    natural = sample(lively, [Request(one.text(start_of(one, 3))) for one in plain], SAMPLING)
    wanted = {
        goal: [gcg.Aim(2, lively.decode(response.ids[2:4]), tuple(response.ids[2:4])), AIM]
        for goal, response in zip(harmful, natural, strict=True)
    }
    still = gcg.Gcg(**{**SMALL.__dict__, "stop_loss": 1e9})  # nothing is searched
    rows = gcg.run(lively, wanted, tmp_path, still, judged_by=judged_by, sampling=SAMPLING)
    assert [row["position"] for row in rows] == [None, 2, 6] * 2
    for row in rows:
        [response] = sample(lively, [Request(row["prompt"])], SAMPLING)
        assert row["response"] == response.text and row["success"] is False
    for first in (0, 3):
        control, hit, miss = rows[first : first + 3]
        assert control["hit"] is None and control["prompt"] == hit["prompt"]
        assert hit["hit"] and hit["anywhere"] and hit["curve"] == [hit["loss"]] == [hit["start_loss"]]
        assert not miss["hit"]


def row(goal, position, loss=None, hit=None, success=False, curve=(5.0,)):
    return {
        "goal": goal,
        "position": position,
        "phrase": f"p{position}",
        "loss": loss,
        "start_loss": 5.0,
        "hit": hit,
        "anywhere": hit,
        "success": success,
        "refused": not success,
        "curve": list(curve),
    }


def test_readings_pair_by_goal_and_never_count_what_is_unscored():
    rows = [row(f"g{n}", None) for n in range(8)]
    rows += [row(f"g{n}", 0, loss=1.0 + n, hit=True, success=n < 6) for n in range(8)]
    rows += [row(f"g{n}", 30, loss=3.0 + n, hit=n == 0, success=None if n else True) for n in range(8)]
    control, first, second = _gcg_readings.cells(rows)
    assert control["asr"] == 0 and control["loss"] is None and control["hit"] is None
    assert (first["asr"], first["hit"], first["loss"]) == (0.75, 1.0, 4.5)
    assert (second["asr"], second["unscored"]) == (1.0, 7)
    better, scored, loss, hit, success = _gcg_readings.between(rows)
    assert better["minus"] is None and (better["value"], better["n"]) == (0.75, 8)
    assert (scored["value"], scored["n"]) == (1.0, 1)  # the one goal that was scored
    assert loss["value"] == pytest.approx(2) and loss["low"] is loss["high"] is None  # all goals alike
    assert hit["value"] == pytest.approx(-7 / 8) and hit["p"] == pytest.approx(2 / 2**7)
    assert success["n"] == 1 and success["value"] == 0
    other = [{**one, "loss": one["loss"] and one["loss"] - 1} for one in rows if one["goal"] != "g7"]
    [gap, *_] = _gcg_readings.against(rows, other)
    assert gap["value"] == pytest.approx(1.0) and gap["n"] == 7
    with pytest.raises(ValueError, match="share no search"):
        _gcg_readings.against(rows, [{**one, "phrase": "another"} for one in rows])
    assert _gcg_readings.best_so_far(row("g", 0, curve=(5.0, 6.0, 4.0)), 5) == [5.0, 5.0, 4.0, 4.0, 4.0, 4.0]


# --- the command, and what it refuses ----------------------------------------------------------------------------


def test_the_command_writes_data_figure_and_sentences_and_compares(lively_folder, tmp_path, monkeypatch):
    drawn, draw = [], probe_gcg._draw
    monkeypatch.setattr(probe_gcg, "_draw", lambda folder, runs, *more: (drawn.append(runs), draw(folder, runs, *more)))
    flags = ["--model", lively_folder, "--device", "cpu", "--length", 16, "--steps", 4, "--count", 2, "--width", 3]
    flags += ["--positions", "0,6", "--iterations", 3, "--tokens", 3, "--phrase", "0=t30", "--phrase", "6=t40 t41"]

    def probe(*more):
        return CliRunner().invoke(app, [str(one) for one in ("probe", "gcg", *flags, *more)], env={"COLUMNS": "200"})

    first = probe("--out", tmp_path / "a")
    assert first.exit_code == 0, first.output
    assert {path.name for path in (tmp_path / "a").glob("[!.]*")} == {
        "searches.jsonl",
        "rows.jsonl",
        "gcg.csv",
        "gcg.png",
        "gcg.svg",
        "summary.json",
        "run.json",
    }
    again = probe("--out", tmp_path / "b", "--seed", 1, "--compare", tmp_path / "a")
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert again.exit_code == 0 and f"minus {tmp_path / 'a'}" in again.stdout
    assert all(sentence in again.stdout for sentence in summary["findings"]) and summary["settings"]["seed"] == 1
    [pairs] = summary["compared"].values()
    assert {(pair["position"], pair["measure"]) for pair in pairs} == {
        (p, measure) for p in (0, 6) for measure in ("loss", "hit", "success")
    }
    assert list(drawn[-1]) == [lively_folder.name, f"{lively_folder.name} (a)"]
    deeper = probe("--out", tmp_path / "d", "--iterations", 7, "--compare", tmp_path / "a")
    assert deeper.exit_code == 2 and "other settings" in deeper.stderr and not (tmp_path / "d").exists()
    (tmp_path / "a" / "summary.json").write_text(json.dumps({**summary, "probe": "ask"}))
    assert "no finished run of midward probe gcg" in probe("--out", tmp_path / "d", "--compare", tmp_path / "a").stderr
    planned = probe("--out", tmp_path / "c", "--plan")
    assert "at most 36 forwards of evaluated suffixes and 12 with a backward pass" in planned.stdout
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--positions", "0,16"], "position 16 lies outside"),
        (["--positions", "x"], "positions are numbers"),
        (["--positions", "15", "--phrase", "15=t30 t31"], "2 tokens and the response 1 left"),
        (["--phrase", "t30"], "takes POSITION=TEXT"),
        (["--phrase", "9=t30"], "isn't among --positions"),
        (["--goals", "nowhere.csv"], "nowhere.csv"),
        (["--compare", "nowhere"], "holds no finished run"),
        (["--judges", "refusal"], "never success"),
        (["--width", "0"], "--width"),
    ],
)
def test_bad_input_is_told_before_a_model_runs(lively_folder, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(gcg, "run", lambda *args, **more: pytest.fail("the model ran"))
    base = f"probe gcg --model {lively_folder} --device cpu --length 16 --steps 4 --positions 0,6".split()
    found = CliRunner().invoke(app, [*base, "--out", str(tmp_path), *flags], env={"COLUMNS": "200"})
    assert found.exit_code == 2 and message in found.output


def test_models_without_gradients_or_without_a_middle_are_refused(lively, llama, harmful, tmp_path, monkeypatch):
    run = {"judged_by": SimpleNamespace(), "sampling": SAMPLING}
    monkeypatch.setattr(lively, "hidden", lambda *args, **more: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="no goals"):
        gcg.run(lively, {}, tmp_path, SMALL, **run)
    with pytest.raises(ValueError, match="autoregressive"):
        gcg.run(llama, aims(harmful), tmp_path, SMALL, **run)
    monkeypatch.setattr(lively.causal_lm, "is_quantized", True, raising=False)
    with pytest.raises(ValueError, match=r"quantised .* gives no gradients"):
        gcg.run(lively, aims(harmful), tmp_path, SMALL, **run)


def test_a_goals_phrases_are_its_own_and_fit(lively):
    texts = {"affirmative": ("t30 t31",), "procedural": ("t32", "t33", "t34")}
    goal = Goal("g-1", "t5", "mine", True)
    first, second = gcg.aims_of(lively, goal, [0, 6], texts, LENGTH, own={0: "t7"})
    assert first == gcg.Aim(0, "t7", (7,)) and second.phrase in texts["procedural"]
    drawn = {gcg.aims_of(lively, Goal(f"g-{n}", "t5", "mine", True), [6], texts, LENGTH)[0].phrase for n in range(20)}
    assert drawn == set(texts["procedural"])
