"""Looks at blocks by progress: what is seen, when, and that it is the states of the model's own forward."""

import numpy as np
import pytest
import torch

import midward
from midward.dynamics.blockwise import States
from midward.dynamics.looks import GRID, POSITIONS, Looks
from midward.sampling import Edit, Forced, Request, Sampling, sample

PROMPTS = ["t30 t31 t32", "t40 t41", "t50 t51 t52 t53"]


@pytest.fixture(scope="module")
def model(lively_folder):
    return midward.load(lively_folder, device="cpu", dtype="float32")


class Kept:
    """Keeps what `Looks` should have seen, in the plainest way: canvas, states and commits of every step."""

    needs_all_steps = False

    def on_start(self, canvas):
        self.start = canvas.width
        self.steps = []

    def on_step(self, step):
        for place, row in enumerate(step.rows):
            self.steps.append(
                (
                    row,
                    step.blocks[place],
                    step.hidden[place].clone(),
                    step.committed[place].clone(),
                    step.new[place].clone(),
                    step.ids[place, step.response].clone(),
                )
            )

    def on_end(self, canvas):
        pass


def naive(kept, row, size, ends):
    """The looks of one row: {(block, look): phi}, a step at a time."""
    together = -(-POSITIONS // size)
    found, progress, open_of, stood = {}, {}, {}, {}
    sums: dict = {}
    for number_of, (start, stop), hidden, committed, new, ids in kept:
        if number_of != row:
            continue
        block = -(-start // size)
        where = torch.arange(start, stop)
        earlier = [sums[b] for b in range(block - together + 1, block) if b in sums]

        def mean(total, count, earlier=earlier):
            total, count = total + sum(t for t, _ in earlier), count + sum(c for _, c in earlier)
            return (total / count).numpy()

        if block not in open_of:
            open_of[block] = [int(p) for p in where if not committed[p] or new[p]]
            progress[block] = 0.0
            if open_of[block]:
                found[block, 0] = mean(hidden[open_of[block]].sum(0), len(open_of[block]))
        todo = open_of[block]
        if not todo:
            continue
        standing = [p for p in todo if committed[p]]
        progress[block] = max(progress[block], len(standing) / len(todo))
        first_end = min((p for p in standing if int(ids[p]) in ends), default=stop)
        counted = [p for p in standing if p <= first_end] or todo
        was = stood.get(block)
        stood[block] = ids[start:stop].tolist()
        if (block, len(GRID) - 1) in found:  # it was full: a change of it is one more look
            reached = [max(j for b, j in found if b == block) + 1] if was != stood[block] and standing else []
            sums[block] = (hidden[counted].sum(0), len(counted)) if reached else sums[block]
            found |= {(block, look): mean(*sums[block]) for look in reached}
            continue
        reached = [j for j, point in enumerate(GRID) if j and progress[block] >= point and (block, j) not in found]
        if reached:
            sums[block] = hidden[counted].sum(0), len(counted)
            for look in reached:
                found[block, look] = mean(*sums[block])
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"length": 24, "steps": 12, "block": 8},
        {"length": 24, "steps": 24, "block": 12},
        {"length": 40, "steps": 5, "block": 40},
        {"length": 24, "block": 8, "threshold": 0.02},
    ],
    ids=str,
)
def test_looks_are_those_of_a_plain_loop(model, settings):
    sampling = Sampling(**settings)
    kept, looks = Kept(), Looks(States(model.hidden_size))
    last = settings["length"] - 3  # as post-context puts tokens behind a response
    requests = [*PROMPTS, Request(PROMPTS[0], forced=(Forced(0, (60, 61, 62, 63, 64, 65, 66, 67, 68)),))]
    requests += [Request(PROMPTS[1], forced=(Forced(last, (60, 61, 62)),))]
    sample(model, requests, sampling, watchers=[kept, looks])
    ends = set(model.family.end_ids)
    for row in range(len(requests)):
        table = looks.signal(row).numpy()[..., :-1]
        expected = naive(kept.steps, row, settings["block"], ends)
        got = {tuple(map(int, at)) for at in np.argwhere(np.isfinite(table).all(-1))}
        assert got == set(expected)
        for at, phi in expected.items():
            np.testing.assert_allclose(table[at], phi, atol=2e-5)


