"""`generate`: the file of an interrupted run is that of an uninterrupted one, whatever the batches."""

import json
import shutil

import pytest
from holding import held
from watching import Watching

import midward
from midward.guards import STUB, Exchange, MaskFilter
from midward.runs.generate import generate
from midward.sampling import Request, Sampling

SHORT = Sampling(length=12, steps=6)
# Lengths differ, so that batches are padded.
ROWS = [
    {"goal": " ".join(f"t{20 + number + word}" for word in range(3 + number % 4)), "target": f"no {number}"}
    for number in range(7)
]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def llada(llada_folder):
    """The tiny checkpoint, loaded once: nothing here changes it."""
    return midward.load(llada_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def uninterrupted(llada, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, generate(llada, ROWS, folder / "whole.jsonl", column="goal", sampling=SHORT, batch_size=3)


@pytest.fixture
def whole(uninterrupted, tmp_path):
    """The rows of an uninterrupted run; its file is `whole.jsonl` here."""
    folder, rows = uninterrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return rows


def test_rows_hold_the_response_and_the_sources_columns(llada, whole, tmp_path):
    alone = [llada.generate(row["goal"], length=12, steps=6)[0] for row in ROWS]
    assert [row["response"] for row in whole] == [response.text for response in alone]
    assert [row["nfe"] for row in whole] == [response.nfe for response in alone]
    assert [row["ended"] for row in whole] == [response.ended for response in alone]
    assert [row["index"] for row in whole] == list(range(7))
    assert [row["prompt"] for row in whole] == [row["goal"] for row in ROWS]
    assert [row["target"] for row in whole] == [row["target"] for row in ROWS]
    assert all(row["seconds"] > 0 and row["error"] is None for row in whole)
    assert read(tmp_path / "whole.jsonl") == whole
    own = {"key", "index", "prompt", "response", "ended", "nfe", "steps", "seconds", "error", "target"}
    assert all(row.keys() == own for row in whole)  # nothing of a goal, of which nothing is known
    record = json.loads((tmp_path / "whole.jsonl.run.json").read_text())
    assert record["finished"] >= record["started"]
    assert record["models"][0]["fingerprint"] == llada.fingerprint and record["sampling"]["steps"] == 6


def test_drawn_tokens_are_resumed_too(llada, tmp_path):
    settings = {"column": "goal", "sampling": Sampling(length=12, steps=6, temperature=1.0, order="random")}
    whole = generate(llada, ROWS, tmp_path / "whole.jsonl", **settings)
    generate(llada, ROWS, tmp_path / "out.jsonl", limit=4, batch_size=3, **settings)
    again = generate(llada, ROWS, tmp_path / "out.jsonl", batch_size=5, **settings)
    assert timeless(again) == timeless(whole)
    assert len({row["response"] for row in whole}) == 7


def test_limit_takes_the_first_rows_and_can_grow(llada, whole, tmp_path):
    out = tmp_path / "out.jsonl"
    settings = {"column": "goal", "sampling": SHORT, "batch_size": 3}
    assert timeless(generate(llada, ROWS, out, limit=2, **settings)) == timeless(whole[:2])
    assert len(read(out)) == 2
    assert timeless(generate(llada, ROWS, out, limit=1, **settings)) == timeless(whole[:1])
    assert len(read(out)) == 2
    generate(llada, ROWS, out, **settings)
    assert timeless(read(out)) == timeless(whole)


def test_a_finished_file_is_not_touched(llada, whole, tmp_path):
    out = tmp_path / "whole.jsonl"
    before = out.read_bytes()
    again = generate(
        llada, ROWS, out, column="goal", sampling=SHORT, watchers=[Watching(lambda step: pytest.fail("it was sampled"))]
    )
    assert again == whole and out.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sampling": Sampling(length=12, steps=4)}, "holds another run: steps 6 there, 4 here"),
        ({"sampling": Sampling(length=12, steps=6, seed=5)}, "seed 0 there, 5 here"),
        ({"column": "target"}, "column goal there, target here"),
        ({"rows": [{"goal": "t99"}, *ROWS[1:]]}, "holds another run: row 0 there is not of this table"),
        ({"rows": [{**ROWS[0], "target": "else"}, *ROWS[1:]]}, "row 0 there is not of this table"),
        ({"rows": ROWS[:5]}, "row 5 there is not of this table"),
    ],
)
def test_rows_of_other_settings_are_refused_and_kept(llada, whole, tmp_path, change, message):
    out = tmp_path / "whole.jsonl"
    before = out.read_bytes()
    settings = {"rows": ROWS, "column": "goal", "sampling": SHORT, **change}
    with pytest.raises(ValueError, match=message):
        generate(llada, out=out, **settings)
    assert out.read_bytes() == before
    new = generate(llada, out=out, overwrite=True, **settings)
    assert read(out) == new and len(new) == len(settings["rows"])


