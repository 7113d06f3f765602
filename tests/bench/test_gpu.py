"""The bench, on the CPU: the GPU's rows at a tiny shape, the clock and the table, and how a GPU's trace is read."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"


@pytest.fixture
def frame(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    before = signal.getsignal(signal.SIGALRM)
    import frame

    monkeypatch.setattr(frame, "packages", dict)
    yield frame
    signal.signal(signal.SIGALRM, before)


def gpu_sh(*options, **env):
    return subprocess.run(
        [ROOT / "bench" / "gpu.sh", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **env},
    )


@pytest.mark.parametrize("more", [(), pytest.param(("--long",), marks=pytest.mark.slow)], ids=str)
def test_the_whole_script_runs_and_needs_no_more_packages_than_it_says(monkeypatch, tmp_path, more):
    done = gpu_sh("--device", "cpu", "--shape", "tiny", "--rounds", "1", *more, "--out", tmp_path / "new" / "gpu")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert record["name"] == "try" and not [row for row in record["rows"] if row["state"]]
    rows = {row["figure"]: row for row in record["rows"]}
    for figure in rows:
        assert figure in (tmp_path / "new" / "gpu.md").read_text() and figure in done.stdout
    for figure in ("exact / official loop", "dual / Fast-dLLM's dual cache, restated", "engine, 4 clients / library"):
        assert rows[figure]["values"][0] > 0 and "100.0% of tokens equal" in rows[figure]["note"]
    assert len([row for row in record["rows"] if row["figure"] == "dual, tokens/s"]) == 3
    assert rows["exact: tokens of the official loop"]["values"] == [100]
    if more:
        assert float(rows["MOSA step / plainly written"]["note"].split()[-1]) < 1e-4  # how far the gradient differs
        assert rows["mosa, stable: step / MOSA's"]["values"] == [1]
        assert rows["ra: rollouts / MOSA's step"]["values"][0] > 0
    for figure in ("outside the layers and the head, exact", "MOSA step: MFU"):
        assert 0 < rows[figure]["values"][0] < 100
    profile = rows["waits for the device a step, exact"]["data"]
    assert profile["steps"] == 4 and profile["operators"] > 50 and profile["launches"] is None

    monkeypatch.syspath_prepend(BENCH)
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


def test_rounds_are_interleaved_and_end_before_the_time_does(frame):
    watch, order = frame.Watch("cpu", minutes=1), []
    jobs = {name: lambda name=name: order.append(name) or name for name in "abc"}
    runs = watch.interleaved(jobs, 3, warm=lambda: order.append("warm"))
    assert "".join(order) == "warmabccbaabc"
    assert {name: each.result for name, each in runs.items()} == {name: name for name in "abc"}
    assert [len(each.seconds) for each in runs.values()] == [3] * 3
    slow = frame.Watch("cpu", minutes=0.02)  # a round takes more than a third of what is left
    assert len(slow.interleaved({"a": lambda: time.sleep(0.5)}, 3)["a"].seconds) == 1


def test_a_round_that_the_time_ends_does_not_count(frame):
    watch, turns = frame.Watch("cpu", minutes=0.01), iter((0, 9))
    with watch.bounded():
        runs = watch.interleaved({"a": lambda: time.sleep(next(turns)), "b": lambda: None}, 3)
    assert [len(each.seconds) for each in runs.values()] == [1, 1]
    with pytest.raises(frame.Skipped), watch.bounded():
        pytest.fail("ran")


def test_rows_stay_when_others_fail_or_do_not_fit(frame, tmp_path, capsys):
    def broken():
        yield frame.Row("good", values=[1.0, 3.0, 2.0], least=2.5)
        raise RuntimeError("CUDA out of memory\nof many lines")

    jobs = [("bad", broken), ("slow", lambda: [frame.Row("never", values=[time.sleep(9)])]), ("late", list)]
    record = frame.Record("cpu", frame.Watch("cpu", minutes=0.02), tmp_path / "out", "a | command")
    assert record.run(jobs) == 1
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["figure"], row["state"], row["note"]) for row in rows] == [
        ("good", "", ""),
        ("bad", "failed", "RuntimeError: CUDA out of memory"),
        ("slow", "left out", "the time was up"),
        ("late", "left out", "no time was left"),
    ]
    line = "| good | 2.00x | 1.00x to 3.00x | at least 2.50x: **missed** | 3 |  |"
    assert line in (tmp_path / "out.md").read_text() and line.replace("d |", "d |  |", 1) in capsys.readouterr().out


def test_each_setting_has_a_table_of_its_own(frame, tmp_path):
    record = frame.Record("cpu", frame.Watch("cpu", minutes=1), tmp_path / "out", "a command")
    record.run([("", lambda: [frame.Row(name, f"B {name in 'ac'}", values=[1.5]) for name in "abcd"])])
    first, second = (tmp_path / "out.md").read_text().split("**B False**")
    assert first.startswith("**B True**\n\n| figure | median |")
    for part, names in ((first, "ac"), (second, "bd")):
        assert re.findall(r"^\| (\w) \|", part, re.MULTILINE) == [*names]


@pytest.mark.parametrize("bar", [{"least": 2.0}, {"most": 2.0}])
def test_what_reaches_its_bar_is_not_missed(frame, bar):
    assert "missed" not in frame.Row("x", values=[2.0], **bar).line()
    assert frame.Row("a | b", note="c | d").line().count("|") == 8  # a cell stays a cell


def test_the_page_takes_the_table_between_its_markers(frame, tmp_path):
    record = frame.Record("cpu", frame.Watch("cpu", minutes=1), tmp_path / "out", "python bench/measure.py")
    record.run([("", lambda: [frame.Row(r"a \1 row", values=[1.5])])])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench: cpu -->\nold\n<!-- /bench: cpu -->\nafter\n")
    saved = json.loads((tmp_path / "out.json").read_text())
    for _ in range(2):
        frame.place(saved, page)
        text = (tmp_path / "out.md").read_text()
        assert page.read_text() == f"before\n<!-- bench: cpu -->\n\n{text}\n<!-- /bench: cpu -->\nafter\n"
    with pytest.raises(SystemExit, match="0 places"):
        frame.place(saved | {"name": "try"}, page)


def test_the_docs_have_a_place_for_each_table():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in ("cpu", "gpu"):
        assert text.count(f"<!-- bench: {name} -->") == text.count(f"<!-- /bench: {name} -->") == 1


def test_a_trace_of_a_gpu_is_read_by_what_its_steps_launched(monkeypatch):
    """Two steps of 100 us on the host. The device runs behind: kernels of the steps end after them, and one that was
    launched before them runs within them."""

    monkeypatch.syspath_prepend(BENCH)
    import launches

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
    read = launches.read_trace({"traceEvents": events})
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
    assert "device busy 90% of 0.05 ms" in launches.in_words(read)
