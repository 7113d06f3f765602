"""The suffix search: it finds what is there to be found, keeps the best, and goes on where it stopped."""

import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from near import near

import midward as package
from midward.attacks._suffix import plain_tokens
from midward.errors import InputError
from midward.goals import Goal
from midward.guards import Sizes, fit_guards, load, make
from midward.probes import gcg
from midward.probes import searches as _searches
from midward.probes.configs import OBJECTIVES, Gcg
from midward.probes.evading import Evaded
from midward.probes.probe import against
from midward.probes.registry import find
from midward.probes.suffix import Aim, SuffixPrompt, drafts_of, losses, search, start_of, swaps
from midward.runs.measure import Case
from midward.runs.workers import Lost, spread
from midward.sampling import Forced, Request, Sampling, Span, sample, span_gradient
from midward.store import RowFile

LENGTH = 16
SAMPLING = Sampling(length=LENGTH, steps=4, block=8)
AIM = Aim(6, "t40 t41", (40, 41))
DRAFTS = ((Forced(0, (50,)), Forced(9, (51,))), (), (Forced(3, (52,)),))
SMALL = Gcg(positions=(0, 6), phrase=["0=t30", "6=t40 t41"], tokens=3, iterations=7, width=4, top=16, stop_loss=0.0)


@pytest.fixture(scope="module")
def bpe():
    """The embedded model, for its tokenizer: pieces of words that merge with their neighbours."""
    return package.load("sandbox", device="cpu", dtype="float32")


# --- the loss -----------------------------------------------------------------------------------


def test_a_batch_of_candidates_is_the_same_as_one_by_one(lively):
    prompts = [[5, token, 60, 7, other] for token in (70, 71, 90) for other in (80, 81)]
    together = losses(lively, prompts, AIM, length=LENGTH, drafts=DRAFTS, batch_size=7)
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


def test_drafts_show_the_models_own_response_and_never_the_aims_place(lively):
    prompt = [5, 70, 60, 7]
    assert drafts_of(lively, prompt, AIM, 0, SAMPLING, "g") == [()]
    drafts = drafts_of(lively, prompt, AIM, 6, SAMPLING, "g")
    [response] = sample(lively, [Request(prompt)], SAMPLING)
    shown = [[span.position for span in draft] for draft in drafts]
    assert all(span.ids == (response.raw_ids[span.position],) for draft in drafts for span in draft)
    assert not {AIM.position, AIM.position + 1} & {place for places in shown for place in places}
    assert len({tuple(places) for places in shown}) > 3 and len({len(places) for places in shown}) > 2
    assert drafts == drafts_of(lively, prompt, AIM, 6, SAMPLING, "g")
    assert drafts != drafts_of(lively, prompt, AIM, 6, SAMPLING, "another goal")


# --- the whole of a response as the aim --------------------------------------------------------------------------

WHOLE = Aim(0, "", tuple(range(30, 30 + LENGTH)))
RESPONSE = Gcg(aim="response", tokens=3, iterations=9, width=4, top=16, stop_loss=0.0, drafts=3)


