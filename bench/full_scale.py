"""Sampling, SRI Guard and a MOSA step at LLaDA-8B's shape: random bfloat16 weights made on the device, no download.

    bench/gpu.sh WHEELS --out gpu                                 # one GPU of 40 GB or more, 8 minutes at most
    python bench/full_scale.py --device cpu --shape tiny          # the same on a CPU, seconds: that it runs

The rows that matter most come first. Each is printed, and written to OUT.json and OUT.md, as it is done: a run that is
cut short keeps what it has. A row that doesn't fit into --minutes says so, one that fails says why; others follow.

Sampling is LLaDA's published default (128 tokens, 128 steps, blocks of 32, temperature 0). "outside" is the share of
the time spent neither in the transformer's layers nor in its output head. "of floor": the time over the least that the
step's FLOPs, or its bytes of weights, take at what this device reached in a large product and a large copy. The MOSA
step is the paper's recipe (KL over the response): forward, backward, clipping, AdamW; its FLOPs are those that the
objective needs (frozen weights have no gradient; nothing recomputed counts).
What random weights can't show: how many tokens an approximate mode changes, and how many a threshold commits a step.
"""

import argparse
import gzip
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from mosa_step import EXAMPLES, Shape, batch_of
from sampling import MASK, published_sampler, random_model
from sri_overhead import guard_of, timed

from midward._peft import LoraConfig, get_peft_model
from midward.alignment import MosaObjective, resolve
from midward.models.family import LLAMA_PROJECTIONS
from midward.sampling import Sampling, sample
from midward.store import write_text

SIZES = {
    "llada-8b": dict(vocab_size=126_464, hidden_size=4096, layers=32, heads=32, feed_forward=12_288),
    "tiny": dict(vocab_size=2_048, hidden_size=64, layers=2, heads=4, feed_forward=192),
}
EXACT, PREFIX, DUAL = "exact", "prefix cache (approximate)", "dual cache (approximate)"
MODES: dict[str, dict[str, Any]] = {
    EXACT: {},
    PREFIX: {"cache": "prefix"},
    DUAL: {"cache": "dual"},
    "by threshold .9": {"threshold": 0.9},
}
PROFILED = 4  # steps that the profiler records


