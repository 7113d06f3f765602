"""Watchers that write, and edits of models that are filled from left to right."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edits import LENGTH, MASK, PREFIX, PROMPT, PROMPTS, WHOLE, Canvases, Writer, edited

from midward import Ban, Edit, Forced, Request, Sampling, sample
from midward.errors import InputError
from midward.sampling import Editor

HIJACK = Edit(3, PREFIX, "all")
REFUSE = Edit(3, (Forced(0, (60,)),), "all")
CAUSAL = Sampling(length=LENGTH, order="left_to_right", end="keep")


def forced(response, positions):
    """The tokens that stand in a response at these positions, for another one."""
    return tuple(Forced(at, (response.raw_ids[at],)) for at in positions)


# --- defences that write -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"block": 4}, {"threshold": 0.3}, {"order": "random", "temperature": 1.0}], ids=str
)
def test_who_asks_for_an_edit_makes_no_difference(model, options):
    sampling = replace(WHOLE, **options)
    changes = {0: (Edit(0, PREFIX, (3,)),), 2: (Edit(0, (), (0, 1, 2)), Edit(1, (Forced(3, (50,)),)))}
    asked = [Request(prompt, seed=1) for prompt in PROMPTS]
    wanted = sample(model, [replace(each, edits=changes.get(i, ())) for i, each in enumerate(asked)], sampling)
    for size in (1, 4):
        writer = Writer(changes)
        assert isinstance(writer, Editor)
        assert sample(model, asked, sampling, batch_size=size, watchers=[writer]) == wanted


def test_one_that_asks_for_nothing_changes_nothing(model, causal):
    for each, sampling in ((model, WHOLE), (causal, CAUSAL)):
        plain = sample(each, PROMPTS, sampling)
        assert sample(each, PROMPTS, sampling, watchers=[Writer({1: ()})]) == plain


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_defence_sees_the_attacks_edit_and_watchers_what_both_made(model, order):
    seen = []

    class Defence(Writer):
        def edits(self, step):
            seen.append(step.ids[0, step.response].tolist())
            assert step.written is None or step.written[0].nonzero()[:, 0].tolist() == [0, 1, 2]
            return super().edits(step)

    watch = Canvases()
    attacked = edited(replace(HIJACK, freeze=False))
    [response] = sample(model, [attacked], WHOLE, watchers=[watch, Defence({0: [REFUSE]})][order])
    assert seen[3] == [40, 41, 42] + [MASK] * 13
    ids, new, committed, predicted = watch.seen[0, 3]
    assert ids == [60] + [MASK] * 15 and committed == [True] + [False] * 15 and not any(new) and predicted[0] == 60
    assert response.written == {0} and len(response.edits) == 2 and MASK not in response.raw_ids


def test_what_an_attack_froze_a_defence_cannot_change(model):
    with pytest.raises(InputError, match=r"Writer, request 0: .* position 0, which is forced or frozen"):
        sample(model, [edited(HIJACK)], WHOLE, watchers=[Writer({0: [REFUSE]})])


def test_a_stop_in_the_step_of_an_edit_sees_it(model):
    class Stopping(Canvases):
        def keep(self, step):
            super().keep(step)
            step.stopped.update(row for i, row in enumerate(step.rows) if step.ids[i, step.response][0] == 60)

    responses = sample(model, PROMPTS, WHOLE, watchers=[Stopping(), Writer({1: [REFUSE]})])
    assert [response.steps for response in responses] == [8, 4, 8, 8]


@pytest.mark.parametrize(
    "edit, options, message",
    [
        (Edit(5, PREFIX), {"block": 8}, "begins at response position 8"),
        (Edit(3, (), (1,)), {"block": 8}, "the last step of their block"),
        (Edit(1, (Forced(2, (50,)),)), {"bans": (Ban((7, 8), 2),)}, "in the window of a ban"),
    ],
)
def test_an_edit_of_a_defence_that_cannot_be_made_is_an_error(model, edit, options, message):
    requests = [PROMPT, Request(PROMPT, bans=options.pop("bans", ()))]
    with pytest.raises(InputError, match="Writer, request 1: ") as error:
        sample(model, requests, replace(WHOLE, **options), watchers=[Writer({1: [edit]}, needs_all_steps=True)])
    assert message in str(error.value)


def test_a_defence_writes_to_no_approximate_cache_and_to_no_row_that_has_left(model):
    with pytest.raises(InputError, match="Writer writes to the canvas"):
        sample(model, [PROMPT], replace(WHOLE, cache="prefix", block=8), watchers=[Writer({})])

    class Late(Writer):
        def edits(self, step):
            return self.asked

    with pytest.raises(InputError, match="Late edits request 7"):
        sample(model, [PROMPT], WHOLE, watchers=[Late({7: [HIJACK]})])


class Restless(Writer):
    """Masks all of the active block again, whenever it may."""

    def edits(self, step):
        return {row: [Edit(0, (), tuple(range(*step.block)))] for row in step.rows}


@pytest.mark.parametrize("block", [None, 8])
def test_one_that_never_lets_a_row_be_filled_is_stopped(model, causal, block):
    diffusion = replace(WHOLE, threshold=0.9, block=block)
    for each, sampling in ((model, diffusion), (causal, CAUSAL)):
        with pytest.raises(InputError, match="nothing would fill them"):
            sample(each, [PROMPT], sampling, watchers=[Restless({})])


# --- from left to right ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("step", [0, 2, 7, LENGTH - 1])
def test_cut_back_to_nothing_and_a_prefix_written_is_prefill(causal, step, temperature):
    sampling = replace(CAUSAL, temperature=temperature)
    [response] = sample(causal, [edited(replace(HIJACK, step=step), seed=1)], sampling)
    [prefilled] = sample(causal, [Request(PROMPT, PREFIX, seed=1)], sampling)
    assert response.raw_ids == prefilled.raw_ids and response.written == {0, 1, 2}
    assert response.edits[0].remasked == tuple(range(3, step + 1))


def test_cut_back_to_a_length_is_prefill_with_what_stands_before_it(causal):
    [plain] = sample(causal, [PROMPT], CAUSAL)
    [response] = sample(causal, [edited(Edit(9, (Forced(5, (50,)),), tuple(range(4, LENGTH))))], CAUSAL)
    stands = (*forced(plain, range(4)), Forced(5, (50,)))
    assert response.raw_ids == sample(causal, [Request(PROMPT, stands)], CAUSAL)[0].raw_ids
    assert response.steps == response.nfe == 10 + LENGTH - 4


def test_what_is_written_over_is_read_anew(causal):
    [plain] = sample(causal, [PROMPT], CAUSAL)
    [response] = sample(causal, [edited(Edit(6, (Forced(2, (50,)),)))], CAUSAL)
    stands = (*forced(plain, (0, 1, 3, 4, 5, 6)), Forced(2, (50,)))
    [wanted] = sample(causal, [Request(PROMPT, stands)], CAUSAL)
    assert response.raw_ids == wanted.raw_ids != plain.raw_ids and response.steps == LENGTH


@st.composite
def cuts(draw):
    """Edits that cut back to a length and write from there on, so that every token follows those before it."""
    edits, kept, lost = [], set(), 0
    for step in sorted(draw(st.sets(st.integers(0, LENGTH - 1), max_size=4))):
        stands = step + 1 - lost
        first = draw(st.integers(0, stands - 1))
        places = draw(st.sets(st.integers(first, LENGTH - 1), max_size=4)) - kept
        again = tuple(at for at in range(first, stands) if at not in kept)
        spans = tuple(Forced(at, (draw(st.integers(20, 511)),)) for at in sorted(places))
        if again or spans:
            edits.append(Edit(step, spans, draw(st.sampled_from(["all", again])) if not first else again))
            lost = step + 1 - min(set(again) - places, default=stands)
            kept |= places
    return edits


@settings(max_examples=25, derandomize=True)
@given(edits=cuts(), defence=st.booleans())
def test_after_cuts_every_token_follows_those_before_it(causal, edits, defence):
    request = Request(PROMPT, seed=1) if defence else edited(*edits, seed=1)
    watch = Canvases()
    [response] = sample(causal, [request], CAUSAL, watchers=[watch, *([Writer({0: edits})] if defence else [])])
    [wanted] = sample(causal, [Request(PROMPT, forced(response, sorted(response.written)), seed=1)], CAUSAL)
    assert response.raw_ids == wanted.raw_ids and len(response.edits) == len(edits)
    assert [step for _, step in watch.seen] == list(range(response.steps))
    for _, new, committed, _ in watch.seen.values():
        assert sum(new) <= 1 and not any(is_new and not stands for is_new, stands in zip(new, committed, strict=True))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"end": "stop"}], ids=str)
def test_batches_change_nothing_from_left_to_right(causal, options):
    sampling = replace(CAUSAL, **options)
    requests = [
        edited(HIJACK, prompt=PROMPTS[0]),
        edited(Edit(3, (), (2, 3)), Edit(7, (Forced(1, (50,)),)), prompt=PROMPTS[1]),
        edited(Edit(3, PREFIX, freeze=False), Edit(9, (), "all"), prompt=PROMPTS[2]),
        edited(Edit(2, (Forced(8, (60, 61)),)), prompt=PROMPTS[0], bans=(Ban((70, 71), 12),)),
        PROMPTS[3],
    ]
    alone = [sample(causal, [request], sampling)[0] for request in requests]
    assert sample(causal, requests, sampling, batch_size=5) == alone
    assert sample(causal, requests[::-1], sampling, batch_size=2) == alone[::-1]


def test_an_end_before_the_last_edit_stops_nothing_from_left_to_right(llama):
    stop = replace(CAUSAL, end="stop")
    head = llama.network.lm_head.weight.data
    [plain] = sample(llama, [PROMPT], stop)
    head[1] = head[plain.raw_ids[1]] * 1.1
    [stopped] = sample(llama, [PROMPT], stop)
    assert stopped.ended and stopped.steps < 3, "this says nothing"
    [late] = sample(llama, [edited(replace(HIJACK, step=9))], stop)
    [prefilled] = sample(llama, [Request(PROMPT, PREFIX)], stop)
    assert late.ids == prefilled.ids and late.edits
    [write] = sample(llama, [edited(Edit(9, (Forced(12, (50,)),)))], stop)  # the end still stands then
    assert write.ids == stopped.ids and write.steps == 10


@pytest.mark.parametrize(
    "edits, message",
    [
        ([Edit(5, (), (2, 3))], "leaves response position 4"),
        ([Edit(5, (), (2, 3, 4, 5)), Edit(6, (), (1,))], "leaves response position 2"),
        ([Edit(LENGTH, PREFIX)], "too late: the response takes 16 steps"),
        ([HIJACK, Edit(5, (), (0, 1, 2, 3, 4))], "position 0 again, which is forced or frozen"),
    ],
)
def test_an_autoregressive_model_is_only_cut_back(causal, edits, message):
    with pytest.raises(InputError, match="request 0") as error:
        sample(causal, [edited(*edits)], CAUSAL)
    assert message in str(error.value)


def test_a_selector_picks_nothing_of_an_autoregressive_model(causal):
    import midward.chat  # noqa: F401  registers "refusal"

    with pytest.raises(InputError, match='Mask "all", or every position from one on'):
        sample(causal, [edited(Edit(3, (), "refusal"))], CAUSAL)