def plain_loss(model, embedded, aim, drafts):
    """The objective, draft by draft: the cross entropy of what is hidden of the aim, n / l times, a token.

    embedded: the prompt's embeddings [P, D].
    """
    n, mask, terms = len(aim.ids), model.family.mask_id, []
    table = model.causal_lm.get_input_embeddings()
    for draft in drafts:
        canvas = torch.full((LENGTH,), mask)
        for shown in draft:
            canvas[shown.position] = shown.ids[0]
        hidden = [k for k in range(n) if canvas[aim.position + k] == mask]
        states = model.network(inputs_embeds=torch.cat([embedded, table(canvas)])[None]).logits[0, len(embedded) :]
        each = states.log_softmax(-1)
        terms.append(sum(-each[aim.position + k, aim.ids[k]] for k in hidden) / len(hidden))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_and_its_gradient_are_the_plain_sum(lively, objective):
    prompt, slots = [5, 70, 60, 7, 80], [1, 3]
    drafts = drafts_of(lively, prompt, WHOLE, RESPONSE.draws(objective), SAMPLING, "g", objective)
    assert len(drafts) == (1 if objective == "first" else 3)
    table = lively.causal_lm.get_input_embeddings()
    plain = plain_loss(lively, table(torch.tensor(prompt)), WHOLE, drafts).item()
    [loss] = losses(lively, [prompt], WHOLE, length=LENGTH, drafts=drafts, batch_size=2)
    assert loss == pytest.approx(plain, rel=1e-4)
    hot = torch.nn.functional.one_hot(torch.tensor(prompt), table.weight.shape[0]).float().requires_grad_()
    plain_loss(lively, hot @ table.weight, WHOLE, drafts).backward()
    slope = span_gradient(lively, Span(prompt, 0, WHOLE.ids), slots, length=LENGTH, drafts=drafts, batch_size=2)
    assert torch.allclose(slope / LENGTH, hot.grad[slots], atol=1e-4)


def test_drafts_of_a_response_show_its_own_tokens_or_the_models(lively):
    prompt = [5, 70, 60, 7]
    [response] = sample(lively, [Request(prompt)], SAMPLING)
    tokens = {"target": WHOLE.ids, "own": response.raw_ids}
    for objective, shown in tokens.items():
        drafts = drafts_of(lively, prompt, WHOLE, 40, SAMPLING, "g", objective)
        assert all(span.ids == (shown[span.position],) for draft in drafts for span in draft)
        sizes = {len(draft) for draft in drafts}
        assert min(sizes) < 3 and max(sizes) == LENGTH - 1 and len(sizes) > 9  # something stays to be scored


def test_objectives_take_equally_many_rows_of_forwards(lively, harmful, measured, tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({goal.id: " ".join(f"t{30 + k}" for k in range(20)) for goal in harmful}))
    config = replace(RESPONSE, texts=str(path), iterations=20)
    _, rows, summary = measured("gcg", lively, harmful[:2], config, SAMPLING)
    assert [row.get("objective") for row in rows] == [None, *OBJECTIVES] * 2
    for row in rows:
        if row["position"] is not None:
            assert len(row["ids"]) == LENGTH  # of a text of twenty tokens
            once = 3 * (1 + 4) if row["objective"] != "first" else 1 + 4
            assert config.budget - once < row["forwards"] <= config.budget == 1 + 20 * 5
    spent = {cell.get("objective"): cell["iterations"]["value"] for cell in summary["cells"] if cell["iterations"]}
    assert spent == {"first": 20, "target": 6, "own": 6}
    [curve] = [curve for curve in summary["curves"] if curve["objective"] == "own"]
    assert curve["every"] == 15 and len(curve["loss"]) == 7
    compared = [(gap["objective"], gap["minus"], gap["measure"]) for gap in summary["between"]]
    assert ("target", "first", "matched") in compared and ("own", "first", "success") in compared
    assert not any(measure == "loss" for *_, measure in compared)


def test_searches_for_a_response_go_on_where_they_stopped(lively, harmful, tmp_path, monkeypatch):
    monkeypatch.setattr(_searches, "EVERY", 2)
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({goal.id: "t30 t31 t32 t33 t34 t35" for goal in harmful}))
    config = replace(RESPONSE, texts=str(path))

    def run(folder, progress=lambda what, done, of: None):
        asked = gcg.cases(lively, harmful[:1], config, SAMPLING)
        return gcg.searched(lively, asked, config, SAMPLING, tmp_path / folder, progress)

    def stop(what, done, of):
        if done >= 9 + 3:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop)
    assert run("cut") == whole


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"aim": "response", "objectives": ("frist",)}, "Did you mean 'first'"),
        ({"objectives": ("first",)}, "--objectives and --texts are of --aim response"),
        ({"aim": "response", "positions": (3,)}, "aims at all of a response"),
    ],
)
def test_what_is_no_aim_is_refused(given, why):
    with pytest.raises(InputError, match=why):
        Gcg(**given)


