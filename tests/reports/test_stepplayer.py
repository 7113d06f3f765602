"""The step player: what a trace says is what the page shows, and no text can do anything but be read."""

import json
from dataclasses import replace

import pytest
import torch

from midward import Forced, Request, Sampling, Trace, sample
from midward.guards import Verdict
from midward.reports import html, stepplayer
from midward.reports.stepplayer import FORCED, MASK, NEVER, Generation
from midward.reports.tracing import of_trace

# --- from a trace to a record ------------------------------------------------------------------------------------


def traced(model, **settings):
    """(trace, responses) of two prompts, the first with a forced span."""
    trace = Trace(predictions=True)
    requests = [Request("t10 t11", forced=(Forced(3, (40, 41)),)), "t12"]
    responses = sample(model, requests, Sampling.for_model(model, length=10, **settings), watchers=[trace])
    return trace, responses


def rebuilt(record):
    """The frames of a record, as the page makes them from their changes."""
    frames, now = [], [MASK] * len(record["commit"])
    for pairs in record["changes"]:
        now = list(now)
        for at, token in zip(pairs[::2], pairs[1::2], strict=True):
            now[at] = token
        frames.append(now)
    return frames


@pytest.mark.parametrize("end", ["keep", "stop"])
def test_a_record_holds_all_of_a_trace(lively, end):
    trace, responses = traced(lively, steps=6, block=5, end=end)
    for row, response in enumerate(responses):
        record = json.loads(json.dumps(of_trace(trace, row, lively).record()))
        assert record["commit"] == trace.commit_step[row].tolist()
        assert record["steps"] == trace.predicted_steps(row) and record["total"] == 6
        for step, frame in zip(record["steps"], rebuilt(record), strict=True):
            ids = trace.predicted_ids(row, step).tolist()
            shown = [None if token == MASK else record["tokens"][token][0] for token in frame]
            mask = lively.family.mask_id
            assert shown == [None if token == mask else lively.tokenizer.decode([token]) for token in ids]
        for at, step in enumerate(record["commit"]):
            assert (record["confidence"][at] is None) == (step < 0)
            assert step < 0 or 0 < record["confidence"][at] <= 1
        assert record["tokens"] == [list(pair) for pair in dict.fromkeys(map(tuple, record["tokens"]))]
        assert len(response.raw_ids) == len(record["commit"])


def test_the_text_is_the_responses(lively):
    trace, responses = traced(lively, steps=5, end="keep")
    for row, response in enumerate(responses):
        shown = of_trace(trace, row, lively)
        ends = [token in lively.family.end_ids for token in response.raw_ids]
        upto = ends.index(True) if any(ends) else None
        assert shown.text == "".join(lively.tokenizer.decode([token]) for token in response.raw_ids[:upto])
    assert of_trace(trace, 0, lively).prompt == "t10 t11"


def test_an_autoregressive_model_predicts_nothing_ahead(llama):
    trace, _ = traced(llama, end="keep")
    record = of_trace(trace, 0, llama).record()
    for step, frame in zip(record["steps"], rebuilt(record), strict=True):
        there = [at for at, token in enumerate(frame) if token != MASK]
        assert there == sorted({*range(step + 1), 3, 4})


def test_where_nothing_is_committed_for_good_the_last_canvas_is_the_response(lively):
    trace, _ = traced(lively, steps=5, end="keep")
    trace.commit_step[0][5:] = NEVER  # as a row of DiffusionGemma's: what was accepted last, here or never
    lively.family = replace(lively.family, kind="canvas")
    commit = of_trace(trace, 0, lively).commit_step
    assert commit[:5] == tuple(trace.commit_step[0][:5].tolist()) and set(commit[5:]) == {4}
    flagged = {"guard": "sri", "looks": "during", "flagged": True, "score": 2.0, "threshold": 1.0, "step": 2}
    trace.notes = {"verdict": flagged}
    stopped = of_trace(trace, 0, lively)
    assert set(stopped.commit_step[5:]) == {NEVER}


