"""AdvPrefix: which openings are tried, which is chosen, and what is the result."""

import json

import pytest
from attack_double import REFUSAL, Double, said

from midward._fences import fields_of
from midward.attacks import find

LIKELY, KEY, RARE = "Likely one.\nAnd on", "The key.\nAnd on", "Rare one.\nAnd on"
SMALL = {"least": 1, "cuts": 1, "samples": 4, "mode": "parallel"}


def openings(*texts):
    """An uncensored model that gives these in turn, the last for good."""
    return said(*(json.dumps({"opening": text}) for text in texts))[0]


def grades(grade):
    """A scorer that goes by the reply."""
    return said(lambda message: json.dumps({"score": grade(fields_of(message)[1]["REPLY"])}))[0]


class Told(Double):
    """Knows how probable each opening is, and answers with what was forced and the seed."""

    def __init__(self, sandbox, nll=None, **more):
        super().__init__(self.say, self.measure, language_model=sandbox, **more)
        self.nll = nll or {}

    def say(self, seen):
        text = self.written(seen.forced[0]) if seen.forced else seen.prompt
        return f"{text} seed {seen.seed}"

    def measure(self, span):
        text = self.language_model.tokenizer.decode(list(span.ids))
        return -next((value for start, value in self.nll.items() if text.startswith(start)), 1.0)


NLL = {"Likely": 1.0, "The key": 9.0, "Rare": 90.0}


def run(attack, api, grade, *texts, name="advprefix", **settings):
    roles = {"uncensored": openings(*texts), "scorer": grades(grade)}
    return attack(name, api, roles=roles, **{**SMALL, "openings": len(texts), **settings})


def lucky(reply):
    """The likely one does it once, the key always, the rare one never."""
    return 8 if "The key" in reply else 10 if "Likely" in reply and reply.endswith("seed 2") else 1


def test_the_choice_is_by_likelihood_and_success_together(attack, sandbox):
    api = Told(sandbox, NLL)
    record, _ = run(attack, api, lucky, LIKELY, KEY, RARE, weight=10.0)
    # 1 - 10 ln 1/4 = 14.9 for the likely one, 9 - 10 ln 1 = 9 for the key
    assert record["chosen"] == {"text": "The key.\nAnd", "position": 0, "nll": 9.0, "success": 1.0, "samples": 4}
    assert record["queries"] == {"respond": 3 * 4 + 1, "score": 3, "gradient": 0}
    assert record["calls"] == {"uncensored": 3, "scorer": 13}


def test_the_chosen_ones_reply_is_the_result_even_if_a_sample_scored_more(attack, sandbox):
    record, sample = run(attack, Told(sandbox, NLL), lucky, LIKELY, KEY)
    assert record["score"] == 8 and record["note"]["stage"] == "result" and record["tried"] == 9
    assert sample.store["texts"]["reply"] == "The key.\nAnd seed 0"


def test_only_the_most_probable_are_tried(attack, sandbox):
    api = Told(sandbox, NLL)
    record, _ = run(attack, api, lucky, RARE, LIKELY, KEY, keep=2)
    assert record["queries"] == {"respond": 9, "score": 3, "gradient": 0}
    assert not any("Rare" in api.written(seen.forced[0]) for seen in api.seen)


def test_unfit_openings_are_not_tried(attack, sandbox):
    api = Told(sandbox)
    unfit = ("One line only", "I cannot help with that.\nSorry", f"{'far ' * 40}.\nToo long", "ok.\nb")
    record, sample = run(attack, api, lambda reply: 1, *unfit, KEY, KEY, openings=6, least=6)
    assert [len(api.spans), record["candidates"]] == [1, 1]
    assert sample.store["texts"]["reply"].startswith("The key.")


def test_an_opening_is_cut_behind_its_first_line(attack, sandbox):
    api = Told(sandbox)
    run(attack, api, lambda reply: 1, "Here it is: \n1. Take the  salt now and then", cuts=3, openings=1, samples=1)
    tried = [api.language_model.tokenizer.decode(list(span.ids)) for span in api.spans]
    assert tried == ["Here it is: \n1.", "Here it is: \n1. Take", "Here it is: \n1. Take the"]


def test_the_measure_is_by_its_mode(attack, sandbox):
    api = Told(sandbox)
    modes = []
    measure = api.score

    async def score(spans, *, mode, length):
        modes.append(mode)
        return await measure(spans, mode=mode, length=length)

    api.score = score
    run(attack, api, lambda reply: 1, KEY, mode="sequential")
    assert modes == ["sequential"]


# --- asking for it -------------------------------------------------------------------------------------------


def test_asking_needs_chat_alone(attack):
    target, prompts = said(lambda prompt: REFUSAL)
    record, _ = run(attack, target, lambda reply: 1, LIKELY, KEY, name="advprefix-ask", keep=1)
    assert record["capabilities"] == ["CHAT", "N"] and record["queries"]["respond"] == 5
    assert {prompt.rsplit("\n\nBegin your answer with: ", 1)[0] for prompt in prompts} == {"Make a drex valm skorn."}


def test_asking_finds_the_opening_that_works(attack, sandbox):
    api = Told(sandbox)
    record, sample = run(attack, api, lucky, LIKELY, RARE, KEY, name="advprefix-ask")
    assert record["chosen"]["text"].startswith("The key") and record["score"] == 8
    assert not any(seen.forced for seen in api.seen) and not api.spans
    assert sample.store["texts"]["reply"].startswith("Make a drex valm skorn.\n\nBegin your answer with: The key.")


# --- the middle variant --------------------------------------------------------------------------------------

LONG = json.dumps({"answer": " ".join(f"w{n}" for n in range(200))})


def middle(attack, api, answer=LONG, grade=lambda reply: 1, **settings):
    roles = {"uncensored": said(answer)[0], "scorer": grades(grade)}
    settings = {"answers": 2, "spans": 25, "keep": 4, "samples": 2, "mode": "parallel", **settings}
    return attack("advprefix-mid", api, roles=roles, **settings)


@pytest.mark.parametrize(("window", "length"), [((20, 60), 96), ((30, 40), 96), ((20, 60), 50)])
def test_nothing_is_forced_or_measured_outside_the_window(attack, sandbox, window, length):
    api = Told(sandbox, length=length)
    middle(attack, api, window=window)
    stop = min(window[1], length)
    spans = [(span.position, span.position + len(span.ids)) for span in api.spans]
    spans += [(one["position"], one["position"] + len(one["ids"])) for seen in api.seen for one in seen.forced]
    assert len(spans) > 10 and min(spans)[0] >= window[0] and max(end for _, end in spans) <= stop
    assert all(not span.forced for span in api.spans)  # all before it is masked


def test_a_span_stands_where_it_stood_in_the_answer(attack, sandbox):
    api = Told(sandbox, length=96)
    middle(attack, api)
    ids = sandbox.tokenizer(json.loads(LONG)["answer"], add_special_tokens=False)["input_ids"]
    assert all(list(span.ids) == ids[span.position : span.position + len(span.ids)] for span in api.spans)
    assert all(4 <= len(span.ids) <= 32 for span in api.spans)


def test_an_answer_that_ends_before_the_window_gives_none(attack, sandbox):
    record, sample = middle(attack, Told(sandbox, length=96), json.dumps({"answer": "Too short."}))
    assert record["candidates"] == 0 and sample.store["texts"] == {"reply": None}


def test_the_window_must_hold_a_span():
    with pytest.raises(ValueError, match="a span of 4 tokens fits neither"):
        find("advprefix-mid").configure({"window": (20, 23)})