# --- candidates --------------------------------------------------------------------------------------------------


def test_exactly_what_is_read_back_otherwise_is_dropped(bpe):
    prompt = SuffixPrompt(bpe, "Make a velvet feather skreel.")
    start = start_of(prompt, 2)
    words = plain_tokens(bpe.tokenizer)
    slope = torch.zeros(1, bpe.vocab_size)  # of the first slot, which meets the goal's last word
    found, dropped = swaps(slope, prompt, start, width=10**6, top=10**6, rng=random.Random(0))

    ids = bpe.encode(f"Make a velvet feather skreel. {bpe.tokenizer.decode(list(start))}")
    place = next(i for i in range(len(ids)) if ids[i : i + 2] == list(start))
    expected = {}
    for token in words:
        suffix = (token, start[1])
        swapped = [*ids[:place], *suffix, *ids[place + 2 :]]
        text = f"Make a velvet feather skreel. {bpe.tokenizer.decode(list(suffix))}"
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
    settings = Gcg(tokens=1, iterations=1, width=10**6, top=10**6, stop_loss=0.0)
    found = search(lively, prompt, AIM, settings, length=LENGTH)
    words = plain_tokens(lively.tokenizer)
    every = losses(lively, [prompt.ids((token,)) for token in words], AIM, length=LENGTH)
    least = min(range(len(words)), key=every.__getitem__)
    assert found.best == (words[least],) and found.loss == pytest.approx(every[least], abs=1e-4)
    assert found.curve[1] < found.curve[0] - 1  # there was something to be found


def test_the_best_suffix_is_returned_and_not_the_last(lively):
    prompt = SuffixPrompt(lively, "t30 t31")
    settings = Gcg(tokens=4, iterations=25, width=1, top=300, stop_loss=0.0)
    found = search(lively, prompt, AIM, settings, length=LENGTH)
    assert found.loss == min(found.curve) < found.curve[-1]
    [best, last] = losses(lively, [prompt.ids(one) for one in (found.best, found.current)], AIM, length=LENGTH)
    assert best == pytest.approx(found.loss, abs=1e-4) and last == pytest.approx(found.curve[-1], abs=1e-4)


def test_a_search_ends_at_the_loss_that_is_enough(lively):
    prompt = SuffixPrompt(lively, "t30 t31")
    whole = search(lively, prompt, AIM, Gcg(tokens=3, iterations=8, width=6, stop_loss=0.0), length=LENGTH)
    enough = sorted(whole.curve)[3]
    short = search(lively, prompt, AIM, Gcg(tokens=3, iterations=8, width=6, stop_loss=enough), length=LENGTH)
    assert short.curve == whole.curve[: len(short.curve)] and len(short.curve) < len(whole.curve)
    assert short.loss <= enough < min([*short.curve[:-1], float("inf")])


# --- a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def searched(lively, harmful, tmp_path):
    """folder, ... -> the cases with their suffixes, of two goals at two places."""

    def run(folder, progress=lambda what, done, of: None, searches=1, workers=1):
        config = replace(SMALL, searches=searches)
        asked = gcg.cases(lively, harmful[:2], config, SAMPLING)
        return gcg.searched(lively, asked, config, SAMPLING, tmp_path / folder, progress, workers)

    return run


