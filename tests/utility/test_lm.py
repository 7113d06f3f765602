"""Our models as the harness knows them: its requests, and that nothing is asked twice or taken for something else."""

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from midward.guards import STUB
from midward.guards.guard import Guard
from midward.guards.masks import MaskFilter
from midward.sampling import Sampling, sample
from midward.utility import lm as room
from midward.utility.lm import Continuation, Generation, MidwardLM

GIVEN = {"steps": 3}
SAMPLING = Sampling(length=6, steps=3)
PROMPTS = [(5, 60, 7), (9, 61), (5, 60, 7, 88)]


def text(context, **kwargs):
    return Instance("generate_until", {}, (context, {"until": [], **kwargs}), 0, ("task", 0, 1))


def score(context, continuation):
    return Instance("loglikelihood", {}, (context, continuation), 0, ("task", 0, 1))


# --- requests --------------------------------------------------------------------------------------------------


def test_the_response_has_the_length_that_the_task_asks_for(lively):
    told = []
    lm = MidwardLM(lively, sampling={"block": 4}, say=told.append)
    [found, _, _] = lm.generate_until([text("t30 t31", max_gen_toks=6)] + [text("t32", max_gen_toks=6)] * 2)
    # 128 steps of 128 positions: as many a position; whole blocks, the last of them cut
    [expected] = sample(lively, [[30, 31]], Sampling(length=8, steps=8, block=4))
    assert found == lively.decode(expected.ids[:6])
    assert told == ["max_gen_toks 6: 8 response positions, 8 steps, in blocks of 4"]


def test_a_given_length_goes_before_the_tasks(lively):
    told = []
    lm = MidwardLM(lively, sampling={"length": 5, "steps": 5}, say=told.append)
    [found] = lm.generate_until([text("t30 t31", max_gen_toks=400, top_p=0.9)])
    [expected] = sample(lively, [[30, 31]], Sampling(length=5, steps=5))
    assert found == expected.text
    assert told == ["the task's top_p=0.9 isn't followed", "responses have 5 positions as given, not the task's 400"]


@pytest.mark.parametrize("name", ["lively", "llama"])
def test_stop_texts_cut_and_end_a_response_early(name, request):
    model = request.getfixturevalue(name)
    block = {"block": 4} if name == "lively" else {}
    steps = []
    hidden = model.hidden
    model.hidden = lambda ids, *more: steps.append(len(ids)) or hidden(ids, *more)
    ask = lambda until: MidwardLM(model, sampling=block).generate_until(  # noqa: E731
        [text(context, max_gen_toks=32, until=until) for context in ("t30 t31", "t32", "t33 t34 t35")]
    )
    whole = ask([])
    words = whole[0].split()
    assert len(words) > 8
    taken = len(steps)
    steps.clear()
    stop = words[5]
    assert ask(["absent", "", stop]) == [one.split(stop)[0] for one in whole]
    assert sum(steps) < 3 * taken


def test_sampled_repeats_differ_and_greedy_ones_do_not(lively):
    lm = MidwardLM(lively, sampling=GIVEN)
    warm = lm.generate_until([text("t30", max_gen_toks=8, do_sample=True, temperature=1.0)] * 3)
    assert len(set(warm)) > 1
    assert len(set(lm.generate_until([text("t30", max_gen_toks=8, temperature=0.0)] * 3))) == 1


def test_prompts_lose_their_beginning_where_there_is_no_room(llama):
    told = []
    lm = MidwardLM(llama, say=told.append)  # 128 positions
    long = " ".join(f"t{30 + n % 90}" for n in range(200))
    [found] = lm.generate_until([text(long, max_gen_toks=28)])
    [expected] = sample(llama, [lm.tok_encode(long)[-100:]], Sampling.for_model(llama, length=28))
    assert found == expected.text
    assert told == ["prompts longer than 100 tokens lose their beginning (128 positions)"]
    with pytest.raises(ValueError, match="has 128 positions, and 256 behind the prompt leave none"):
        lm.generate_until([text("t30")])


def test_pairs_are_split_as_the_harness_splits_them(lively):
    lm = MidwardLM(lively, draws=16)
    [joined, spaced, empty, nothing] = lm.loglikelihood(
        [score("t30 t31", " t40 t41"), score("t30 t31 ", "t40 t41"), score("", "t40"), score("t30", "")]
    )
    [direct, alone] = MidwardLM(lively, draws=16).log_probs(
        [Continuation((30, 31), (40, 41)), Continuation((0,), (40,))]
    )
    assert joined == spaced == (pytest.approx(direct["total"], abs=1e-4), direct["greedy"])
    assert empty[0] == pytest.approx(alone["total"], abs=1e-4)  # behind the token that begins texts
    assert nothing == (0.0, True)


