"""What a step makes the host and the device do, by `torch.profiler`: operators, launches, copies, waits, idle gaps."""

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROFILED = 4  # steps that the profiler records
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")


def profiled(work: Callable[[], Any], network: torch.nn.Module, device: str) -> dict[str, Any]:
    """What some steps in the middle of a block do; `work` is left once they are recorded. network: its forwards begin
    the steps."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz"
        profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=2, active=PROFILED, repeat=1),
            on_trace_ready=lambda done: done.export_chrome_trace(str(path)),
        )

        class Enough(Exception):
            """The trace is written: the rest of the generation is of no interest."""

        def begin(*_: Any) -> None:
            profiler.step()
            if path.exists():
                raise Enough

        handle = network.register_forward_pre_hook(begin)
        try:
            with profiler:
                work()
        except Enough:
            pass
        finally:
            handle.remove()
        return read_trace(json.loads(gzip.decompress(path.read_bytes())))


def read_trace(trace: dict[str, Any]) -> dict[str, Any]:
    """What a Chrome trace of `torch.profiler` says of its steps, each number a step.

    launches, copies: kernels and copies that the host started in those steps; waits: its calls that wait for the
    device. reads: operators that make the host wait for a number of the device's. busy: the share of the time from the
    first kernel to the last in which some kernel or copy ran; gaps: how often none did. kernels: name -> share of the
    busy time, the largest first. Without a GPU those are None.
    """
    events = [each for each in trace["traceEvents"] if each.get("ph") == "X"]
    marks = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("ProfilerStep#")]
    start, stop = min(e["ts"] for e in marks), max(e["ts"] + e["dur"] for e in marks)
    inside = [e for e in events if start <= e["ts"] < stop]
    operators = [e["name"] for e in inside if e.get("cat") == "cpu_op"]
    read: dict[str, Any] = {
        "steps": len(marks),
        "host_ms": (stop - start) / 1e3 / len(marks),
        "operators": len(operators) / len(marks),
        "reads": sum(name in READS for name in operators) / len(marks),
        **dict.fromkeys(("launches", "copies", "waits", "device_ms", "busy", "gaps")),
        "kernels": {},
    }
    calls = [e for e in inside if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    # The device lags behind the host: what belongs to a step is what was launched in it.
    launched = {e["args"]["correlation"] for e in calls if "correlation" in e.get("args", {})}
    work = [
        e
        for e in events
        if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and e["args"].get("correlation") in launched
    ]
    if not work:
        return read

    busy, gaps, reached = 0.0, 0, min(e["ts"] for e in work)
    first = reached
    taken: Counter[str] = Counter()
    for e in sorted(work, key=lambda e: e["ts"]):
        taken[e["name"]] += e["dur"]
        end = e["ts"] + e["dur"]
        gaps += e["ts"] > reached
        busy += max(0.0, end - max(e["ts"], reached))
        reached = max(reached, end)
    total = sum(taken.values())
    return read | {
        "launches": sum(e["cat"] == "kernel" for e in work) / len(marks),
        "copies": sum(e["cat"] == "gpu_memcpy" for e in work) / len(marks),
        "waits": sum(e["cat"] == "cuda_runtime" and "Synchronize" in e["name"] for e in calls) / len(marks),
        "device_ms": (reached - first) / 1e3 / len(marks),
        "busy": busy / (reached - first),
        "gaps": gaps / len(marks),
        "kernels": {name: duration / total for name, duration in taken.most_common(12)},
    }


def in_words(read: dict[str, Any]) -> str:
    """A profile in a line."""
    host = f"{read['operators']:.0f} operators, {read['host_ms']:.2f} ms of the host"
    if read["launches"] is None:
        return f"a step: {host}"
    return (
        f"a step: {host}; {read['launches']:.0f} launches, {read['copies']:.3g} copies, {read['waits']:.3g} waits; "
        f"device busy {read['busy']:.0%} of {read['device_ms']:.2f} ms, {read['gaps']:.0f} gaps"
    )