def test_a_run_that_was_stopped_goes_on_within_a_search(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(_searches, "EVERY", 2)
    whole = searched("whole")

    def stop(what, done, of):
        if done == 2 * 7 + 5:  # in the middle of the third search
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched("cut", stop)
    left = RowFile(tmp_path / "cut" / "searches.jsonl").rows.values()
    assert [len(row["curve"]) for row in left if not row["ended"]] == [5]
    counted = []
    again = searched("cut", lambda what, done, of: counted.append(done))
    assert again == whole
    assert counted[:3] == [7, 14, 18] and counted[-1] == 4 * 7  # what was done is not done again


def test_searches_at_a_time_give_the_suffixes_of_one_after_another(searched, tmp_path):
    one, counted = searched("one"), []
    three = searched("three", lambda what, done, of: counted.append(done), searches=3)
    assert [asdict(case) for case in three] == near([asdict(case) for case in one]) and max(counted) == 4 * 7
    assert len({case.request.prompt for case in one}) > 2  # they did not all end alike
    assert all(row["ended"] for row in RowFile(tmp_path / "three" / "searches.jsonl").rows.values())


def test_workers_find_the_suffixes_of_one_process_and_a_lost_search_is_an_error(searched, tmp_path, monkeypatch):
    """The pieces as Ray would do them, in this process; the second is lost the first time."""
    whole, losses = searched("whole"), [1]

    def lossy(work, pieces, workers, *, gpus):
        assert workers == 2
        for place, result in reversed(list(spread(work, pieces))):
            yield place, Lost("the worker died") if [place] == losses else result

    monkeypatch.setattr(_searches, "spread", lossy)
    cases = searched("shared", workers=2)
    assert [case.error for case in cases] == [None, None, "the worker died", None, None, None]
    assert len(RowFile(tmp_path / "shared" / "searches.jsonl").rows) == 3
    losses.clear()
    counted = []
    again = searched("shared", lambda what, done, of: counted.append(done), workers=2)
    assert again == whole and counted == [3 * 7, 4 * 7]


def test_one_failure_ends_the_searches_beside_it_and_nothing_is_lost(searched, monkeypatch):
    monkeypatch.setattr(_searches, "EVERY", 1)
    threads, seen = torch.get_num_threads(), []

    def fail(what, done, of):
        seen.append(done)
        if len(seen) == 9:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        searched("cut", fail, searches=2)
    assert len(seen) <= 12 and torch.get_num_threads() == threads
    counted = []
    again = searched("cut", lambda what, done, of: counted.append(done), searches=2)
    assert [asdict(case) for case in again] == near([asdict(case) for case in searched("whole")])
    assert counted[0] > 0 and counted[-1] == 4 * 7


def test_rows_say_what_real_responses_to_the_suffixes_are(lively, harmful, measured):
    # What the model says anyway is a phrase that must be found where it stands.
    prompt = SuffixPrompt(lively, harmful[0].prompt)
    [natural] = sample(lively, [Request(prompt.text(start_of(prompt, 3)))], SAMPLING)
    phrase = [f"2={lively.decode(natural.ids[2:4])}", "6=t40 t41"]
    still = replace(SMALL, positions=(2, 6), phrase=phrase, stop_loss=1e9)  # nothing is searched
    _, rows, summary = measured("gcg", lively, harmful[:2], still, SAMPLING)
    assert [row["position"] for row in rows] == [None, 2, 6] * 2
    for row in rows:
        [response] = sample(lively, [Request(row["prompt"])], SAMPLING)
        assert row["response"] == response.text and row["success"] is False
    control, hit, miss = rows[:3]
    assert control["hit"] is None and control["prompt"] == hit["prompt"]
    assert hit["hit"] and hit["anywhere"] and hit["curve"] == [hit["loss"]] == [hit["start_loss"]]
    assert not miss["hit"]
    assert [cell["position"] for cell in summary["cells"]] == [None, 2, 6]
    assert [len(curve["loss"]) for curve in summary["curves"]] == [8, 8]


def row(goal, position, loss=None, hit=None, success=False, curve=(5.0,)):
    about = {"set": "mine", "goal": goal, "position": position, "phrase": f"p{position}", "curve": list(curve)}
    read = {"hit": hit, "anywhere": hit, "success": success, "refused": not success}
    return about | read | {"loss": loss, "start_loss": 5.0}


def test_readings_pair_by_goal_and_never_count_what_is_unscored():
    rows = [row(f"g{n}", None) for n in range(8)]
    rows += [row(f"g{n}", 0, loss=1.0 + n, hit=True, success=n < 6) for n in range(8)]
    rows += [row(f"g{n}", 30, loss=3.0 + n, hit=n == 0, success=None if n else True) for n in range(8)]
    control, first, second = gcg.cells(rows)
    assert control["asr"]["value"] == 0 and control["loss"] is None and control["hit"] is None
    assert [first[name]["value"] for name in ("asr", "hit", "loss")] == [0.75, 1.0, 4.5]
    assert (second["asr"]["value"], second["asr"]["unscored"]) == (1.0, 7)
    better, scored, loss, hit, success = gcg.between(rows)
    assert better["minus"] is None and (better["value"], better["n"]) == (0.75, 8)
    assert (scored["value"], scored["n"]) == (1.0, 1)  # the one goal that was scored
    assert loss["value"] == pytest.approx(2) and loss["low"] is loss["high"] is None  # all goals alike
    assert hit["value"] == pytest.approx(-7 / 8) and hit["p"] == pytest.approx(2 / 2**7)
    assert success["n"] == 1 and success["value"] == 0
    other = [{**one, "loss": one["loss"] and one["loss"] - 1} for one in rows if one["goal"] != "g7"]
    gap = next(pair for pair in against(gcg.GCG, rows, other) if pair["measure"] == "loss")
    assert gap["value"] == pytest.approx(1.0) and gap["n"] == 7
    with pytest.raises(ValueError, match="share nothing"):
        against(gcg.GCG, rows, [{**one, "phrase": "another"} for one in rows])
    [curve] = gcg.curves([row("g", None), row("g", 0, curve=(5.0, 6.0, 4.0))], 5)
    assert [step["value"] for step in curve["loss"]] == [5.0, 5.0, 4.0, 4.0, 4.0, 4.0]


def test_a_plan_measures_as_many_rows_as_the_search_takes(lively, harmful):
    config = replace(RESPONSE, objectives=("target", "target"), drafts=6)
    asked = gcg.cases(lively, harmful[:1], config, SAMPLING)
    assert [case.about["objective"] for case in asked] == [None, "target"]
    rows = []
    hook = lively.causal_lm.get_input_embeddings().register_forward_hook(
        lambda module, args, output: rows.append(args[0].shape[0] if args[0].ndim > 1 else 0)
    )
    try:
        gcg.cost(lively, asked, config, SAMPLING)
    finally:
        hook.remove()
    assert sum(rows) == 6 * (1 + 3 * (1 + 4))


# --- the command, and what it refuses ----------------------------------------------------------------------------


def test_the_command_compares_and_says_what_it_would_cost(midward, lively_folder, tmp_path, summary_of):
    flags = ["--model", lively_folder, "--device", "cpu", "--length", 16, "--steps", 4, "--limit", 2, "--width", 3]
    flags += ["--positions", "0,6", "--iterations", 3, "--tokens", 3, "--phrase", "0=t30", "--phrase", "6=t40 t41"]

    def probe(*more):
        return midward("probe", "gcg", *flags, *more)

    assert probe("--out", tmp_path / "a").exit_code == 0
    again = probe("--out", tmp_path / "b", "--seed", 1, "--compare", tmp_path / "a")
    assert again.exit_code == 0, again.stderr
    [pairs] = summary_of(tmp_path / "b")["compared"].values()
    compared = {(pair["position"], pair["measure"]) for pair in pairs}
    assert compared == {(None, "success")} | {(p, measure) for p in (0, 6) for measure in ("loss", "hit", "success")}
    deeper = probe("--out", tmp_path / "d", "--iterations", 7, "--compare", tmp_path / "a")
    assert deeper.exit_code == 2 and "other settings" in deeper.stderr and not (tmp_path / "d").exists()
    ask = midward("probe", "ask", *flags[:10], "--out", tmp_path / "d", "--compare", tmp_path / "a")
    assert "no finished run of midward probe ask" in ask.stderr
    planned = probe("--out", tmp_path / "c", "--plan")
    assert "at most 36 forwards of evaluated suffixes and 12 with a backward pass" in planned.stdout
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"positions": (0, 16)}, "position 16 lies outside"),
        ({"positions": (15,), "phrase": ["15=t30 t31"]}, "ends behind the response"),
        ({"phrase": ["t30"]}, "takes POSITION=TEXT"),
        ({"phrase": ["9=t30"]}, "isn't among the positions"),
        ({"width": 0}, "width is 1 or more"),
    ],
)
def test_bad_input_is_told_before_a_model_runs(silent, harmful, given, why):
    with pytest.raises(InputError, match=why):
        gcg.cases(silent, harmful, Gcg(**given), SAMPLING)


