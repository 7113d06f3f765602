"""What consumers make of a row whose numbers weren't finite: an error or unscored, never an answer."""

import json
import math

import pytest

from midward import ModelError
from midward.guards.exchange import Verdict
from midward.guards.front import STUB, _handed_out
from midward.runs.generate import generate
from midward.sampling import Response, Sampling
from midward.sampling.requests import require_some

BROKEN = Response("", [], [], False, 1, 1, error="the model computed NaN")


@pytest.fixture
def half_broken(llada, monkeypatch):
    """The tiny model with NaN states in rows that hold t77."""
    own = llada.hidden

    def hidden(ids, *args, **kwargs):
        states = own(ids, *args, **kwargs).clone()
        states[(ids == 77).any(-1)] = math.nan
        return states

    monkeypatch.setattr(llada, "hidden", hidden)
    return llada


def test_generate_writes_the_error_and_goes_on(half_broken, tmp_path):
    rows = [{"prompt": "t5 t6"}, {"prompt": "t5 t77"}, {"prompt": "t8"}]
    written = generate(half_broken, rows, tmp_path / "out.jsonl", sampling=Sampling(length=8, steps=8))
    assert [row["error"] is None for row in written] == [True, False, True]
    assert written[1]["response"] is None and written[1]["error"].startswith("the model computed NaN")
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["response"] for row in again] == [row["response"] for row in written]


def test_a_guard_never_puts_its_stub_in_an_errors_place(llada):
    verdict = Verdict("perplexity", "after", True, 9.0, 1.0)
    response = _handed_out(llada, BROKEN, verdict, [5])
    assert (response.text, response.error) == ("", BROKEN.error)
    assert (response.verdict.flagged, response.verdict.score) == (False, None)
    assert _handed_out(llada, Response("a", [5], [5], True, 1, 1), verdict, [5]).text == STUB


def test_rows_of_an_error_are_unscored():
    assert BROKEN.unscored("success", "refused") == {"success": None, "refused": None, "error": BROKEN.error}
    assert Response("a", [5], [5], True, 1, 1).unscored("success") == {}
    with pytest.raises(ModelError, match="computed NaN"):
        BROKEN.checked()
    require_some([])
    require_some([{"error": "x"}, {"error": None}, {}])
    with pytest.raises(ModelError, match="none of the 2 requests has a response; the first: x"):
        require_some([{"error": "x"}, {"error": "y"}])


def test_likelihoods_that_are_nan_stop_a_task(half_broken):
    from midward.utility.lm import Continuation, MidwardLM

    harness = MidwardLM(half_broken)
    assert math.isfinite(harness.log_probs([Continuation((5, 6), (7,))])[0]["total"])
    with pytest.raises(ModelError, match="tasks can't be scored"):
        harness.log_probs([Continuation((5, 77), (7,))])


def test_a_provider_without_a_chat_template_says_so_at_once(llada_folder, tmp_path):
    import shutil

    from inspect_ai.model import get_model

    folder = tmp_path / "base"
    shutil.copytree(llada_folder, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        get_model(f"midward/{folder}", memoize=False, device="cpu")