def test_confidence_and_prompt_survive_the_disk(lively, tmp_path):
    trace, _ = traced(lively, steps=5)
    trace.notes = {"title": "t30", "note": "a line", "signal": [0.5, 0.25]}
    trace.save(tmp_path / "t.safetensors")
    loaded = Trace.load(tmp_path / "t.safetensors")
    assert loaded.notes == trace.notes and loaded.prompt_ids == trace.prompt_ids and loaded.of == 5
    for row in (0, 1):
        assert torch.equal(loaded.confidence[row].nan_to_num(-1), trace.confidence[row].nan_to_num(-1))
        assert of_trace(loaded, row, lively) == of_trace(trace, row, lively)


def test_what_can_be_wrong_with_a_trace(lively, llama, tmp_path):
    plain = Trace()
    sample(lively, ["t10"], Sampling(length=4, steps=2), watchers=[plain])
    with pytest.raises(ValueError, match="kept no predictions"):
        of_trace(plain, 0, lively)
    with pytest.raises(KeyError):
        of_trace(plain, 7, lively)
    plain.prompt_ids[0] = [100_000]
    plain.commit_step[0][:] = NEVER
    with pytest.raises(ValueError, match=r"holds token 100000, and .* has 512"):
        of_trace(plain, 0, lively)
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="is no trace"):
        Trace.load(tmp_path / "torn.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no trace at"):
        Trace.load(tmp_path / "none.safetensors")


def test_the_verdicts_signal_is_taken(lively):
    trace, _ = traced(lively, steps=5)
    verdict = Verdict("sri", "during", True, 2.5, 1.5, 1, (0.9, 0.25))
    trace.notes = {"verdict": verdict.record()}
    shown = of_trace(trace, 0, lively)
    assert shown.signal == (0.9, 0.25)
    told = {"guard": "sri", "looks": "during", "flagged": True, "score": 2.5, "threshold": 1.5, "step": 2}  # from 1
    assert shown.record()["verdict"] == told
    trace.notes["signal"] = [0.5]
    assert of_trace(trace, 0, lively).signal == (0.5,)


# --- by hand -----------------------------------------------------------------------------------------------------


def made(texts, commit, *, title="t30", prompt="t31", predicted=(), **options):
    """A generation whose position p says texts[p] from its commit on; before that what `predicted` says, or nothing."""
    last = max(commit)
    tokens = tuple(
        dict.fromkeys([*((text, text == "<end>") for text in texts), *((text, False) for text in predicted)])
    )
    place = {text: index for index, (text, _) in enumerate(tokens)}

    def at(p, step):
        if commit[p] == FORCED or 0 <= commit[p] <= step:
            return place[texts[p]]
        return place[predicted[p]] if predicted else MASK

    frames = tuple(tuple(at(p, step) for p in range(len(texts))) for step in range(last + 1))
    known = tuple(0.5 if step >= 0 else None for step in commit)
    steps = tuple(range(last + 1))
    return Generation(title, prompt, tokens, steps, frames, tuple(commit), known, **options)


SMALL = made(
    ["Sure", ",", " step", " one", ".", "<end>", "<end>"],
    [FORCED, FORCED, 1, 2, 0, 2, NEVER],
    predicted=["x", "x", " maybe", " two", "x", "x", "x"],
    total=4,
)


def test_redaction_leaves_no_words_anywhere():
    texts = [" zebra", "\nquagga", "<end>"]
    secret = made(texts, [0, FORCED, 1], prompt="okapi?", predicted=("kudu",) * 3, total=2)
    shown = stepplayer.fragment([secret], redact=True).markup
    plain = stepplayer.fragment([secret]).markup
    for word in ("zebra", "quagga", "okapi", "kudu"):
        assert word not in shown and word in plain
    assert "checkbox" not in shown and "checkbox" in plain  # no predictions, nothing to hide
    hidden = secret.redacted()
    assert hidden.commit_step == secret.commit_step and hidden.steps == secret.steps
    assert "[redacted: 6 characters" in hidden.prompt
    # Who ends where is still told, and nothing is predicted.
    assert [[MASK if t == MASK else hidden.tokens[t] for t in frame] for frame in hidden.frames] == [
        [(stepplayer.HIDDEN, False)] * 2 + [MASK],
        [(stepplayer.HIDDEN, False)] * 2 + [("<end>", True)],
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": (0, 2, 1)},
        {"steps": (0, 1)},
        {"steps": (-1, 0, 1)},
        {"frames": ((0,) * 7, (0,) * 7, (0,) * 6)},
        {"frames": ((99,) * 7,) * 3},
        {"confidence": ()},
        {"tokens": ((3, False),) * 9},
        {"commit_step": (0,)},
        {"scores": (0.5,)},
        {"verdict": {"guard": "sri"}},
    ],
)
def test_fields_that_no_generation_has(fields):
    with pytest.raises(ValueError, match="no generation of"):
        replace(SMALL, **fields)