def test_models_without_gradients_or_without_a_middle_are_refused(silent, llama, harmful, monkeypatch):
    with pytest.raises(InputError, match="autoregressive"):
        gcg.cases(llama, harmful, SMALL, SAMPLING)
    monkeypatch.setattr(silent.causal_lm, "is_quantized", True, raising=False)
    with pytest.raises(InputError, match=r"quantised .* gives no gradients"):
        gcg.cases(silent, harmful, SMALL, SAMPLING)


def test_a_goals_phrases_are_its_own_and_fit(lively, phrases_file):
    def aims(name, **given):
        config = Gcg(positions=(0, 6), phrases_file=phrases_file, **given)
        _, *asked = gcg.cases(lively, [Goal(name, "t5", "mine", True)], config, SAMPLING)
        return [gcg.aim_of(case) for case in asked]

    assert aims("g", phrase=["0=t7"])[0] == Aim(0, "t7", (7,))
    assert {aims(f"g-{n}")[1].phrase for n in range(20)} == {"t31 t41", "t51 t61 t71"}


# --- against a guard ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guards(lively_folder, tmp_path_factory):
    """name -> the file of a guard that is fitted for the model as a test can wait for."""
    lively = package.load(lively_folder, device="cpu")

    def cases(first, count, harmful=False):
        texts = [f"t{30 + n} t{31 + 7 * n % 400} t{32 + 13 * n % 400}" for n in range(first, first + count)]
        return [Case(Goal(f"g{text}", text, "made-up", harmful), Request(text)) for text in texts]

    return fit_guards(
        lively,
        {name: make(name) for name in ("hesitate", "sri-blocks", "prefuse", "sri")},
        cases(0, 70),
        cases(200, 10, harmful=True),
        tmp_path_factory.mktemp("guards"),
        refused=lambda text: bool(len(text) % 2),
        sampling=SAMPLING,
        alpha=0.25,
        sizes=Sizes(10, 40, 20),
    )


