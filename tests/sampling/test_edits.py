"""Edits: the canvas written to and masked again between steps, and a schedule that still fills everything."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from watching import Watching

import midward
from midward import Ban, Edit, Forced, Request, Sampling, Trace, sample
from midward.errors import InputError
from midward.sampling.requests import SELECTORS

LENGTH, STEPS, MASK, END = 16, 8, 2, 1
PROMPT = [5, 6, 7, 8]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
PREFIX = (Forced(0, (40, 41, 42)),)
WHOLE = Sampling(length=LENGTH, steps=STEPS, end="keep")
PROPERTY = settings(max_examples=12, derandomize=True)


@pytest.fixture(scope="module")
def model(lively_folder):
    """The lively model; it never says the mask, which the published algorithm would let it do."""
    model = midward.load(lively_folder, device="cpu", dtype="float32")
    model.network.lm_head.weight.data[MASK] = 0
    return model


@pytest.fixture
def ending(lively):
    """A model that likes to end: its end token beats a common one."""
    lively.network.lm_head.weight.data[MASK] = 0
    head = lively.network.lm_head.weight.data
    head[END] = head[23] * 1.02
    return lively


def edited(*edits, prompt=PROMPT, **about):
    return Request(prompt, edits=edits, **about)


class Writer(Watching):
    """A defence that writes: it makes each request's edits at their steps, whatever it sees."""

    def __init__(self, edits, **options):
        super().__init__(**options)
        self.asked = edits

    def edits(self, step):
        return {row: [each for each in self.asked.get(row, ()) if each.step == step.index] for row in step.rows}


class Canvases(Watching):
    """Keeps what each step shows: ids, new, committed, predictions and the states' sum, by request and step."""

    def __init__(self, **options):
        super().__init__(self.keep, **options)
        self.seen = {}

    def keep(self, step):
        tokens, _ = step.predictions
        for i, row in enumerate(step.rows):
            ids = step.ids[i, step.response].tolist()
            self.seen[row, step.index] = (ids, step.new[i].tolist(), step.committed[i].tolist(), tokens[i].tolist())


# --- equivalences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, 6])
@pytest.mark.parametrize("schedule", ["even", "published", "rounded"])
@pytest.mark.parametrize("order", ["low_confidence", "random", "left_to_right", "entropy"])
def test_all_masked_again_and_a_prefix_written_is_prefill_with_the_steps_that_are_left(model, step, order, schedule):
    sampling = replace(WHOLE, order=order, schedule=schedule)
    edit = edited(Edit(step, PREFIX, "all"), seed=1)
    left = replace(sampling, steps=STEPS - step - 1)
    [response], [prefilled] = sample(model, [edit], sampling), sample(model, [Request(PROMPT, PREFIX, seed=1)], left)
    assert response.raw_ids == prefilled.raw_ids and MASK not in response.raw_ids
    assert response.steps == STEPS  # nobody gains forwards by it


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"order": "random"},
        {"guidance": 0.7},
        {"block": 4},
        {"threshold": 0.5, "temperature": 1.0},
        {"end": "stop"},
        {"steps": 40},
    ],
)
def test_batches_change_nothing(ending, options):
    sampling = replace(WHOLE, **options)
    requests = [
        edited(Edit(0, PREFIX, (3, 4, 9)), prompt=PROMPTS[0]),
        edited(Edit(1, (Forced(2, (50,)),)), prompt=PROMPTS[1], forced=(Forced(8, (60, 61)),)),
        edited(Edit(0, (), "all"), Edit(0, PREFIX, freeze=False), prompt=PROMPTS[2]),
        PROMPTS[3],
    ]
    if sampling.block is not None:
        requests[1] = edited(Edit(2, (Forced(5, (50,)),), (6, 7)), prompt=PROMPTS[1])
    alone = [sample(ending, [request], sampling)[0] for request in requests]
    assert sample(ending, requests, sampling, batch_size=4) == alone
    assert sample(ending, requests[::-1], sampling, batch_size=3) == alone[::-1]
    assert all(response.edits for response in alone[:3]) and not alone[3].edits


def test_requests_without_edits_keep_their_keys():
    assert Request(PROMPT, PREFIX).record() == {
        "prompt": PROMPT,
        "forced": ({"position": 0, "ids": (40, 41, 42)},),
        "bans": (),
        "seed": None,
    }


def test_draws_depend_on_edits(model):
    warm = replace(WHOLE, temperature=1.5)
    late = [edited(Edit(7, (Forced(15, (at,)),))) for at in (50, 51)]
    first, second = sample(model, late, warm)
    assert first.raw_ids[:15] != second.raw_ids[:15]


# --- properties --------------------------------------------------------------------------------------