def test_a_fragment_needs_a_generation():
    with pytest.raises(ValueError, match="a generation or more"):
        stepplayer.fragment([])


# --- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture
def play(show, tmp_path):
    """A page of these generations, opened and taken to its first step."""

    def open_(*generations, **options):
        path = html.write(tmp_path / "page.html", "t30", [stepplayer.fragment(generations)])
        page = show(path, **options)
        if page.is_visible("[data-do=first]") and page.is_enabled("[data-do=first]"):
            page.click("[data-do=first]")
        return page

    return open_


def test_it_opens_on_what_came_out(show, tmp_path):
    page = show(html.write(tmp_path / "page.html", "t30", [stepplayer.fragment([SMALL])]))
    assert page.inner_text(".state") == "done after step 3 of 4" and page.is_disabled("[data-do=last]")
    assert page.inner_text("[role=status]") == ""  # nothing is announced before anything is done


def states(page, number=0):
    """The class of each token of a generation, and its text."""
    script = "(all, n) => [...all[n].querySelectorAll('.canvas li')].map(li => [li.className, li.textContent])"
    found = page.eval_on_selector_all(".generation", script, number)
    return [(name.replace("token ", "").replace(" gap", ""), text) for name, text in found]


def step(page):
    return int(page.get_attribute(".player", "data-step"))


def test_tokens_are_told_apart_at_every_step(play):
    page = play(SMALL)
    mask = ("mask", "\xa0")
    assert states(page) == [("forced", "Sure"), ("forced", ","), *[mask] * 5]
    assert page.inner_text(".state") == "before the first step"
    page.click("[data-do=forth]")
    x = ("predicted", "x")
    maybe, two = ("predicted", "maybe"), ("predicted", "two")
    assert states(page)[2:] == [maybe, two, ("new", "."), x, x]
    page.click("[data-do=forth]")
    assert states(page)[2:] == [("new", "step"), two, ("stands", "."), x, x]
    page.click("[data-do=last]")
    assert states(page)[2:] == [("stands", "step"), ("new", "one"), ("stands", "."), ("new end", "∎"), x]
    assert page.inner_text(".state") == "done after step 3 of 4"
    # By more than colour: each kind has another weight, slant, border or line below.
    looks = """(all) => all.map(li => {
      const { fontWeight, fontStyle, borderBottomStyle, borderTopColor } = getComputedStyle(li);
      return [fontWeight, fontStyle, borderBottomStyle, borderTopColor].join();
    })"""
    assert len(set(page.eval_on_selector_all(".legend .token:not(.end)", looks))) == 5


def test_buttons_slider_and_keys_agree(play):
    page = play(SMALL)
    for key, wanted in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("ArrowLeft", 0),
    ):  # nothing has the focus
        page.keyboard.press(key)
        assert step(page) == wanted
    assert page.is_disabled("[data-do=first]") and page.is_disabled("[data-do=back]")
    page.click("[data-do=last]")
    assert step(page) == 3 and page.is_disabled("[data-do=forth]") and page.is_disabled("[data-do=last]")
    page.click("[data-do=back]")
    assert step(page) == 2 and page.input_value("[type=range]") == "2" and page.inner_text(".counter") == "step 2 of 3"
    page.fill("[type=range]", "1")
    assert step(page) == 1 and ("new", ".") in states(page)
    page.focus("[data-do=play]")
    for key, wanted in zip("ArrowRight End ArrowRight ArrowLeft Home ArrowLeft".split(), (2, 3, 3, 2, 0, 0)):
        page.keyboard.press(key)
        assert step(page) == wanted
    page.focus("[type=range]")  # the slider's own keys, once each
    page.keyboard.press("ArrowRight")
    assert step(page) == 1 and page.get_attribute("[type=range]", "aria-valuetext") == "step 1 of 3"
    page.focus("select")  # arrows there choose a speed
    page.keyboard.press("ArrowDown")
    assert step(page) == 1