@pytest.mark.parametrize("name", ["hesitate", "sri-blocks", "prefuse"])
def test_a_search_that_weighs_the_guards_score_finds_what_it_scores_lower(lively, guards, name):
    config = replace(SMALL, against=guards[name], iterations=5, top=300)
    scores = {}
    for weight in (0.0, 30.0):
        evaded = Evaded.of(lively, replace(config, weight=weight), SAMPLING)
        prompts = [SuffixPrompt(lively, f"t{50 + n} t{71 + n}") for n in range(3)]
        found = [search(lively, prompt, AIM, config, length=LENGTH, evaded=evaded) for prompt in prompts]
        scores[weight] = evaded.scores([prompt.ids(each.best) for prompt, each in zip(prompts, found, strict=True)])
        if not weight:
            assert found == [search(lively, prompt, AIM, config, length=LENGTH) for prompt in prompts]
    assert sum(scores[30.0]) < sum(scores[0.0])


def test_what_the_guard_makes_of_a_candidate_is_its_score_after_the_steps_that_it_sees(lively, guards):
    guard = load(guards["sri-blocks"], lively, SAMPLING)
    ids = tuple(lively.encode("t30 t31 t60"))
    watcher = guard.watcher()
    [response] = sample(lively, [Request(ids)], SAMPLING, watchers=[watcher])
    table = watcher.signal(0).numpy()
    for steps in (1, 2, response.steps):
        seen = np.where(table[..., -1:] < steps, table, np.nan)
        wanted = np.nanmax(guard.ranks(seen))
        config = replace(SMALL, against=guards["sri-blocks"], seen=steps)
        assert Evaded.of(lively, config, SAMPLING).scores([ids]) == [pytest.approx(wanted, abs=1e-5)]