@st.composite
def requests(draw):
    """A request with a forced token or two and up to three edits, all of which can be made."""
    places = st.sets(st.integers(0, LENGTH - 1), max_size=5)
    forced = draw(st.sets(st.integers(0, LENGTH - 1), max_size=2))
    edits, kept = [], set(forced)
    for step in sorted(draw(st.lists(st.integers(0, STEPS - 2), max_size=3))):
        write = draw(places) - kept
        remask = draw(st.sampled_from(["none", "all", None]))
        if remask is None:
            remask = tuple(draw(places) - kept)
        freeze = draw(st.booleans())
        if write or remask not in ("none", ()):
            spans = tuple(Forced(at, (draw(st.integers(20, 511)),)) for at in sorted(write))
            edits.append(Edit(step, spans, remask, freeze))
            kept |= write if freeze else set()
    return edited(*edits, forced=tuple(Forced(at, (100 + at,)) for at in sorted(forced)))


@PROPERTY
@given(
    request=requests(),
    order=st.sampled_from(["low_confidence", "random", "left_to_right", "margin", "annealed"]),
    schedule=st.sampled_from(["even", "published"]),
    temperature=st.sampled_from([0.0, 1.3]),
    end=st.sampled_from(["keep", "forbid"]),
    threshold=st.sampled_from([None, 0.6]),
    defence=st.booleans(),
)
def test_everything_is_filled_and_what_must_stay_stays(
    model, request, order, schedule, temperature, end, threshold, defence
):
    order = order if threshold is None else "low_confidence"
    sampling = Sampling(LENGTH, STEPS, None, order, threshold, temperature, end=end, schedule=schedule)
    trace = Trace()
    if defence:  # the same edits, asked for by a watcher
        writer = Writer({0: request.edits}, needs_all_steps=True)
        [response] = sample(model, [replace(request, edits=())], sampling, watchers=[trace, writer])
    else:
        [response] = sample(model, [request], sampling, watchers=[trace])
    assert MASK not in response.raw_ids
    standing = {span.position: span.ids[0] for span in request.forced}
    for edit in request.edits:
        standing |= edit.written if edit.freeze else {}
    assert all(response.raw_ids[position] == token for position, token in standing.items())
    assert [each.step for each in response.edits] == [edit.step for edit in request.edits]
    for each, edit in zip(response.edits, request.edits, strict=True):
        assert set(each.written) == set(edit.written) and not set(each.remasked) & set(each.written)
    # What the trace says nobody committed is what was forced or written.
    by_others = {span.position for span in request.forced} | response.written
    assert {at for at, step in enumerate(trace.commit_step[0].tolist()) if step < 0} == by_others


def test_masks_are_spread_over_the_steps_that_are_left(model):
    watch = Canvases()
    sample(model, [edited(Edit(3, PREFIX, (5, 9, 10)))], WHOLE, watchers=[watch])
    counts = [sum(token == MASK for token in watch.seen[0, step][0]) for step in range(STEPS)]
    drops = [before - after for before, after in pairwise(counts[3:])]
    assert counts[-1] == 0 and sum(drops) == counts[3] and max(drops) - min(drops) <= 1


def test_in_a_block_the_masks_go_to_its_own_steps(model):
    sampling = replace(WHOLE, block=8)
    watch = Canvases()
    [response] = sample(model, [edited(Edit(5, (Forced(9, (50,)),), (8, 10)))], sampling, watchers=[watch])
    assert MASK not in response.raw_ids and response.raw_ids[9] == 50
    assert MASK not in watch.seen[0, 3][0][:8]
    assert all(watch.seen[0, step][2][:8] == [True] * 8 for step in range(4, 8))


# --- what sees it ------------------------------------------------------------------------------------


def test_watchers_see_the_edited_canvas(model):
    edit = Edit(2, PREFIX, "all")
    watch = Canvases()
    [response] = sample(model, [edited(edit)], WHOLE, watchers=[watch])
    ids, new, committed, predicted = watch.seen[0, 2]
    assert ids == [40, 41, 42] + [MASK] * 13 and committed == [True] * 3 + [False] * 13
    assert not any(new) and predicted[:3] == [40, 41, 42]
    assert response.edits[0].written == (0, 1, 2) and response.edits[0].remasked
    assert response.written == {0, 1, 2}


def test_a_trace_is_sure_of_no_token_that_stands_no_more(model):
    trace = Trace(predictions=True)
    sampling = replace(WHOLE, order="left_to_right")
    edits = (Edit(3, (Forced(1, (50,)),), (2, 3)), Edit(STEPS - 1, (Forced(9, (51,)),)))
    sample(model, [edited(*edits)], sampling, watchers=[trace])
    by_step = trace.commit_step[0] >= 0
    assert trace.commit_step[0][[1, 9]].tolist() == [-2, -2]
    assert torch.equal(trace.confidence[0].isnan(), ~by_step)