def test_rows_that_another_process_writes_are_never_overwritten(llada, whole, tmp_path):
    out = tmp_path / "whole.jsonl"
    before = out.read_bytes()
    with held(out), pytest.raises(ValueError, match="another process is writing to"):
        generate(llada, ROWS, out, column="goal", sampling=SHORT, overwrite=True)
    assert out.read_bytes() == before


def test_another_models_rows_and_rows_of_nobody_knows_whom_are_refused(llada, llama, whole, tmp_path):
    out = tmp_path / "whole.jsonl"
    with pytest.raises(ValueError, match="fingerprint "):
        generate(llama, ROWS, out, column="goal", sampling=Sampling.for_model(llama, length=8))
    (tmp_path / "whole.jsonl.run.json").unlink()
    with pytest.raises(ValueError, match=r"has no whole\.jsonl\.run\.json beside it"):
        generate(llada, ROWS, out, column="goal", sampling=SHORT)


def test_a_guard_stands_in_front(llada, tmp_path):
    guard = MaskFilter().fit(llada, [Exchange(Request("t30"))] * 3, alpha=0.5)
    guard.threshold = -1.0  # everything is flagged
    [row] = generate(llada, [{"prompt": "t30"}], tmp_path / "out.jsonl", sampling=SHORT, guard=guard)
    assert row["response"] == STUB and row["guard"]["flagged"]
    with pytest.raises(ValueError, match="a guard there, no guard here"):
        generate(llada, [{"prompt": "t30"}], tmp_path / "out.jsonl", sampling=SHORT)


def test_a_bad_row_is_recorded_and_stops_no_other(llada, tmp_path):
    good = [{"role": "user", "content": "t30 t31"}]
    prompts = ["", " \n", None, 7, "t30 " * 5000, [{"role": "user"}], [], "t30 t31", good]
    rows = [{"prompt": prompt} for prompt in prompts] + [{"other": "no prompt at all"}]
    out = tmp_path / "out.jsonl"
    found = generate(llada, rows, out, sampling=SHORT, batch_size=4)
    errors = [row["error"] for row in found]
    assert errors[:3] == [f"row {index} has an empty prompt" for index in range(3)]
    assert errors[3] == "row 3: a prompt is a text or a list of messages; received 7"
    assert errors[4].startswith("row 4: the prompt has ") and "shorten one of them" in errors[4]
    assert errors[5].startswith("row 5: a message is") and errors[6].startswith("row 6: the prompt is empty")
    assert errors[7:9] == [None, None] and errors[9] == "row 9 has an empty prompt"
    assert found[7]["response"] == found[8]["response"] == llada.generate("t30 t31", length=12, steps=6)[0].text
    assert all(row["response"] is None and row["nfe"] == 0 for row in found if row["error"])
    assert timeless(generate(llada, rows, out, sampling=SHORT)) == timeless(found)
    assert len(read(out)) == 10


def test_a_column_named_like_ours_is_kept_under_another_name(llada, tmp_path):
    rows = [{"prompt": "t30", "response": "theirs", "source_response": "older", "key": 1}]
    [row] = generate(llada, rows, tmp_path / "out.jsonl", sampling=SHORT)
    assert row["source_key"] == 1 and row["source_response"] == "older"
    assert row["source_source_response"] == "theirs"
    assert row["response"] == llada.generate("t30", length=12, steps=6)[0].text


def test_bad_arguments(llada, tmp_path):
    for settings, message in [
        ({"column": "gaol"}, r"no column 'gaol'. Did you mean 'goal'\? Its columns: goal, target"),
        ({"batch_size": 0}, "batch_size must be 1 or more; received 0"),
        ({"limit": 0}, "limit must be 1 or more; received 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(llada, ROWS, tmp_path / "out.jsonl", **{"column": "goal", **settings})