def test_the_gradient_follows_the_linear_probe_as_well(lively, guards):
    evaded = Evaded.of(lively, replace(SMALL, against=guards["hesitate"], weight=2.0), SAMPLING)
    prompt, slots, table = [5, 70, 60, 7, 80], [1, 3], lively.causal_lm.get_input_embeddings()
    span, how = Span(prompt, AIM.position, AIM.ids), {"length": LENGTH}
    added = span_gradient(lively, span, slots, **how, also=evaded.slope(2)) - span_gradient(lively, span, slots, **how)
    hot = torch.nn.functional.one_hot(torch.tensor(prompt), table.weight.shape[0]).float().requires_grad_()
    canvas = table(torch.full((LENGTH,), lively.family.mask_id))
    states = lively.network(inputs_embeds=torch.cat([hot @ table.weight, canvas])[None], output_hidden_states=True)
    phi = states.hidden_states[-1][0, len(prompt) : len(prompt) + SAMPLING.block].mean(0).double()
    probe = evaded.guard.cheap
    weights, mean, scale = (torch.from_numpy(array) for array in (probe.weights[0][:, 0], probe.mean, probe.scale))
    (2.0 * 2 * ((phi - mean) / scale @ weights) / math.log(10)).backward()
    assert torch.allclose(added, hot.grad[slots], atol=1e-4) and added.abs().max() > 1e-3


def test_rows_say_what_the_guard_flags_and_runs_of_other_weights_compare(lively, harmful, guards, measured, tmp_path):
    config = replace(SMALL, positions=(0,), phrase=["0=t30"], against=guards["hesitate"], iterations=2)
    _, rows, summary = measured("gcg", lively, harmful[:2], config, SAMPLING, folder="weighed")
    guard = load(guards["hesitate"], lively, SAMPLING)
    for row in rows:
        [behind] = guard.sample(lively, [row["prompt"]], SAMPLING)
        assert row["flagged"] == behind.verdict.flagged and row["passed"] == (row["success"] and not row["flagged"])
        if not row["flagged"]:
            assert row["guard_score"] == pytest.approx(behind.verdict.score, abs=1e-5)
    assert [cell["flagged"]["n"] for cell in summary["cells"]] == [2, 2]
    _, plain, _ = measured("gcg", lively, harmful[:2], replace(config, weight=0.0), SAMPLING, folder="plain")
    assert {gap["measure"] for gap in against(find("gcg"), rows, plain)} >= {"success", "passed"}
    assert {row["weight"] for row in (*rows, *plain)} == {1.0, 0.0}


def test_what_is_no_rank_is_no_guard_to_evade(lively, harmful, guards, silent):
    with pytest.raises(InputError, match="is of 'sri'"):
        gcg.cases(silent, harmful[:1], replace(SMALL, against=guards["sri"]), SAMPLING)
    with pytest.raises(InputError, match="of the guard that --against names"):
        Gcg(weight=2.0)
