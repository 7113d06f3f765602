"""What watchers see, and what a trace keeps."""

import pytest
import torch
from checkpoints import FIXTURES

import midward
from midward import Forced, Request, Sampling, Trace, sample

MASK = 2
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]


class Recorder:
    def __init__(self, needs_all_steps=False):
        self.needs_all_steps = needs_all_steps
        self.events = []

    def on_start(self, canvas):
        self.events.append(("start", [row.index for row in canvas.rows]))

    def on_step(self, step):
        self.events.append((step.index, list(step.rows)))
        assert step.hidden.shape[:2] == step.ids[:, step.response].shape
        assert torch.equal(step.committed, step.ids[:, step.response] != MASK)
        assert (step.committed | ~step.new).all()
        tokens, confidence = step.predictions
        assert torch.equal(tokens[step.committed], step.ids[:, step.response][step.committed])
        assert ((confidence > 0) & (confidence <= 1)).all()
        assert MASK not in tokens

    def on_end(self, canvas):
        self.events.append(("end", [row.index for row in canvas.rows]))


def test_events(lively):
    recorder = Recorder()
    sample(lively, PROMPTS, Sampling(length=12, steps=4, block=6, end="keep"), batch_size=2, watchers=[recorder])
    assert recorder.events == [
        *[("start", [2, 0]), *[(i, [2, 0]) for i in range(4)], ("end", [2, 0])],
        *[("start", [1]), *[(i, [1]) for i in range(4)], ("end", [1])],
    ]


def test_hidden_is_what_the_prediction_was_made_from(lively):
    class Check(Recorder):
        def on_step(self, step):
            tokens, confidence = step.predictions
            logits = lively.head(step.hidden)
            open_before = ~step.committed | step.new
            assert torch.equal(tokens[open_before], logits.argmax(-1)[open_before])
            p = logits.softmax(-1).max(-1).values
            assert torch.allclose(confidence[open_before], p[open_before], atol=1e-5)
            self.events.append(step.hidden._base is not None)  # a view: nothing was copied

    check = Check()
    sample(lively, PROMPTS, Sampling(length=12, steps=4, block=4), watchers=[check])
    assert True in check.events and False not in check.events


def test_end_is_told_even_on_an_error(lively):
    class Broken(Recorder):
        def on_step(self, step):
            raise RuntimeError("broken watcher")

    first, broken = Recorder(), Broken()
    with pytest.raises(RuntimeError, match="broken watcher"):
        sample(lively, PROMPTS, Sampling(length=8, steps=4), watchers=[first, broken])
    assert first.events[-1][0] == broken.events[-1][0] == "end"


def test_needs_all_steps(lively):
    head = lively.network.lm_head.weight.data
    head[1] = head[23] * 1.5
    settings = Sampling(length=8, steps=16, block=4)
    stopped = sample(lively, PROMPTS, settings)
    full = sample(lively, PROMPTS, settings, watchers=[Recorder(needs_all_steps=True)])
    assert all(response.steps == 16 for response in full)
    assert all(response.steps < 16 for response in stopped)
    assert [response.ids for response in full] == [response.ids for response in stopped]


def test_watching_changes_nothing(lively):
    settings = Sampling(length=12, steps=6, temperature=1.0)
    assert sample(lively, PROMPTS, settings) == sample(lively, PROMPTS, settings, watchers=[Recorder(), Trace()])


def test_trace(lively, tmp_path):
    trace = Trace(predictions=True)
    requests = [Request(PROMPTS[0], forced=(Forced(3, (40, 41)),)), *PROMPTS[1:]]
    settings = Sampling(length=12, steps=5, end="keep")
    responses = sample(lively, requests, settings, batch_size=2, watchers=[trace])
    assert sorted(trace.commit_step) == [0, 1, 2]
    for row, response in enumerate(responses):
        steps = trace.commit_step[row]
        assert steps.dtype == torch.int16 and steps.shape == (12,)
        order = trace.order(row)
        assert sorted(order) == [p for p in range(12) if not (row == 0 and p in (3, 4))]
        assert [int(steps[p]) for p in order] == sorted(int(steps[p]) for p in order)
        assert trace.predicted_steps(row) == list(range(5))
        last = trace.predicted_ids(row, 4)
        assert last.tolist() == response.raw_ids
        assert trace.text(row, 4) == response.text
        # What a step committed is what it predicted, and it stays.
        for step in range(5):
            new = steps == step
            assert torch.equal(trace.predicted_ids(row, step)[new], last[new])

    trace.save(tmp_path / "trace.safetensors")
    loaded = Trace.load(tmp_path / "trace.safetensors")
    assert loaded.sampling == settings
    assert all(torch.equal(loaded.commit_step[row], trace.commit_step[row]) for row in range(3))
    assert loaded.text(1, 2, lively.tokenizer) == trace.text(1, 2)


def test_with_a_threshold_a_trace_counts_each_rows_own_steps(lively):
    settings = Sampling(length=12, block=4, threshold=0.2, end="keep")
    alone, together = Trace(predictions=True), Trace(predictions=True)
    responses = sample(lively, PROMPTS, settings, batch_size=1, watchers=[alone])
    sample(lively, PROMPTS, settings, batch_size=3, watchers=[together])
    assert len({response.steps for response in responses}) > 1  # so some wait for others
    for row, response in enumerate(responses):
        assert alone.predicted_steps(row) == together.predicted_steps(row) == list(range(response.steps))
        assert torch.equal(alone.commit_step[row], together.commit_step[row])


def test_left_to_right_trace_is_in_order(lively, llama):
    for model, options in ((lively, dict(steps=10, order="left_to_right", end="keep")), (llama, dict(end="keep"))):
        trace = Trace(predictions=True)
        sample(model, PROMPTS, Sampling.for_model(model, length=10, **options), watchers=[trace])
        assert all(trace.order(row) == list(range(10)) for row in range(3))


def test_stopped_rows_leave_gaps(llama):
    head = llama.network.lm_head.weight.data
    head[1] *= 3
    trace = Trace()
    responses = sample(llama, PROMPTS, Sampling.for_model(llama, length=20), watchers=[trace])
    for row, response in enumerate(responses):
        done = len(response.ids) + response.ended
        assert trace.commit_step[row].tolist() == [*range(done), *[-1] * (20 - done)]


def test_trace_errors(lively, tmp_path):
    trace = Trace()
    with pytest.raises(ValueError, match="nothing was traced"):
        trace.save(tmp_path / "t")
    sample(lively, [[5]], Sampling(length=4, steps=2), watchers=[trace])
    with pytest.raises(KeyError, match="predictions=True"):
        trace.text(0, 0)
    with pytest.raises(ValueError, match="is no trace"):
        Trace.load(FIXTURES / "llada-tiny" / "golden.safetensors")


def test_generate(lively):
    assert lively.generate("t10 t11", length=8, steps=4) == sample(
        lively, ["t10 t11"], Sampling.for_model(lively, length=8, steps=4)
    )
    many = lively.generate(["t10", [{"role": "user", "content": "t11"}], [5, 6]], length=8, batch_size=2)
    assert len(many) == 3 and isinstance(many[0], midward.Response)
    with pytest.raises(TypeError, match="Did you mean 'temperature'"):
        lively.generate("t10", temperatur=1.0)