def test_a_rolling_likelihood_covers_every_token_once(llama):
    lm = MidwardLM(llama)
    ids = [30 + n % 90 for n in range(300)]
    request = Instance("loglikelihood_rolling", {}, (" ".join(f"t{n}" for n in ids),), 0, ("task", 0, 1))
    [short] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("t30 t31 t32",), 0, ("task", 0, 1))])
    [expected] = lm.log_probs([Continuation((0,), (30, 31, 32))])
    assert short == pytest.approx(expected["total"], abs=1e-4)
    pieces = []
    whole_log_probs = lm.log_probs
    lm.log_probs = lambda windows, greedy: pieces.extend(windows) or whole_log_probs(windows, greedy=greedy)
    [whole] = lm.loglikelihood_rolling([request])
    assert [token for piece in pieces for token in piece.ids] == ids
    assert all(len(piece.prompt) + len(piece.ids) <= 128 for piece in pieces)
    assert whole < short


def test_conversations_are_encoded_as_the_model_does(lively):
    lm = MidwardLM(lively)
    turns = [{"role": "user", "content": "t30 t31"}]
    assert lm.tok_encode(lm.apply_chat_template(turns)) == lively.encode(turns)
    opened = lm.apply_chat_template([*turns, {"role": "assistant", "content": "t32"}], add_generation_prompt=False)
    assert opened.rstrip().endswith("t32")
    assert lm.device == lively.device and "/" not in lm.tokenizer_name


# --- what is kept ------------------------------------------------------------------------------------------------


class Refuses(Guard):
    """Flags prompts that hold the token `wanted`."""

    name, about, looks = "refuses", "for tests", "before"
    Settings = MaskFilter.Settings
    wanted = 61

    def score(self, model, exchanges, *, batch_size=8):
        return np.array([float(self.wanted in exchange.request.prompt) for exchange in exchanges])


def ask(model, folder, sampling=SAMPLING, **how):
    return MidwardLM(model, folder=folder, **how).texts([Generation(prompt, sampling) for prompt in PROMPTS])


def test_the_same_is_not_asked_twice(lively, tmp_path, forwards):
    first = ask(lively, tmp_path)
    assert len(forwards) > 0
    forwards.clear()
    assert ask(lively, tmp_path, batch_size=1) == first
    assert not forwards


@pytest.mark.parametrize(
    "other", [{"steps": 6}, {"block": 3}, {"seed": 1}, {"order": "random"}, {"temperature": 1.0}], ids=str
)
def test_another_setting_is_asked_anew(lively, tmp_path, forwards, other):
    other = Sampling(**{"length": 6, "steps": 3, **other})
    ask(lively, tmp_path)
    forwards.clear()
    again = ask(lively, tmp_path, other)
    assert forwards
    assert again == ask(lively, None, other)  # and it is what that setting gives


def test_a_likelihood_knows_its_draws_and_seed(lively, tmp_path, forwards):
    wanted = [Continuation(PROMPTS[0], (30, 31, 40, 41))]
    totals = set()
    for how in ({"draws": 4}, {"draws": 5}, {"draws": 4, "seed": 1}):
        forwards.clear()
        totals.add(MidwardLM(lively, folder=tmp_path, **how).log_probs(wanted)[0]["total"])
        assert forwards
        forwards.clear()
        MidwardLM(lively, folder=tmp_path, **how).log_probs(wanted)
        assert not forwards
    assert len(totals) == 3


def test_a_guard_answers_with_its_stub_and_for_itself_alone(lively, tmp_path, forwards):
    guard = Refuses()
    guard.bind(lively)
    guard.threshold = 0.5
    bare = ask(lively, tmp_path)
    forwards.clear()
    behind = ask(lively, tmp_path, guard=guard)
    assert [row["flagged"] for row in behind] == [False, True, False]
    assert behind[1]["text"] == STUB
    assert [behind[n]["text"] for n in (0, 2)] == [bare[n]["text"] for n in (0, 2)]
    assert forwards  # the bare model's answers aren't the guarded one's
    assert ask(lively, tmp_path) == bare


def test_a_killed_run_goes_on(lively, tmp_path, forwards, monkeypatch):
    monkeypatch.setattr(room, "CHUNK", 1)
    whole = ask(lively, None)

    def die(what, done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(lively, tmp_path, progress=die)
    with (tmp_path / "answers-0.jsonl").open("a") as file:
        file.write('{"key": "torn')
    forwards.clear()
    told = []
    assert ask(lively, tmp_path, progress=lambda *now: told.append(now)) == whole
    assert told == [("3 texts", 2, 3), ("3 texts", 3, 3)]
    assert set(forwards) == {1}


def test_draws_must_be_two_or_more(lively):
    with pytest.raises(ValueError, match="draws must be an integer, 2 or more; received 1"):
        MidwardLM(lively, draws=1)