@dataclass(frozen=True)
class Plan:
    """How long: response tokens, steps and block; prompt tokens; rows of a small, a middle and a large forward; prompts
    of a small and a large MOSA step; repeats at most; edge of the product and bytes of the copy that set the floor."""

    length: int = 128
    steps: int = 128
    block: int = 32
    prompt: int = 64
    batches: tuple[int, int, int] = (1, 8, 32)
    examples: tuple[int, int] = (2, 8)
    repeats: int = 3
    edge: int = 8192
    copied: int = 2**31

    def settings(self, **more: Any) -> Sampling:
        return Sampling(**{"length": self.length, "steps": self.steps, "block": self.block, "end": "keep", **more})

    @property
    def short(self) -> int:
        """Steps of a run that warms up: two a block, so every shape of a forward is met."""
        return 2 * (self.length // self.block)


TINY = Plan(
    length=32, steps=16, block=16, prompt=8, batches=(1, 2, 4), examples=(1, 2), repeats=2, edge=256, copied=2**20
)


class Skipped(Exception):
    """A row that doesn't fit into what is left of the time, or that the alarm ended."""


class Watch:
    """The time that is left, and what a device's clock says.

    On a GPU work is asynchronous: `now` waits for it, so that the time between two calls is that of the work between.
    """

    def __init__(self, device: str, minutes: float) -> None:
        self.device, self.start, self.limit = device, time.perf_counter(), 60 * minutes
        signal.signal(signal.SIGALRM, self._alarm)

    def _alarm(self, *_: Any) -> None:
        raise Skipped("the time was up")

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Raise Skipped where no time is left, and inside once it is over."""
        if self.left() <= 0:
            raise Skipped("no time was left")
        signal.setitimer(signal.ITIMER_REAL, self.left())
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def left(self) -> float:
        return self.limit - (time.perf_counter() - self.start)

    def now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def repeat(
        self, work: Callable[[], Any], repeats: int, warm: Callable[[], Any], share: float = 1.0
    ) -> tuple[float, float | None, list[Any]]:
        """Median seconds of `work`, the most GB it held (on a GPU), and what each repeat gave. warm: run first, about
        `share` of the work. Raises Skipped where the work doesn't fit; it is repeated as long as it does."""
        start = self.now()
        warm()
        needed = (self.now() - start) / share
        if needed > self.left():
            raise Skipped(f"needs about {needed:.0f} s; {self.left():.0f} were left")
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds: list[float] = []
        given: list[Any] = []
        while not seconds or (len(seconds) < repeats and sum(seconds) + seconds[-1] < self.left() / 4):
            start = self.now()
            given.append(work())
            seconds.append(self.now() - start)
        peak = None if self.device == "cpu" else torch.cuda.max_memory_allocated() / 1e9
        return statistics.median(seconds), peak, given


class Inside:
    """The time spent in some modules, on the device's own clock."""

    def __init__(self, device: str, modules: list[torch.nn.Module]) -> None:
        self.device = device
        self.spans: list[list[Any]] = []
        self.handles = [m.register_forward_pre_hook(self._begin) for m in modules]
        self.handles += [m.register_forward_hook(self._end) for m in modules]

    def stamp(self) -> Any:
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()  # on the stream: nothing waits
        return event

    def _begin(self, *_: Any) -> None:
        self.spans.append([self.stamp()])

    def _end(self, *_: Any) -> None:
        self.spans[-1].append(self.stamp())

    def share(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` gives, and the share of its time in the modules."""
        self.spans.clear()
        first = self.stamp()
        given = work()
        last = self.stamp()
        if self.device == "cpu":
            return given, sum(end - begin for begin, end in self.spans) / (last - first)
        torch.cuda.synchronize()  # an event's time can be asked for once it has happened
        inside = sum(begin.elapsed_time(end) for begin, end in self.spans)
        return given, inside / first.elapsed_time(last)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@dataclass
class Bench:
    """The model at its shape, and what every row is measured with. flops, bandwidth: what this device reaches, FLOP/s
    and bytes/s."""

    plan: Plan
    size: dict[str, int]
    watch: Watch
    model: Any = None
    flops: float = 0.0
    bandwidth: float = 0.0
    tops: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return self.watch.device

    def prompts(self, rows: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(1)
        shape = (rows, self.plan.prompt)
        return torch.randint(5, self.size["vocab_size"], shape, generator=generator).tolist()

    # --- the rows -------------------------------------------------------------------------------------------

    def ceilings(self) -> dict[str, Any]:
        """What the device reaches in a large product of random numbers, and in a copy within its memory."""
        dtype, edge = self.model.dtype, self.plan.edge
        left = torch.randn(edge, edge, device=self.device, dtype=dtype)
        source = torch.empty(self.plan.copied, device=self.device, dtype=torch.uint8).random_()
        target = torch.empty_like(source)
        product, _, _ = self.watch.repeat(lambda: left @ left, 10, lambda: left @ left)
        copy, _, _ = self.watch.repeat(lambda: target.copy_(source), 10, lambda: target.copy_(source))
        self.flops, self.bandwidth = 2 * edge**3 / product, 2 * self.plan.copied / copy
        return {
            "note": f"a product reaches {self.flops / 1e12:,.3g} TFLOP/s, a copy {self.bandwidth / 1e12:,.3g} TB/s "
            "(read and written)"
        }

    def same_tokens(self) -> dict[str, Any]:
        """Exact sampling against the published algorithm stated plainly, in float32 on this device."""
        plan, small = TINY, random_model(SIZES["tiny"], self.device, torch.float32)
        rows = plan.batches[-1]
        ids = torch.tensor(replace(self, plan=plan, size=SIZES["tiny"]).prompts(rows), device=self.device)

        @torch.no_grad()
        def forward(canvas: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return small.head(small.hidden(canvas, mask)).float()

        plain = published_sampler(
            forward, ids, length=plan.length, steps=plan.steps, block=plan.block, mask_id=MASK, dtype=torch.float64
        )
        ours = torch.tensor([each.raw_ids for each in sample(small, ids.tolist(), plan.settings(), batch_size=rows)])
        same = (ours == plain.cpu()).float().mean().item()
        return {"batch": rows, "note": f"{same:.1%} of the tokens equal"}

    def sampling(self, mode: str, rows: int) -> dict[str, Any]:
        """A whole generation."""
        plan, model, prompts = self.plan, self.model, self.prompts(rows)
        by_schedule = "threshold" not in MODES[mode]
        settings = plan.settings(**MODES[mode])
        # With a threshold the steps hang on the data, so what warms up is the schedule.
        short = plan.settings(**(MODES[mode] if by_schedule else {}), steps=plan.short)
        inside = Inside(self.device, [model.causal_lm.base_model, model.causal_lm.get_output_embeddings()])
        try:
            seconds, peak, given = self.watch.repeat(
                lambda: inside.share(lambda: sample(model, prompts, settings, batch_size=rows)),
                plan.repeats,
                lambda: sample(model, prompts, short, batch_size=rows),
                plan.short / plan.steps,
            )
        finally:
            inside.close()
        forwards = max(each.nfe for responses, _ in given for each in responses)
        row = {
            "batch": rows,
            "seconds": seconds,
            "step_ms": 1e3 * seconds / forwards,
            "tokens_per_second": rows * plan.length / seconds,
            "outside": 1 - statistics.median(share for _, share in given),
            "peak_gb": peak,
        }
        if mode == EXACT and self.flops:
            row["floor"] = seconds / (forwards * self._forward_floor(rows))
        if not by_schedule:
            row["note"] = f"{forwards} forwards for {plan.length} tokens: random weights are never so sure"
        return row

    def behind_guard(self, rows: int) -> dict[str, Any]:
        """Exact sampling behind SRI Guard, and what its watcher takes of the time."""
        plan, prompts = self.plan, self.prompts(rows)
        self.model._base_hash = "random weights"  # spares the hashing of 16 GB
        whole, short = plan.settings(), plan.settings(steps=plan.short)
        guards = {settings: guard_of(self.model, settings) for settings in (whole, short)}

        def run(settings: Sampling) -> float:
            watcher = timed(guards[settings].watcher({}), self.device)
            sample(self.model, prompts, settings, batch_size=rows, watchers=[watcher])
            return watcher.spent

        seconds, peak, spent = self.watch.repeat(
            lambda: run(whole), plan.repeats, lambda: run(short), plan.short / plan.steps
        )
        own = statistics.median(spent)
        return {
            "batch": rows,
            "seconds": seconds,
            "step_ms": 1e3 * seconds / plan.steps,
            "tokens_per_second": rows * plan.length / seconds,
            "overhead": own / (seconds - own),
            "peak_gb": peak,
        }

    def mosa(self, rows: int, checkpointing: bool = False) -> dict[str, Any]:
        """A whole optimizer step."""
        plan, model, size = self.plan, self.model, self.size
        window = {} if plan.length > 64 else {"window_start": 4, "window_end": plan.length // 2}
        config = resolve({"recipe": "paper", "length": plan.length, **window})
        shape = Shape(
            size["vocab_size"],
            size["hidden_size"],
            size["layers"],
            size["heads"],
            size["feed_forward"],
            plan.prompt,
            plan.length,
            rows,
        )
        base = model.network
        lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(LLAMA_PROJECTIONS))
        model.network = get_peft_model(base, lora).train()
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            trained = [p for p in model.network.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=config.lr)
            objective, tensors = MosaObjective(model, config), batch_of(shape, config, model)

            def step() -> None:
                objective(tensors).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, config.clip)
                optimizer.step()
                optimizer.zero_grad()

            seconds, peak, _ = self.watch.repeat(step, 2 * plan.repeats, step)
        finally:
            if checkpointing:
                base.gradient_checkpointing_disable()
            model.network = model.network.unload().eval().requires_grad_(False)
        row = {"batch": rows, "seconds": seconds, "minutes": EXAMPLES / rows * seconds / 60, "peak_gb": peak}
        if self.flops:
            row["mfu"] = self._mosa_flops(shape, tensors["rows"].numel()) / seconds / self.flops
        return row

    def profiled(self, mode: str, rows: int) -> dict[str, Any]:
        """What some steps in the middle of a block do: launches, waits, and when the device had nothing to do."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device != "cpu":
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

            handle = self.model.causal_lm.base_model.register_forward_pre_hook(begin)
            try:
                with profiler:
                    sample(self.model, self.prompts(rows), self.plan.settings(**MODES[mode]), batch_size=rows)
            except Enough:
                pass
            finally:
                handle.remove()
            trace = json.loads(gzip.decompress(path.read_bytes()))
        read = read_trace(trace)
        self.tops[f"{mode}, {rows} rows"] = read["kernels"]
        return {"batch": rows, "profile": read, "note": in_words(read)}

    # --- floors ---------------------------------------------------------------------------------------------

    def _body(self) -> int:
        """Numbers in the matrices of the transformer's layers: multiplied by every token."""
        weights = self.model.causal_lm.base_model.named_parameters()
        embedded = self.model.causal_lm.get_input_embeddings().weight.numel()  # looked up, not multiplied
        return sum(p.numel() for name, p in weights if p.dim() == 2 and "lora_" not in name) - embedded

    def _forward_floor(self, rows: int) -> float:
        """The least seconds of an exact step: its FLOPs, or its weights read once."""
        plan, size = self.plan, self.size
        width, tokens = size["hidden_size"], plan.prompt + plan.length
        head = width * size["vocab_size"]
        open_ = (plan.block + 1) / 2  # masks of a block, on average
        flops = rows * tokens * (2 * self._body() + 4 * tokens * width * size["layers"]) + rows * open_ * 2 * head
        return max(flops / self.flops, (self._body() + head) * self.model.dtype.itemsize / self.bandwidth)

    def _mosa_flops(self, shape: Shape, scored: int) -> float:
        """Three passes of the body (policy, reference, back to the inputs), four of the head on the scored rows."""
        tokens = shape.batch * (shape.prompt + shape.response)
        attention = 4 * (shape.prompt + shape.response) * shape.width * shape.layers
        return 3 * tokens * (2 * self._body() + attention) + 8 * scored * shape.width * shape.vocabulary


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
    waiting = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
    read: dict[str, Any] = {
        "steps": len(marks),
        "host_ms": (stop - start) / 1e3 / len(marks),
        "operators": len(operators) / len(marks),
        "reads": sum(name in waiting for name in operators) / len(marks),
        "launches": None,
        "copies": None,
        "waits": None,
        "device_ms": None,
        "busy": None,
        "gaps": None,
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
    host = f"{read['operators']:.0f} operators, {read['reads']:.3g} reads by the host, {read['host_ms']:.2f} ms of it"
    if read["launches"] is None:
        return f"a step: {host}"
    return (
        f"a step: {host}; {read['launches']:.0f} launches, {read['copies']:.3g} copies, {read['waits']:.3g} waits; "
        f"device busy {read['busy']:.0%} of {read['device_ms']:.2f} ms, {read['gaps']:.0f} gaps"
    )


def machine(device: str, dtype: torch.dtype) -> str:
    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), name)
        name += f", {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; {str(dtype).removeprefix('torch.')}"


@cache
def packages() -> dict[str, str]:
    """Versions of what was imported."""
    owners = packages_distributions()
    names = {owner for module in list(sys.modules) for owner in owners.get(module, ())}
    return {name: version(name) for name in sorted(names, key=str.lower)}


COLUMNS = {
    "": ("what", "{}"),
    "rows": ("batch", "{}"),
    "seconds": ("seconds", "{:.3f}"),
    "ms a step": ("step_ms", "{:.2f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "of floor": ("floor", "{:.2f}x"),
    "outside": ("outside", "{:.1%}"),
    "SRI adds": ("overhead", "{:.2%}"),
    "MFU": ("mfu", "{:.0%}"),
    "3,000 examples, min": ("minutes", "{:.1f}"),
    "peak GB": ("peak_gb", "{:.1f}"),
    "note": ("note", "{}"),
}


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    cells = [
        "" if row.get(key) is None else pattern.format(row[key]).replace("|", "/") for key, pattern in COLUMNS.values()
    ]
    return f"| {' | '.join(cells)} |"


HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def jobs_of(bench: Bench) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is measured, the most important first."""
    small, middle, large = bench.plan.batches
    few, many = bench.plan.examples

    def sampled(mode: str, rows: int) -> tuple[str, Callable[[], dict[str, Any]]]:
        return f"sampling, {mode}", lambda: bench.sampling(mode, rows)

    def profiled(mode: str, rows: int) -> tuple[str, Callable[[], dict[str, Any]]]:
        return f"profile of sampling, {mode}", lambda: bench.profiled(mode, rows)

    return [
        ("ceilings", bench.ceilings),
        sampled(EXACT, small),
        sampled(EXACT, middle),
        profiled(EXACT, small),
        profiled(EXACT, middle),
        ("sampling, exact, behind SRI Guard", lambda: bench.behind_guard(middle)),
        ("MOSA step", lambda: bench.mosa(few)),
        ("MOSA step", lambda: bench.mosa(many)),
        sampled(DUAL, small),
        sampled(DUAL, middle),
        sampled(PREFIX, small),
        sampled(PREFIX, middle),
        sampled("by threshold .9", middle),
        profiled(DUAL, small),
        ("exact tokens against the plain published sampler, tiny, float32", bench.same_tokens),
        ("MOSA step, gradient checkpointing", lambda: bench.mosa(many, checkpointing=True)),
        sampled(EXACT, large),
        sampled(DUAL, large),
        sampled(PREFIX, large),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="llada-8b", choices=SIZES)
    parser.add_argument("--minutes", type=float, default=8, help="rows that don't fit are left out")
    parser.add_argument("--repeats", type=int, help="medians of up to so many; 3, or 2 at the tiny shape")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    if options.shape == "llada-8b" and options.device == "cpu":
        parser.error("LLaDA-8B's shape needs --device cuda; --shape tiny runs on a CPU.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch sees no CUDA device; --device cpu --shape tiny runs on a CPU.")
    sys.stdout.reconfigure(line_buffering=True)
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about its own next version
    if options.device == "cpu":
        torch.set_num_threads(1)
    plan = TINY if options.shape == "tiny" else Plan()
    plan = replace(plan, repeats=options.repeats or plan.repeats)
    bench = Bench(plan, SIZES[options.shape], Watch(options.device, options.minutes))
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    where = f"{options.shape}: {machine(options.device, dtype)}"
    rows: list[dict[str, Any]] = []

    def write() -> None:
        if options.out is None:
            return
        record = {"machine": where, "packages": packages(), "plan": vars(plan), "rows": rows}
        text = "\n".join([where, "", HEAD, *map(line, rows)])
        for title, kernels in bench.tops.items():
            if kernels:
                text += f"\n\nKernels by time: {title}\n\n| share | kernel |\n|---|---|\n"
                text += "\n".join(f"| {share:.1%} | `{name[:100]}` |" for name, share in kernels.items())
        for suffix, content in ((".json", json.dumps(record, indent=1)), (".md", text)):
            write_text(options.out.with_suffix(suffix), f"{content}\n")

    def measure(what: str, job: Callable[[], dict[str, Any]]) -> bool:
        row: dict[str, Any] = {"what": what}
        try:
            with bench.watch.bounded():
                row |= job()
        except Skipped as reason:
            row |= {"skipped": True, "note": f"left out: {reason}"}
        except Exception as error:  # a GPU hour isn't lost for one row: it is told, and the exit status tells
            traceback.print_exc()
            said = next(iter(str(error).splitlines()), "")
            row |= {"failed": True, "note": f"failed: {type(error).__name__}: {said}"}
        row["at"] = bench.watch.limit - bench.watch.left()
        rows.append(row)
        print(line(row))
        write()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        return "failed" not in row

    def build() -> dict[str, Any]:
        bench.model = random_model(bench.size, options.device, dtype)
        return {"note": f"{sum(p.numel() for p in bench.model.network.parameters()):,} random weights"}

    print(f"{where}\n\n{HEAD}")
    done = measure("weights", build)
    if done:
        done = all([measure(what, job) for what, job in jobs_of(bench)])
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
