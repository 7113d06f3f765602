"""The GPU bench, on the CPU: the whole script at a tiny shape, its clock, and how it reads a GPU's trace."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def full_scale(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    before = signal.getsignal(signal.SIGALRM)
    import full_scale

    yield full_scale
    signal.signal(signal.SIGALRM, before)


def gpu_sh(*options, **env):
    return subprocess.run(
        [ROOT / "bench" / "gpu.sh", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **env},
    )


def test_the_whole_script_runs_and_needs_no_more_packages_than_it_says(monkeypatch, tmp_path):
    done = gpu_sh("--device", "cpu", "--shape", "tiny", "--repeats", "1", "--out", tmp_path / "gpu")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    whats = [row["what"] for row in record["rows"]]
    assert {"sampling, exact", "sampling, exact, behind SRI Guard", "MOSA step"} <= set(whats[:9])
    assert {"sampling, prefix cache (approximate)", "sampling, by threshold .9"} <= set(whats)
    assert not [row for row in record["rows"] if row.keys() & {"failed", "skipped"}]
    for row in record["rows"]:
        assert row["what"] in (tmp_path / "gpu.md").read_text() and row["what"] in done.stdout
    by_threshold = next(row for row in record["rows"] if "threshold" in row["what"])
    assert by_threshold["step_ms"] > 0 and by_threshold["tokens_per_second"] > 0
    exact = next(row for row in record["rows"] if row["what"] == "sampling, exact")
    assert 0 < exact["outside"] < 1 < exact["floor"]
    step = next(row for row in record["rows"] if row["what"] == "MOSA step")
    assert 0 < step["mfu"] < 1
    assert step["minutes"] == pytest.approx(3000 / step["batch"] * step["seconds"] / 60)
    profile = next(row["profile"] for row in record["rows"] if "profile" in row)
    assert profile["steps"] == 4 and profile["operators"] > 50 and profile["launches"] is None

    monkeypatch.syspath_prepend(ROOT / "bench")
    from needed import NEEDED

    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ours = {re.match(r"[\w-]+", line).group() for line in dependencies}
    used = {name.lower().replace("_", "-") for name in record["packages"]}
    borrowed = {"pyarrow", "jinja2", "rich", "typer"}  # by transformers and torch, where they are there
    assert (used & ours) - borrowed <= NEEDED


def test_what_is_lacking_is_told_before_anything_runs(tmp_path):
    """In a Python that sees no packages but its installer's."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    import packaging

    (tmp_path / "packaging").symlink_to(Path(packaging.__file__).parent)
    done = gpu_sh("--device", "cpu", "--shape", "tiny", PYTHON=str(bare))
    assert done.returncode == 2 and done.stdout == ""
    assert "pydantic>=2.8" in done.stderr and "give a folder of wheels" in done.stderr


def test_a_row_that_does_not_fit_is_left_out(full_scale):
    watch = full_scale.Watch("cpu", minutes=0.01)
    with pytest.raises(full_scale.Skipped, match="needs about"), watch.bounded():
        watch.repeat(lambda: pytest.fail("ran"), 3, lambda: time.sleep(0.02), share=0.001)
    seconds, peak, given = watch.repeat(lambda: "done", 3, lambda: None)
    assert seconds < 0.1 and peak is None and given == ["done"] * 3


@pytest.fixture
def no_model(full_scale, monkeypatch):
    monkeypatch.setattr(full_scale, "random_model", lambda *_: SimpleNamespace(network=torch.nn.Linear(2, 2)))
    monkeypatch.setattr(full_scale, "packages", dict)


@pytest.mark.usefixtures("no_model")
def test_a_row_ends_with_the_time_and_what_was_measured_is_written(full_scale, monkeypatch, tmp_path):
    monkeypatch.setattr(full_scale, "jobs_of", lambda bench: [("slow", lambda: time.sleep(9)), ("never", dict)])
    monkeypatch.setattr(sys, "argv", f"x --device cpu --shape tiny --minutes 0.02 --out {tmp_path / 'gpu'}".split())
    assert full_scale.main() == 0
    notes = {row["what"]: row["note"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    assert notes == {
        "weights": "6 random weights",
        "slow": "left out: the time was up",
        "never": "left out: no time was left",
    }


@pytest.mark.usefixtures("no_model")
def test_a_failed_row_is_told_and_the_next_ones_run(full_scale, monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("CUDA out of memory\nof many lines")

    monkeypatch.setattr(full_scale, "jobs_of", lambda bench: [("bad", broken), ("good", lambda: {"batch": 1})])
    monkeypatch.setattr(sys, "argv", f"x --device cpu --shape tiny --out {tmp_path / 'gpu'}".split())
    assert full_scale.main() == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows[1]["note"] == "failed: RuntimeError: CUDA out of memory" and rows[2]["batch"] == 1


def test_a_trace_of_a_gpu_is_read_by_what_its_steps_launched(full_scale):
    """Two steps of 100 us on the host. The device runs behind: kernels of the steps end after them, and one that was
    launched before them runs within them."""

    def event(cat, name, ts, dur, **args):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}

    events = [
        event("user_annotation", "ProfilerStep#2", 1000.0, 100.0),
        event("user_annotation", "ProfilerStep#3", 1100.0, 100.0),
        event("gpu_user_annotation", "ProfilerStep#2", 1010.0, 300.0),
        event("cuda_runtime", "cudaLaunchKernel", 990.0, 5.0, correlation=1),
        event("kernel", "before", 1000.0, 50.0, correlation=1),
        event("cuda_runtime", "cudaLaunchKernel", 1010.0, 5.0, correlation=2),
        event("cuda_driver", "cuLaunchKernelEx", 1020.0, 5.0, correlation=3),
        event("cuda_runtime", "cudaMemcpyAsync", 1120.0, 5.0, correlation=4),
        event("cuda_runtime", "cudaStreamSynchronize", 1130.0, 60.0, correlation=5),
        event("cuda_runtime", "cudaDeviceSynchronize", 1300.0, 60.0, correlation=6),  # the profiler's own
        event("cpu_op", "aten::mm", 1005.0, 20.0),
        event("cpu_op", "aten::nonzero", 1115.0, 80.0),
        event("kernel", "gemm", 1100.0, 60.0, correlation=2),
        event("kernel", "softmax", 1170.0, 20.0, correlation=3),  # after a gap of 10
        event("gpu_memcpy", "Memcpy DtoH", 1180.0, 20.0, correlation=4),  # overlaps by 10
        {"ph": "f", "cat": "ac2g", "name": "ac2g", "ts": 1.0},
    ]
    read = full_scale.read_trace({"traceEvents": events})
    kernels = read.pop("kernels")
    assert read == {
        "steps": 2,
        "host_ms": 0.1,
        "operators": 1,
        "reads": 0.5,
        "launches": 1,
        "copies": 0.5,
        "waits": 0.5,
        "device_ms": 0.05,
        "busy": 0.9,
        "gaps": 0.5,
    }
    assert kernels == {"gemm": 0.6, "softmax": 0.2, "Memcpy DtoH": 0.2}
    assert "device busy 90% of 0.05 ms" in full_scale.in_words(read)
