"""A file of another version is refused in one line that says which side is older; its fields ask for its version."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from midward import _formats
from midward.dynamics.anchors import _File as AnchorsFile
from midward.errors import InputError
from midward.guards.engine import EngineFile
from midward.guards.files import About, GuardFile, describe
from midward.runs.run import SCHEMA, Measured, Run
from midward.sampling.trace import Trace, TraceRecord

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
EARLIER, NEWER, DAMAGED = "an earlier midward", "a newer midward", "damaged"
VERSIONS = st.tuples(st.integers(0, 20), st.integers(0, 20))

#: What a version holds. A field more asks for a minor more, a field less or another meaning for a major more; then
#: docs/formats.md says so.
FIELDS = {
    ("run", SCHEMA, "1.0"): (
        (Run, "schema_version verb settings command models sampling judges goals seed versions started finished"),
        (Measured, "name label fingerprint family adapter dtype device guard guard_digest endpoint"),
    ),
    ("guard", GuardFile.format, "midward.guard/2.0"): (
        (GuardFile, "about"),
        (About, "guard version settings alpha calibrated fitted_on bound"),
    ),
    ("engine", EngineFile.format, "midward.engine/1.0"): (
        (EngineFile, "guard block width mask_id end_ids refusal scores"),
    ),
    ("trace", TraceRecord.format, "midward.trace/1.0"): ((TraceRecord, "sampling of notes"),),
    ("anchors", AnchorsFile.format, "midward sri anchors 1.0"): ((AnchorsFile, "settings"),),
}


@pytest.mark.parametrize("key", FIELDS, ids=lambda key: key[0])
def test_fields_are_those_of_their_version_and_the_page_has_it(key):
    name, version, recorded = key
    assert version == recorded
    for record, fields in FIELDS[key]:
        assert " ".join(record.model_fields) == fields
    text = PAGE.read_text(encoding="utf-8")
    assert f"`{version}`" in text or f"| {version}, " in text
    assert re.search(rf"^\|.*\b{name} {re.split('[/ ]', version)[-1]}\b", text, re.M)


def told(version, own="1.0"):
    """What is said of a file of this version, or "" of one that is read."""
    try:
        _formats.require_readable(version, own, "it", "again")
    except InputError as error:
        return str(error)
    return ""


@given(VERSIONS, VERSIONS)
def test_one_side_is_older_or_the_file_is_read(theirs, ours):
    text, own = (".".join(map(str, numbers)) for numbers in (theirs, ours))
    expected = NEWER if theirs > ours else EARLIER if theirs[0] < ours[0] else ""
    said = told(text, own)
    assert expected in said and bool(expected) == bool(said) and not (NEWER in said and EARLIER in said)
    assert _formats.is_newer(text, own) == (theirs > ours)


@given(st.integers(0, 9), VERSIONS)
def test_a_whole_number_is_a_version_without_a_minor(number, ours):
    own = ".".join(map(str, ours))
    assert told(number, own) == told(str(number), own) == told(f"{number}.0", own).replace(f"{number}.0,", f"{number},")


@pytest.mark.parametrize("version", ["", "x", "1.0.0", "1.", -1, 1.5e300, True, [], {"a": 1}, "1\n", "१", "9" * 99])
def test_what_is_no_version_is_damage(version):
    assert DAMAGED in told(version) and not _formats.is_newer(version, "1.0") and len(told(version)) < 200


# --- in the hands of the verbs --------------------------------------------------------------------------------


def of_run(folder, version):
    """A folder of a run whose record and rows are of a version; None: of before there were any."""
    folder.mkdir()
    record = json.loads(Run(verb="probe order").model_dump_json()) | {"schema_version": version}
    if version is None:
        del record["schema_version"]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "rows.jsonl").write_text('{"key": "0"}\n')
    return folder


def of_guard(path, version):
    save_file({"threshold": np.zeros(1)}, path, metadata={"format": f"midward.guard/{version}", "about": "{}"})
    return path


OTHERS = [(None, EARLIER), (0, EARLIER), ("0.9", EARLIER), (2, NEWER), ("1.1", NEWER), ("3.0", NEWER)]
OTHERS += [("one", DAMAGED), ([], DAMAGED)]


def one_line(result, *words):
    assert result.exit_code == 2 and result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words)


@pytest.mark.parametrize("version, side", OTHERS)
def test_a_run_and_its_rows(midward, tmp_path, version, side):
    folder = of_run(tmp_path / "run", version)
    before = (folder / "run.json").read_bytes()
    for args in (("compare", folder, folder), ("probe", "order", "--out", folder)):
        one_line(midward(*args), side, str(folder), "measure again")
    assert (folder / "run.json").read_bytes() == before


def test_rows_that_nobody_says_what_they_are_of_are_neither_read_nor_added_to(midward, tmp_path):
    of_run(tmp_path / "run", 1)
    record, rows = tmp_path / "run" / "run.json", tmp_path / "run" / "rows.jsonl"
    record.unlink()
    for args in (("compare", tmp_path / "run", tmp_path / "run"), ("probe", "order", "--out", tmp_path / "run")):
        one_line(midward(*args), "has no run.json beside it", "earlier midward")
    assert rows.read_text() == '{"key": "0"}\n' and not record.exists()
    result = midward("report", tmp_path / "run", "--out", tmp_path / "r.html")
    assert "has no run.json beside it" in result.stderr and "has no run.json" in (tmp_path / "r.html").read_text()


def test_a_line_of_another_layout_is_no_row(midward, tmp_path):
    folders = [of_run(tmp_path / name, 1) for name in ("one", "two")]
    for folder in folders:
        (folder / "summary.json").write_text("{}")
        (folder / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"key": "0"}\n')
    one_line(midward("compare", *folders), "line 1 is not a row written here")


@pytest.mark.parametrize(
    "version, side", [("1", EARLIER), ("1.7", EARLIER), ("2.1", NEWER), ("3", NEWER), ("", DAMAGED)]
)
def test_a_guard(midward, tmp_path, version, side):
    path = of_guard(tmp_path / "sri.safetensors", version)
    for args in (("guard", "eval", "--guard", path, "--out", tmp_path / "out"), ("chat", "--guard", path)):
        one_line(midward(*args), side, str(path), "fit it anew")


def test_a_guard_of_this_version_is_read_by_both_spellings(tmp_path):
    for version in ("2", "2.0"):
        with pytest.raises(InputError, match=r"about\.guard"):  # its record is looked into
            describe(of_guard(tmp_path / "sri.safetensors", version))


def test_a_trace(tmp_path):
    for version, side in (("0.1", EARLIER), ("2.0", NEWER)):
        save_file({"rows": np.zeros(1)}, tmp_path / "t", metadata={"format": f"midward.trace/{version}"})
        with pytest.raises(InputError, match=f"{side}.*record it anew"):
            Trace.load(tmp_path / "t")
    save_file({"rows": np.zeros(1)}, tmp_path / "t", metadata={"format": "midward.guard/2.0"})
    with pytest.raises(InputError, match="is no trace"):
        Trace.load(tmp_path / "t")