@pytest.fixture
def timed(play):
    """`play`, with a clock that stands still until `run_for`."""

    def open_(*generations):
        page = play(*generations)
        page.clock.install()
        page.reload()
        page.click("[data-do=first]")
        page.clock.pause_at("2100-01-01")
        return page

    return open_


def test_play_and_pause(timed):
    page = timed(SMALL)
    page.focus("[type=range]")
    page.keyboard.press("Space")
    assert page.get_attribute("[data-do=play]", "aria-label") == "Pause"
    seen = []
    for _ in range(4):
        page.clock.run_for(700)
        seen.append(step(page))
    assert seen == [1, 2, 3, 3]
    assert page.locator(".playing").count() == 0
    assert page.get_attribute("[data-do=play]", "aria-label") == "Play"
    page.select_option("select", "4")
    page.click("[data-do=play]")  # from the start again, four times as fast
    assert step(page) == 0
    page.clock.run_for(350)
    assert step(page) == 2
    page.click("[data-do=play]")
    page.clock.run_for(2000)
    assert step(page) == 2 and page.locator(".playing").count() == 0


def test_steps_are_announced_one_by_one_but_while_playing_only_the_last(timed):
    page = timed(SMALL)
    page.click("[data-do=forth]")
    assert page.inner_text("[role=status]") == "step 1 of 3. t30: 1 committed"
    page.click("[data-do=play]")
    page.clock.run_for(400)
    assert step(page) == 2 and page.inner_text("[role=status]") == "step 1 of 3. t30: 1 committed"
    page.clock.run_for(700)
    assert page.inner_text("[role=status]") == "step 3 of 3. t30: done after step 3 of 4"


def test_two_generations_stay_in_step(play):
    long = made(["a", "b", "c", "d", "e"], [0, 1, 2, 3, 4], title="long", total=5)
    short = made(["a", "<end>", "c"], [0, 1, NEVER], title="short", total=5)
    page = play(long, short)
    page.fill("[type=range]", "2")
    assert [text for _, text in states(page, 0)] == ["a", "b", *["\xa0"] * 3]
    assert states(page, 1)[:2] == [("stands", "a"), ("new end", "∎")]
    page.focus("[data-do=play]")
    page.keyboard.press("End")
    assert page.locator(".state").all_inner_texts() == ["done after step 5 of 5", "done after step 2 of 5"]
    assert [name for name, _ in states(page, 1)] == ["stands", "stands end", "mask"]
    assert (
        page.inner_text("[role=status]") == "step 5 of 5. long: done after step 5 of 5. short: done after step 2 of 5"
    )


def test_two_players_on_a_page_are_their_own(show, tmp_path):
    parts = [stepplayer.fragment([SMALL], name=name) for name in ("one", "two")]
    page = show(html.write(tmp_path / "page.html", "t30", parts))
    page.click("#two [data-do=first]")
    assert page.get_attribute("#one", "data-step") == "3" and page.get_attribute("#two", "data-step") == "0"


def test_a_token_says_where_when_and_how_surely(play):
    page = play(SMALL)
    page.fill("[type=range]", "2")
    told = page.locator(".readout")
    page.hover(".canvas li:nth-child(3)")
    assert told.inner_text() == 'position 2 · committed at step 2 · confidence 0.500 · " step"'
    page.hover("h1")
    assert told.inner_text().startswith("Point at a token")
    page.focus(".canvas li:nth-child(1)")
    assert told.inner_text() == 'position 0 · forced from the start · "Sure"'
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert told.inner_text() == 'position 5 · predicted at step 2, not committed · "x"' and step(page) == 2
    assert page.locator(".canvas li[tabindex='0']").count() == 1  # one stop for Tab
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert step(page) == 3


def test_predictions_can_be_hidden(play):
    page = play(SMALL)
    page.click("[data-do=forth]")
    predicted = page.locator(".canvas .predicted bdi").first
    assert predicted.is_visible()
    page.uncheck("[type=checkbox]")
    assert not predicted.is_visible() and page.locator(".canvas .new bdi").is_visible()


