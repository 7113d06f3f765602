"""Bad input ends in one line and exit status 2; a fault of ours keeps its traceback."""

import errno

import pytest
from typer.testing import CliRunner

from midward.cli import app
from midward.errors import InputError, MissingFile
from midward.models import ModelError


def run_goals(monkeypatch, error: Exception):
    """Run `midward goals`, whose listing raises `error`."""

    def broken(*args):
        raise error

    monkeypatch.setattr("midward.cli.goals.listing", broken)
    return CliRunner().invoke(app, ["goals"])


@pytest.mark.parametrize("kind", [InputError, MissingFile, ModelError])
def test_bad_input_is_one_line(monkeypatch, kind):
    result = run_goals(monkeypatch, kind("a word about it"))
    assert result.exit_code == 2
    assert result.stderr == "error: a word about it\n"


@pytest.mark.parametrize(
    "error", [ValueError("zip() argument 2 is shorter than argument 1"), TypeError("no"), OSError("no file")]
)
def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, error):
    result = run_goals(monkeypatch, error)
    assert result.exit_code == 1 and result.exception is error


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied", "x.jsonl"), OSError(errno.ENOSPC, "No space left on device")],
)
def test_a_disk_that_says_no_is_one_line(monkeypatch, error):
    result = run_goals(monkeypatch, error)
    assert result.exit_code == 2 and result.stderr.startswith("error: ")
