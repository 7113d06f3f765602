"""What a kill, a stranger's file, a second process or a place without locks does to what is kept."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from holding import held
from hypothesis import given, settings
from hypothesis import strategies as st

from midward import store
from midward import tensors as tensors_
from midward.errors import InputError, MissingFile
from midward.store import LockWarning, RowFile, hold, key_of, read_once, replacing

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(st.dictionaries(TEXTS, TEXTS | st.integers() | st.none(), max_size=3), min_size=1, max_size=5)


@given(ROWS, st.data())
@settings(max_examples=60)
def test_a_kill_at_any_byte_loses_no_whole_row(tmp_path_factory, contents, data):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{**content, "key": f"k{number}"} for number, content in enumerate(contents)]
    file = RowFile(path)
    ends = []
    for row in rows:
        file.append(row)
        ends.append(path.stat().st_size)
    written = path.read_bytes()
    cut = data.draw(st.integers(0, len(written)))
    path.write_bytes(written[:cut])

    whole = sum(end <= cut for end in ends)
    again = RowFile(path)
    assert list(again.rows.values()) == rows[:whole]
    for row in rows[whole:]:
        again.append(row)
    assert path.read_bytes() == written
    assert list(RowFile(path).rows.values()) == rows


def test_a_row_is_on_the_disk_once_append_returns(tmp_path):
    path = tmp_path / "deep" / "er" / "rows.jsonl"
    RowFile(path).append({"text": "é\n\u2028😀", "key": "a"})
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 2 and lines[1] == b""
    assert json.loads(lines[0]) == {"key": "a", "text": "é\n\u2028😀"}


def test_a_key_written_again_replaces_its_row(tmp_path):
    file = RowFile(tmp_path / "rows.jsonl")
    file.append({"key": "a", "value": 1})
    file.append({"key": "a", "value": 2})
    assert file.rows == RowFile(file.path).rows == {"a": {"key": "a", "value": 2}}


@pytest.mark.parametrize(
    "content",
    [
        b"goal,target\nx,y\n",
        b'{"name": "somebody else\'s"}\n',
        b'{"key": "a"}\nnoise\n{"key": "b"}\n',
        b'{"key": ["no text"]}\n',
        b"[1, 2]",  # a whole file without a last line break is no torn row
        b'{"name": 1, "key": "a"}',
        b"notes",
    ],
)
def test_a_strangers_file_is_refused_and_left_as_it_was(tmp_path, content):
    path = tmp_path / "theirs"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"theirs, line \d is not a row written here"):
        RowFile(path)
    assert path.read_bytes() == content


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        RowFile(tmp_path)


def test_keys_tell_apart_what_differs_and_nothing_else():
    assert key_of(a=1, b=[1, {"x": "é"}]) == key_of(b=[1, {"x": "é"}], a=1)
    assert len({key_of(a=1), key_of(a="1"), key_of(a=None), key_of(b=1), key_of(a=1, b=None)}) == 5


HOLDER = """
import sys
from midward.store import RowFile
file = RowFile(sys.argv[1])
file.append({"key": "theirs"})
print("writing", flush=True)
sys.stdin.read()
"""


def test_two_processes_dont_write_to_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    early = RowFile(path)  # opened before the other process wrote anything
    with held(path, HOLDER):
        with path.open("ab") as file:  # a row that the other process hasn't finished writing
            file.write(b'{"key": "half')
        for mine in (early, RowFile(path)):
            with pytest.raises(ValueError, match="another process is writing to"):
                mine.append({"key": "mine"})
        assert path.read_bytes() == b'{"key": "theirs"}\n{"key": "half'
    again = RowFile(path)
    again.append({"key": "mine"})
    assert RowFile(path).rows.keys() == {"theirs", "mine"}
    early.append({"key": "more"})  # within a process they share
    assert early.rows.keys() == {"theirs", "mine", "more"}


def test_a_chunk_of_rows_waits_for_the_disk_once(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(store.os, "fsync", synced.append)
    file = RowFile(tmp_path / "rows.jsonl")
    rows = [{"key": f"k{number}"} for number in range(32)]
    file.append(*rows)
    file.append()
    assert len(synced) == 1
    assert list(RowFile(file.path).rows.values()) == list(file.rows.values()) == rows


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_a_place_without_locks_is_told_and_used(tmp_path, monkeypatch, error):
    def refuse(self):
        raise error

    monkeypatch.setattr(store.FileLock, "_acquire", refuse)
    file = RowFile(tmp_path / "rows.jsonl")
    with pytest.warns(LockWarning, match="can't be locked .*: nothing keeps a second process from writing"):
        file.append({"key": "a"})
    file.append({"key": "b"})  # told once
    assert RowFile(file.path).rows.keys() == {"a", "b"}


def test_rows_of_a_medium_that_cant_be_written_are_read(tmp_path):
    RowFile(tmp_path / "rows.jsonl").append({"key": "a"})
    (tmp_path / ".rows.jsonl.lock").unlink()
    assert RowFile(tmp_path / "rows.jsonl").rows.keys() == {"a"}
    assert not (tmp_path / ".rows.jsonl.lock").exists()


def test_a_hold_ends_with_what_has_it(tmp_path):
    claim = hold(tmp_path)
    assert hold(tmp_path) is claim
    code = f"import pathlib; from midward.store import hold; hold(pathlib.Path({str(tmp_path)!r}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is writing to" in told.stderr
    del claim
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


class _Kind(tensors_.Record):
    noun = "test file"
    format = "midward.test/1.0"
    names: tuple[str, ...] = ()


class _Other(tensors_.Record):
    noun = "other file"
    format = "midward.other/1.0"


def test_tensors_come_back_with_their_record(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6, dtype=torch.int16).view(2, 3).T, "b": np.array([True, False]), "c": np.float32(2)}
    tensors_.save_tensors(path, tensors, _Kind(names=("x", 'y"z')))
    record, arrays = tensors_.load_tensors(path, _Kind)
    assert record == tensors_.load_record(path, _Kind) == _Kind(names=("x", 'y"z'))
    for name, tensor in tensors.items():
        assert arrays[name].dtype == np.asarray(tensor).dtype and np.array_equal(arrays[name], np.asarray(tensor))
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_of_another_kind_or_a_torn_one_is_told(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(MissingFile, match="no test file at"):
        tensors_.load_tensors(path, _Kind)
    tensors_.save_tensors(path, {"a": np.ones(4)}, _Other())
    with pytest.raises(InputError, match=r"no test file, or a damaged one .its format is 'midward.other/1.0'"):
        tensors_.load_record(path, _Kind)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="no other file, or a damaged one"):
        tensors_.load_tensors(path, _Other)


def test_a_file_is_read_once_a_version_and_what_fails_is_not_kept(tmp_path):
    path, reads = tmp_path / "words.txt", []

    @read_once
    def words(path, sign):
        reads.append(path)
        return path.read_text().split(sign)

    with pytest.raises(FileNotFoundError):
        words(path, ",")
    path.write_text("a,b")
    assert words(path, ",") == words(str(path), ",") == ["a", "b"] and len(reads) == 2
    assert words(path, "b") == ["a,", ""]  # what else is asked is another reading
    path.write_text("c")
    os.utime(path, ns=(1, 1))
    assert words(path, ",") == ["c"]