@pytest.mark.parametrize(
    "settings", [{"length": 24, "steps": 12, "block": 8}, {"length": 24, "block": 8, "threshold": 0.02}]
)
def test_company_makes_no_difference(model, settings):
    sampling = Sampling(**settings)
    together = Looks(States(model.hidden_size))
    # Some have less to fill, so that not every row takes every step.
    requests = [Request(each, forced=(Forced(2, (60,) * i),) if i else ()) for i, each in enumerate(PROMPTS)]
    sample(model, requests, sampling, watchers=[together])
    for row, request in enumerate(requests):
        alone = Looks(States(model.hidden_size))
        sample(model, [request], sampling, watchers=[alone])
        np.testing.assert_allclose(together.signal(row).numpy(), alone.signal(0).numpy(), atol=2e-5)


def test_steps_say_nothing_of_which_looks_there_are(model):
    """A block in one step has one state for all its looks; one a token has six."""
    tables = []
    for steps in (3, 24):
        looks = Looks(States(model.hidden_size))
        sample(model, PROMPTS[:1], Sampling(length=24, steps=steps, block=8, end="keep"), watchers=[looks])
        tables.append(looks.signal(0).numpy())
    assert [table.shape[:2] for table in tables] == [(3, 6), (3, 6)]
    assert np.isfinite(tables[0]).all() and np.isfinite(tables[1]).all()
    fast, slow = (table[0, :, :-1] for table in tables)
    assert len(np.unique(fast.round(5), axis=0)) == 1 and len(np.unique(slow.round(5), axis=0)) == 6
    np.testing.assert_allclose(fast[0], slow[0], atol=1e-5)  # nothing stands yet
    assert (np.diff(tables[1][..., -1].ravel()) >= 0).all()


def test_what_is_masked_again_turns_no_time_back(model):
    sampling = Sampling(length=16, steps=16, block=8)
    plain, edited = Looks(States(model.hidden_size)), Looks(States(model.hidden_size))
    sample(model, [Request(PROMPTS[0])], sampling, watchers=[plain])
    [response] = sample(model, [Request(PROMPTS[0], edits=(Edit(step=4, remask="all"),))], sampling, watchers=[edited])
    assert response.edits[0].remasked
    before, after = plain.signal(0).numpy(), edited.signal(0).numpy()
    np.testing.assert_allclose(before[0, :3], after[0, :3], atol=1e-5)  # looks up to a half of the block, taken before
    assert after[0, 5, -1] == 7 and np.isfinite(after[0]).all()  # full with the block's last step, one look each


def test_each_change_of_a_full_block_is_a_look(model):
    sampling = Sampling(length=16, block=16, threshold=0.02, end="keep")
    kept, looks = Kept(), Looks(States(model.hidden_size))
    late = (
        Edit(step=9, write=(Forced(1, (60, 61)),)),
        Edit(step=11, write=(Forced(3, (62,)),)),
        Edit(step=12, remask=(5, 6, 9)),
        Edit(step=15, write=(Forced(7, (63,)),)),
    )
    requests = [Request(PROMPTS[0], edits=late), Request(PROMPTS[1], edits=late[:1]), PROMPTS[2]]
    requests.append(Request(PROMPTS[0], edits=(Edit(step=12, remask="all"),)))  # nothing stands then: no look
    sample(model, requests, sampling, watchers=[kept, looks])
    counts = []
    for row in range(len(requests)):
        table = looks.signal(row).numpy()[..., :-1]
        expected = naive(kept.steps, row, 16, ())
        got = {tuple(map(int, at)) for at in np.argwhere(np.isfinite(table).all(-1))}
        assert got == set(expected)
        for at, phi in expected.items():
            np.testing.assert_allclose(table[at], phi, atol=2e-5)
        counts.append(table.shape[1])
    assert counts[0] > counts[1] >= counts[2] == len(GRID) and counts[3] == len(GRID) + 1


