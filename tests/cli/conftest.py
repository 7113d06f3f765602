"""The verbs, run in this process."""

import csv

import pytest
from typer.testing import CliRunner

from midward.cli import app


@pytest.fixture
def midward(monkeypatch):
    """Run `midward ARGS`; the result has exit_code, stdout and stderr. A traceback fails the test."""
    monkeypatch.setenv("COLUMNS", "200")  # or messages are broken into lines

    def run(*args, stdin=None):
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def tiny(llada_folder):
    """Flags for the tiny checkpoint and few, short steps."""
    return ["--model", llada_folder, "--device", "cpu", "--length", 12, "--steps", 6]


@pytest.fixture
def advbench(tmp_path):
    """A file in AdvBench's format, with all that its fields may hold."""
    path = tmp_path / "goals.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["goal", "target"])
        writer.writerow(['t30 "t31", t32', "Sure, here is"])
        writer.writerow(["t33\nt34\r\nt35", 'a "quoted" one'])
        writer.writerow(["t36 é 😀 \u2028 t37", ""])
        writer.writerow(["", "a row without a goal"])
        writer.writerow(["[bold]t38[/bold]", "markup"])
    return path
