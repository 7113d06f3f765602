"""The notebook is short, holds no outputs, and runs whole; test_commands_run.py runs it small."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import REPOSITORY, blocks, commands

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


def test_it_is_short_and_nobodys_outputs_are_in_it():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len(notebook["cells"]) <= 20
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_a_cell_is_python_or_a_terminals():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert len({line.startswith("!") for line in cell["source"]}) == 1


@pytest.mark.slow
def test_all_cells_run_in_order(tmp_path, monkeypatch, capsys):
    """As a person runs them, at full size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names: dict[str, object] = {}
    for block in blocks(NOTEBOOK):
        if block.language == "python":
            (tmp_path / "cell.py").write_text(block.text, encoding="utf-8")
            names |= runpy.run_path("cell.py", names)
        for command in commands(block):
            done = subprocess.run(command.words, capture_output=True, text=True)
            assert done.returncode in ((0, 10, 11) if "gate" in command.words else (0,)), done.stderr[-2000:]
    printed = capsys.readouterr().out
    assert "flagged False" in printed and "flagged True" in printed
    assert (tmp_path / "report.html").exists()