def test_an_end_that_stands_before_the_last_edit_stops_nothing(lively):
    sampling = replace(WHOLE, end="stop", steps=LENGTH, order="left_to_right")
    [response] = sample(lively, [PROMPT], sampling)
    lively.network.lm_head.weight.data[END] = lively.network.lm_head.weight.data[response.raw_ids[1]] * 1.1
    [stopped] = sample(lively, [PROMPT], sampling)
    assert stopped.ended and stopped.steps < 3, "this says nothing"
    late = LENGTH - 3
    [response] = sample(lively, [edited(Edit(late, PREFIX, "all"))], sampling)
    assert response.raw_ids[:3] == [40, 41, 42] and response.steps > late


def test_an_edit_is_made_where_nothing_would_be_committed(model):
    sampling = replace(WHOLE, steps=40)
    [response] = sample(model, [edited(Edit(30, PREFIX, "all"))], sampling)
    [wanted] = sample(model, [Request(PROMPT, PREFIX)], replace(WHOLE, steps=9))
    assert response.raw_ids == wanted.raw_ids and response.steps < 40


def test_a_written_token_that_is_not_frozen_may_be_masked_again(model):
    loose, firm = (
        edited(Edit(1, PREFIX, freeze=freeze), Edit(3, (Forced(9, (50,)),), "all")) for freeze in (False, True)
    )
    free, frozen = sample(model, [loose, firm], WHOLE)
    assert free.written == {9} and frozen.written == {0, 1, 2, 9}


def test_a_selector_picks_among_the_models_own_tokens(model, monkeypatch):
    asked = []

    def second(model, ids, own, step):
        asked.append((own, step))
        return [at for at, is_own in enumerate(own) if is_own][1:2]

    monkeypatch.setitem(SELECTORS, "second", second)
    request = edited(Edit(2, (), "second"), forced=(Forced(0, (50,)),))
    [response] = sample(model, [request], WHOLE)
    [(own, step)] = asked
    assert step == 2 and not own[0] and sum(own) == 6
    assert response.edits[0].remasked == ([at for at, is_own in enumerate(own) if is_own][1],)


# --- what can't be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_, options, message",
    [
        (edited(Edit(8, PREFIX)), {}, "too late: the response takes 8 steps"),
        (edited(Edit(7, PREFIX, "all")), {}, "the last step of their block"),
        (edited(Edit(3, PREFIX), Edit(2, PREFIX)), {}, "in the order of their steps"),
        (edited(Edit(3, (Forced(14, (5, 6, 7)),))), {}, "ends behind the response's 16 positions"),
        (edited(Edit(3, (), (16,))), {}, "lies behind the 16 positions"),
        (edited(Edit(3, (Forced(1, (MASK,)),))), {}, "the mask token"),
        (edited(Edit(3, (Forced(1, (9999,)),))), {}, "outside the vocabulary"),
        (edited(Edit(3, (*PREFIX, Forced(2, (9,))))), {}, "overlaps another"),
        (edited(Edit(3, PREFIX), forced=(Forced(2, (9,)),)), {}, "position 2, which is forced"),
        (edited(Edit(3, (), (2,)), forced=(Forced(2, (9,)),)), {}, "position 2 again, which is forced"),
        (edited(Edit(1, PREFIX), Edit(3, (Forced(1, (9,)),))), {}, "position 1, which is forced or frozen"),
        (edited(Edit(3, PREFIX), bans=(Ban((7, 8), 2),)), {}, "position 2, which is in the window of a ban"),
        (edited(Edit(3, (), "some")), {}, "'some'"),
        (edited(Edit(3, PREFIX, "all")), {"cache": "dual", "block": 8}, "cache='dual'"),
        (edited(Edit(5, PREFIX)), {"block": 8}, "begins at response position 8"),
        (edited(Edit(5, (), (7, 9))), {"block": 8}, "begins at response position 8"),
        (edited(Edit(5, (), "all")), {"block": 8}, "begins at response position 8"),
        (edited(Edit(3, (), (1,))), {"block": 8}, "the last step of their block"),
        (edited(Edit(3, PREFIX)), {"block": 8, "threshold": 0.5}, "use block=None"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_forward(model, request_, options, message):
    watch = Canvases()
    with pytest.raises(InputError, match="request 1") as error:
        sample(model, [PROMPT, request_], replace(WHOLE, **options), watchers=[watch])
    assert message in str(error.value) and not watch.seen


@pytest.mark.parametrize(
    "step, write, remask",
    [(-1, PREFIX, "none"), (1, (), "none"), (1, (), ()), (1, PREFIX, (-1,)), (1, PREFIX, 3), (1, ("a",), "all")],
)
def test_an_edit_that_makes_no_sense_is_an_error(step, write, remask):
    with pytest.raises(InputError):
        Edit(step, write, remask)


def test_numbers_that_are_not_finite_end_a_row_with_edits(lively):
    lively.network.lm_head.weight.data[:] = torch.nan
    [response] = sample(lively, [edited(Edit(3, PREFIX, "all"))], WHOLE)
    assert response.error and response.text == ""
