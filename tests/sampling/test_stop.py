"""A watcher may end rows: those leave, and the others' tokens stay, bit for bit."""

import pytest
from watching import Watching

from midward.sampling import Sampling, sample

PROMPTS = ["t30 t31", "t40", "t50 t51 t52", "t60 t61"]


class StopAt(Watching):
    """Ends these requests after these steps."""

    def __init__(self, at, needs_all_steps=False):
        super().__init__(self.stop, needs_all_steps=needs_all_steps)
        self.at, self.seen = at, []

    def stop(self, step):
        self.seen.append((step.index, tuple(step.rows)))
        step.stopped.update(row for row in step.rows if self.at.get(row) == step.index)


@pytest.mark.parametrize("kind", ["model", "causal"])
@pytest.mark.parametrize("settings", [{}, {"end": "keep"}, {"temperature": 1.0}])
@pytest.mark.parametrize("every", [False, True])
def test_stopping_a_row_leaves_the_others_as_they_are(request, kind, settings, every):
    model = request.getfixturevalue(kind)
    sampling = Sampling.for_model(model, length=12, **({"steps": 6} if kind == "model" else {}), **settings)
    watcher = StopAt({}, every)
    whole = sample(model, PROMPTS, sampling, watchers=[watcher])
    watcher = StopAt({1: 2, 3: 0}, every)
    stopped = sample(model, PROMPTS, sampling, watchers=[watcher])
    assert [stopped[i] for i in (0, 2)] == [whole[i] for i in (0, 2)]
    for row, last in watcher.at.items():
        assert stopped[row].steps == min(whole[row].steps, last + 1)
        assert all(row not in rows for index, rows in watcher.seen if index > last)


def test_all_rows_may_be_stopped_and_a_threshold_is_no_obstacle(model):
    sampling = Sampling.for_model(model, length=12, threshold=0.9)
    found = sample(model, PROMPTS, sampling, watchers=[StopAt(dict.fromkeys(range(4), 0))])
    assert [one.steps for one in found] == [1] * 4
    assert all(model.family.mask_id in one.raw_ids for one in found)