def test_a_full_block_that_is_left_as_it_is_is_looked_at_no_more(model):
    """Whatever others do in the steps that its row doesn't take."""
    sampling = Sampling(length=16, steps=16, end="keep")
    half = tuple(Forced(at, (60 + at,)) for at in range(8))
    [plain] = sample(model, [Request(PROMPTS[0], forced=half)], sampling)
    counts = []
    for token in (plain.raw_ids[9], 70):
        edits = (Edit(step=12, write=(Forced(9, (token,)),)),)
        looks = Looks(States(model.hidden_size))
        sample(model, [Request(PROMPTS[0], forced=half, edits=edits), *PROMPTS[1:]], sampling, watchers=[looks])
        counts.append(looks.signal(0).shape[1])
    assert counts == [len(GRID), len(GRID) + 1]


def test_autoregressive_looks_are_running_means(llama_folder):
    causal = midward.load(llama_folder, device="cpu", dtype="float32")
    sampling = Sampling.for_model(causal, length=40)
    looks, hidden = Looks(States(causal.hidden_size)), []

    class Keep:
        needs_all_steps = False

        def on_start(self, canvas):
            pass

        def on_step(self, step):
            hidden.append(step.hidden[0, 0].clone())

        def on_end(self, canvas):
            pass

    sample(causal, ["t30 t31"], sampling, watchers=[looks, Keep()])
    table = looks.signal(0).numpy()[..., :-1]
    for look, count in ((0, 1), (1, 4), (2, 8), (3, 16), (4, 24), (5, 32)):
        if len(hidden) >= count:
            np.testing.assert_allclose(table[0, look], torch.stack(hidden[:count]).mean(0).numpy(), atol=2e-5)


def test_an_autoregressive_row_that_is_cut_back_reads_only_its_newest_block(llama_folder):
    causal = midward.load(llama_folder, device="cpu", dtype="float32")
    sampling = Sampling.for_model(causal, length=64, end="keep")
    looks, hidden = Looks(States(causal.hidden_size)), {}

    class Keep:
        needs_all_steps = False

        def on_start(self, canvas):
            pass

        def on_step(self, step):
            hidden[step.blocks[0][0]] = step.hidden[0, 0].clone()

        def on_end(self, canvas):
            pass

    request = Request((5, 6, 7), edits=(Edit(34, remask=tuple(range(4, 35))),))
    sample(causal, [request], sampling, watchers=[looks, Keep()])
    last = looks.signal(0).numpy()[1, 5, :-1]
    apart = [
        np.abs(last - torch.stack([hidden[at] for at in range(*span)]).mean(0).numpy()).sum()
        for span in ((32, 64), (4, 64))
    ]
    assert apart[0] < apart[1] / 3  # its own tokens, three of them read twice; not those of the block before


def test_probabilities_and_entropy_are_those_of_the_logits(model):
    seen = []

    class Read:
        needs_all_steps = False

        def on_start(self, canvas):
            self.mask = canvas.mask_id
            self.before = canvas.ids.clone()

        def on_step(self, step):
            logits = model.head(step.hidden).float()
            p = logits.softmax(-1)
            is_open = self.before[step.rows][:, step.response] == self.mask
            for place, (start, stop) in enumerate(step.blocks):
                is_open[place, :start] = is_open[place, stop:] = False
            torch.testing.assert_close(step.probabilities([5, 9])[is_open], p[is_open][:, [5, 9]], atol=1e-5, rtol=1e-4)
            entropy = -(p * p.log()).sum(-1)
            torch.testing.assert_close(step.entropy[is_open], entropy[is_open], atol=1e-4, rtol=1e-4)
            assert step.entropy[~is_open].isnan().all()
            self.before[step.rows] = step.ids
            seen.append(int(is_open.sum()))

        def on_end(self, canvas):
            pass

    sample(model, PROMPTS, Sampling(length=16, steps=8, block=8), watchers=[Read()])
    assert sum(seen) > 0
