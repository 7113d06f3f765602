"""The rivals: each against a plain statement of what it measures, and calibrated like the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from guard_world import LENGTH, prompts
from hypothesis import given
from hypothesis import strategies as st

import midward
from midward.errors import InputError
from midward.guards import (
    STUB,
    ClassifierGuard,
    DiffuGuard,
    DiffuGuardAudit,
    Exchange,
    GuardError,
    MaskFilter,
    PerplexityFilter,
    SelfExamine,
    every,
    find,
    make,
)
from midward.guards.perplexity import worst_window
from midward.sampling import Forced, Request, Sampling, Trace, sample
from midward.world import forbidden, read
from midward.world.language import REQUESTS, opening, procedure, query

MASK = "<|mdm_mask|>"


def exchanges(texts, responses=None):
    responses = responses or [None] * len(texts)
    return [Exchange(Request(text), said) for text, said in zip(texts, responses, strict=True)]


# --- perplexity ---------------------------------------------------------------------------------------------


def test_perplexity_under_an_autoregressive_model_is_its_likelihood(model, llama_folder):
    guard = PerplexityFilter(reference=str(llama_folder), window=0)
    causal = midward.load(llama_folder, device="cpu")
    texts = prompts(0, 5)
    found = guard.score(model, exchanges(texts))
    for text, score in zip(texts, found, strict=True):
        ids = causal.tokenizer.encode(text, add_special_tokens=False)
        turn = causal.encode(text)
        head = turn[: next(i for i in range(len(turn)) if turn[i : i + len(ids)] == ids)]
        logits = causal.causal_lm(torch.tensor([[*head, *ids]])).logits[0].log_softmax(-1)
        plain = [-logits[len(head) + i - 1, token].item() for i, token in enumerate(ids)]
        assert score == pytest.approx(np.mean(plain), rel=1e-4)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30), st.integers(0, 12))
def test_the_worst_window_is_the_largest_mean_of_neighbours(surprise, window):
    size = window if 0 < window < len(surprise) else len(surprise)
    means = [np.mean(surprise[i : i + size]) for i in range(len(surprise) - size + 1)]
    assert worst_window(np.array(surprise), window) == pytest.approx(max(means), abs=1e-9)


def test_perplexity_ignores_masks_company_and_how_the_prompt_is_given(model):
    guard = PerplexityFilter(samples=4, window=2)
    texts = [*prompts(0, 4), "t30", ""]
    together = guard.score(model, exchanges(texts))
    alone = [guard.score(model, exchanges([text]))[0] for text in texts]
    assert np.allclose(together, alone, atol=1e-5) and together[-1] == 0
    assert guard.score(model, exchanges([f"{MASK}{texts[0]}{MASK * 3}"]))[0] == pytest.approx(alone[0], abs=1e-5)
    as_ids = [Exchange(Request(tuple(model.encode(texts[0]))))]
    assert guard.score(model, as_ids)[0] == pytest.approx(alone[0], abs=1e-5)
    talk = [{"role": "user", "content": "t77 t78"}, {"role": "user", "content": texts[0]}]
    assert guard.score(model, [Exchange(Request(talk))])[0] == pytest.approx(alone[0], abs=1e-5)


# --- Self-Examine -------------------------------------------------------------------------------------------


def test_self_examine_is_the_log_odds_of_the_first_token(model):
    guard = SelfExamine()
    [score] = guard.score(model, exchanges(["t30"], ["t40 t41"]))
    from midward.guards.examine import _general

    question = _general("t40 t41")
    length = Sampling.for_model(model).length
    ids = torch.tensor([model.encode(question.prompt) + [model.family.mask_id] * length])
    answers = [model.tokenizer.encode(text, add_special_tokens=False) for text in ("Yes", "No")]
    totals = []
    for answer in answers:
        total, canvas = 0.0, ids.clone()
        for offset, token in enumerate(answer):
            where = ids.shape[1] - length + offset
            logits = model.head(model.hidden(canvas))[0, where].log_softmax(-1)
            total += logits[token].item()
            canvas[0, where] = token
        totals.append(total)
    assert score == pytest.approx(totals[0] - totals[1], abs=1e-4)


def test_the_sandboxs_question_is_about_what_the_response_does(model):
    from midward.guards.examine import _sandbox

    goal = forbidden("test", 1)[0]
    asked = _sandbox(procedure(goal.kind, goal.thing))
    assert _sandbox(opening(goal.kind, goal.thing)) is None
    rule = query("rule", goal.thing, intent=goal.kind)
    assert asked.prompt in [wording.format(**rule.slots) for wording in REQUESTS["rule"]]
    answers = [f"{asked.head}{answer} to {rule.phrase} a {goal.thing.name}." for answer in (asked.yes, asked.no)]
    assert [read("rule", goal.thing, text, intent=goal.kind).correct for text in answers] == [True, False]
    guard = SelfExamine(question="sandbox")
    nothing = guard.score(model, exchanges(["t1", "t2"], ["The big red thing is blue.", ""]))
    assert nothing.tolist() == [-50, -50]
    with pytest.raises(GuardError, match="looks at responses"):
        guard.score(model, exchanges(["t1"]))


# --- masks and DiffuGuard -----------------------------------------------------------------------------------


def test_masks_are_counted_and_one_is_enough_to_be_refused(model, sampling):
    guard = MaskFilter().fit(model, exchanges(prompts(0, 30)), alpha=0.1)
    trace = Trace()
    texts = [f"t30 {MASK * 2} t31", "t30 t31"]
    found = guard.sample(model, texts, sampling, watchers=[trace])
    assert [one.verdict.score for one in found] == [2, 0]
    assert found[0].text == STUB and found[0].nfe == 0 and found[0].prompt_ids == model.encode(texts[0])
    [plain] = sample(model, texts[1:], sampling)
    assert found[1].raw_ids == plain.raw_ids and list(trace.commit_step) == [1]


def test_the_audit_is_the_distance_of_first_step_states(model, sampling):
    guard = DiffuGuardAudit()
    guard.bind(model, sampling)
    forced = Request("t30 t31", (Forced(3, (44, 45)),))
    masked, plain = Request(f"t30 {MASK} t31"), Request("t30 t31")
    found = guard.score(model, [Exchange(forced), Exchange(masked), Exchange(plain)])
    blank = [model.family.mask_id] * LENGTH

    def state(prompt, response):
        return model.hidden(torch.tensor([[*prompt, *response]]))[0, len(prompt) :].mean(0)

    ids = model.encode("t30 t31")
    with_span = [*blank[:3], 44, 45, *blank[5:]]
    with_mask = model.encode(f"t30 {MASK} t31")
    bare = [token for token in with_mask if token != model.family.mask_id]
    one = 1 - torch.cosine_similarity(state(ids, with_span), state(ids, blank), dim=0)
    other = 1 - torch.cosine_similarity(state(with_mask, blank), state(bare, blank), dim=0)
    assert found == pytest.approx([one.item(), other.item(), 0.0], abs=1e-5)
    assert found[2] == 0


def test_the_oracle_needs_the_plain_goal(model, sampling):
    guard = DiffuGuardAudit(oracle=True)
    guard.bind(model, sampling)
    with pytest.raises(GuardError, match="only an evaluation knows"):
        guard.score(model, exchanges(["t30"]))
    found = guard.score(model, [Exchange(Request("t30"), plain="t30"), Exchange(Request("t30"), plain="t31")])
    assert found[0] == 0 and found[1] > 0


def test_the_audit_refuses_an_autoregressive_model(llama_folder):
    with pytest.raises(GuardError, match="is autoregressive"):
        DiffuGuardAudit().score(midward.load(llama_folder, device="cpu"), exchanges(["t30"]))


def test_diffuguard_writes_the_first_block_of_a_flagged_request_anew_and_no_other(model):
    """Unflagged: annealed sampling. Flagged: 90 % of the block's places hold another token, forced ones too."""
    sampling = Sampling(length=LENGTH, steps=8, block=LENGTH // 2, end="keep")
    stop = LENGTH // 2
    guard = DiffuGuard()
    guard.bind(model, sampling)
    guard.threshold = 0.0
    requests = [Request("t30 t31", (Forced(1, (44, 45)), Forced(stop + 1, (46,)))), Request("t30 t31")]
    forced, plain = guard.sample(model, requests, sampling)
    annealed = sample(model, requests, replace(sampling, order="annealed"))
    assert plain.raw_ids == annealed[1].raw_ids and not plain.verdict.flagged
    assert forced.verdict.flagged and forced.raw_ids[stop + 1] == 46
    same = sum(a == b for a, b in zip(forced.raw_ids[:stop], annealed[0].raw_ids[:stop], strict=True))
    assert same == stop - int(0.9 * stop) and model.family.mask_id not in forced.raw_ids
    assert annealed[0].nfe < forced.nfe <= annealed[0].nfe + guard.settings.steps  # no block but the first twice
    again = guard.sample(model, requests[::-1], sampling, batch_size=1)
    assert again[1].raw_ids == forced.raw_ids


def test_diffuguard_takes_a_schedule_where_the_model_has_a_threshold(model, caplog):
    sampling = Sampling(length=LENGTH, steps=8, block=LENGTH // 2, threshold=0.2, end="keep")
    requests = [Request("t30 t31", (Forced(1, (44, 45)),)), Request("t30 t31")]
    answers = []
    for own in (sampling, replace(sampling, threshold=None)):
        guard = DiffuGuard()
        guard.bind(model, own)
        guard.threshold = 0.0
        answers.append([response.raw_ids for response in guard.sample(model, requests, own)])
    assert answers[0] == answers[1]
    [told] = [record.getMessage() for record in caplog.records if "schedule" in record.getMessage()]
    assert "8 steps" in told and "0.2" in told


def test_the_annealed_order_is_chance_at_first_and_confidence_at_last(lively):
    seen = {}
    for order in ("low_confidence", "annealed"):
        for seed in (0, 1):
            trace = Trace()
            settings = Sampling(length=16, steps=16, order=order, end="keep", seed=seed)
            sample(lively, ["t30 t31"], settings, watchers=[trace])
            seen[order, seed] = trace.order(0)
    assert seen["low_confidence", 0] == seen["low_confidence", 1]
    assert seen["annealed", 0] != seen["annealed", 1]
    assert sorted(seen["annealed", 0]) == list(range(16))


# --- a classifier -------------------------------------------------------------------------------------------


def classifier(monkeypatch, replies, logprobs=None):
    """A guard whose model gives these replies in turn (an exception is raised)."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model
    from inspect_ai.model._model_output import Logprob, Logprobs, TopLogprob

    outputs = []
    for reply in replies:
        output = ModelOutput.from_content("mock", reply)
        if logprobs:
            top = [TopLogprob(token=token, logprob=value) for token, value in logprobs.items()]
            output.choices[0].logprobs = Logprobs(
                content=[Logprob(token="\n", logprob=0.0), Logprob(token=top[0].token, logprob=0.0, top_logprobs=top)]
            )
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        outputs.append(output)
    guard = ClassifierGuard(model="mockllm/model")
    guard.__dict__["_model"] = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
    return guard


def test_a_classifier_says_its_word(model, monkeypatch):
    guard = classifier(monkeypatch, ["unsafe\nS1", "safe", "what?"])
    found = [guard.score(model, exchanges(["t30"], ["t40"]))[0] for _ in range(3)]
    assert found[:2] == [1, -1] and np.isnan(found[2])


def test_a_classifiers_log_probabilities_are_its_score(model, monkeypatch):
    guard = classifier(monkeypatch, ["unsafe"], {"uns": -0.5, "safe": -2.0, "S": -9.0})
    assert guard.score(model, exchanges(["t30"], ["t40"]))[0] == pytest.approx(1.5)


def test_a_classifier_that_cant_be_had_is_an_error(model):
    with pytest.raises(GuardError, match="examines itself"):
        ClassifierGuard(model="midward/sandbox").score(model, exchanges(["t30"], ["t40"]))
    with pytest.raises(GuardError, match="no classifier to ask"):
        ClassifierGuard(model="no-such-provider/x").score(model, exchanges(["t30"], ["t40"]))


# --- the list -----------------------------------------------------------------------------------------------


def test_specs_name_a_guard_and_its_settings():
    guard = make("perplexity:reference=gpt2;window=5")
    assert guard.settings.reference == "gpt2" and guard.settings.window == 5
    assert make("sri:early=false;steps=first").settings.steps == "first"
    assert make("perplexity:reference=models: mine").settings.reference == "models: mine"
    assert make("perplexity:reference=null").settings.reference is None
    with pytest.raises(InputError, match=r"the guard 'sri': early: '\[' is no value"):
        make("sri:early=[")
    with pytest.raises(GuardError, match="Did you mean 'perplexity'"):
        make("perplexty")
    with pytest.raises(InputError, match=r"no setting .windw.\. Did you mean"):
        make("perplexity:windw=5")
    with pytest.raises(InputError, match="window"):
        make("perplexity:window=-1")
    with pytest.raises(GuardError, match="NAME=VALUE"):
        make("sri:early")


def test_every_guard_is_of_one_shape():
    for name, info in every().items():
        assert find(name) is info and info.kind.looks in ("before", "during", "after") and info.kind.about
        assert {"fit", "score", "flag", "sample"} <= set(dir(info.kind))


def test_all_are_calibrated_to_the_same_rate(model, sampling, tmp_path):
    """On prompts that the threshold was made of, at most alpha of them lie above, whatever the guard measures."""
    texts = prompts(0, 20)
    said = exchanges(texts, [one.text for one in sample(model, texts, sampling)])
    for guard in (PerplexityFilter(samples=4), SelfExamine(), DiffuGuardAudit(), MaskFilter()):
        guard.fit(model, said, alpha=0.2, sampling=sampling)
        flagged = guard.flag(guard.score(model, said))
        assert flagged.sum() <= 0.2 * 21 and guard.calibrated == 20
        found = guard.sample(model, texts[:6], sampling)
        assert [one.verdict.flagged for one in found] == flagged[:6].tolist()
        assert guard.looks == found[0].verdict.looks


def test_guards_that_read_other_numbers_share_no_signals():
    """A comparison keeps signals under what a guard reads: the first forward's are not those of all looks."""
    assert make("eos").reads != make("eos:looks=all").reads
    assert make("hesitate").reads == make("hesitate:arm=heavy").reads
