"""The examples run from a clone, and again they go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_runs_and_goes_on(tmp_path):
    small = {"GOALS": "4", "STEPS": "5", "QUICK": "1"}
    environment = {**os.environ, **small, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for _ in range(2):
        run = subprocess.run(
            ["bash", HERE / "examples/demo.sh", tmp_path], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-2000:]
    page = (tmp_path / "index.html").read_text()
    assert "MOSA" in page or "mosa" in page
    assert all(
        (tmp_path / name / "run.json").exists() for name in ("attack", "harmless", "utility", "guarded", "order")
    )


@pytest.mark.slow
def test_the_demo_in_python_asks_what_the_script_asks(tmp_path):
    text = (HERE / "examples/demo.py").read_text().replace("GOALS, STEPS = 60, 160", "GOALS, STEPS = 4, 5")
    quick = tmp_path / "demo.py"
    quick.write_text(text.replace("anchors=60, train=160", "anchors=20, train=60"))
    run = subprocess.run([sys.executable, quick, tmp_path / "out"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "attack success" in run.stdout and "right" in run.stdout