def test_signal_score_and_verdict_follow_the_steps(play):
    verdict = {"guard": "sri", "looks": "during", "flagged": True, "score": 2.5, "threshold": 1.5, "step": 2}
    texts = ["a", "b", "<end>"]
    page = play(
        made(texts, [0, 1, NEVER], title="flagged", signal=(0.9, 0.25), scores=(0.5, 2.5), verdict=verdict, total=3),
        made(texts, [0, 1, 2], title="passed", verdict={**verdict, "flagged": False, "score": None, "step": None}),
    )
    lines, values = page.locator(".verdict"), page.locator(".plot .value")
    page.click("[data-do=forth]")
    assert lines.all_inner_texts() == ["Guard sri: nothing flagged so far"] * 2
    assert values.all_inner_texts() == ["0.90", "0.50"] and page.locator("circle.over").count() == 0
    page.click("[data-do=forth]")
    assert lines.first.inner_text() == (
        "Guard sri: flagged after step 2, the response is withheld (score 2.50, threshold 1.50)"
    )
    assert values.all_inner_texts() == ["0.25", "2.50"] and page.locator("circle.over").count() == 1
    assert page.get_attribute(".plot svg", "aria-label") == "at step 2: 0.25"
    assert page.locator(".state").first.inner_text() == "stopped after step 2 of 3"
    page.click("[data-do=last]")
    assert lines.last.inner_text() == "Guard sri: passed (unscored)"


def test_a_generation_that_a_guard_let_not_begin(play):
    verdict = {"guard": "masks", "looks": "before", "flagged": True, "score": 3.0, "threshold": 0.0, "step": None}
    nothing = Generation("t30", "t31", (), (), (), (NEVER,) * 4, (None,) * 4, verdict=verdict)
    page = play(nothing)
    assert page.inner_text(".state") == "not generated" and [name for name, _ in states(page)] == ["mask"] * 4
    assert "flagged, the response is withheld" in page.inner_text(".verdict")
    assert page.is_disabled("[data-do=forth]")


HOSTILE = [
    "<script>document.title='in'</script>",
    "</script><img src=x onerror=\"document.title='in'\">",
    "\u202egnp.exe",
    "A" * 10_240,
    "\0",
    "\n",
    "  ",
    "\u2028",
    "{{7*7}}",
    "&lt;b&gt;",
    "\U000e0041",
    "\ud800",
    "漢字",
    "'\"`\\",
]


def test_hostile_text_is_only_shown(play):
    page = play(made(HOSTILE, [0] * len(HOSTILE), title=HOSTILE[0], prompt=" ".join(HOSTILE[:3])), *[SMALL])
    page.click("[data-do=forth]")
    shown = [text for _, text in states(page)]
    assert page.title() == "t30" and page.locator("img").count() == 0
    assert shown[0].startswith("<script>docum") and shown[4:8] == ["⟨U+0000⟩", "↵", "␣", "⟨U+2028⟩"]
    assert shown[8:] == ["{{7*7}}", "&lt;b&gt;", "⟨U+E0041⟩", "⟨U+D800⟩", "漢字", "'\"`\\"]
    assert not set("\u202e\0\u2028") & set(page.inner_text("main")) and "⟨U+202E⟩gnp.exe" in shown[2]
    assert page.inner_text("h3 >> nth=0") == HOSTILE[0]
    # Ten kilobytes are clipped, and there on demand.
    assert max(map(len, shown)) <= 24
    page.focus(".canvas li:nth-child(4)")
    assert page.inner_text(".readout summary") == "whole token, 10240 characters"
    page.click(".readout summary")
    assert page.inner_text(".readout pre") == "A" * 10_240
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_less_motion_where_it_is_asked_for(play):
    name = "getComputedStyle(document.querySelector('.canvas .new')).animationName"
    for motion, wanted in (("reduce", "none"), ("no-preference", "arrive")):
        page = play(SMALL, reduced_motion=motion)
        page.click("[data-do=forth]")
        assert page.evaluate(name) == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_width(play, contrast, scheme):
    page = play(SMALL, SMALL, color_scheme=scheme, viewport={"width": 360, "height": 700})
    page.click("[data-do=last]")
    ratios = contrast(page, ".canvas li, .readout, .state, .verdict, .legend li, .keys")
    assert len(ratios) > 20 and min(ratios) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
