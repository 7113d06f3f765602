"""Tables of what midward's speed is, beside the plain published sampler and two peers, as ratios in one process.

    make bench                                                    # two CPU cores, 15 minutes: docs/benchmarks.md
    python bench/measure.py --only sandbox guard --rounds 5       # some of its rows
    python bench/measure.py --long                                # with longer responses, more batches: an hour
    bench/gpu.sh WHEELS --out gpu                                 # LLaDA-8B's shape on one GPU of 40 GB, 8 minutes
    python bench/measure.py --device cpu --shape tiny             # the GPU's rows on a CPU, seconds: that they run

Weights are random but for the sandbox's, and made on the device; nothing is downloaded. The rows that matter most come
first. Each is printed, and written to OUT.json and OUT.md, as it is done. What doesn't fit into --minutes is left out
and says so. Exact mode must give the plain sampler's tokens in float32: the row fails where it doesn't. Random weights
can't show how many tokens an approximate mode changes, or how many a threshold commits a step.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from frame import Record, Row, Watch
from rows import Bench, Setting
from serving import http, served
from training import Size, mosa, mosa_ratio, objectives

from midward._process import settle_process

Jobs = list[tuple[str, Callable[[], Iterable[Row]]]]
GUARDS = ("sri", "sri-blocks", "hesitate", "energy", "cascade")


def on_two_cores(watch: Watch, rounds: int, long: bool, guard: str | None, replicas: int | None) -> Jobs:
    """The rows of `make bench`."""
    small, wide, deep, sandbox = (Bench(watch, shape, rounds) for shape in ("small", "wide", "deep", "sandbox"))
    a_token_a_step, alone = Setting(8), Setting(1)
    jobs: Jobs = [
        ("a token a step", lambda: small.modes(a_token_a_step, bars={"prefix": 2.1, "dual": 3.0})),
        ("V 126,464", lambda: wide.modes(Setting(8, steps=32, few=4), bars={"exact": 3.8}, modes=("exact", "dual"))),
        ("sandbox", sandbox.sandbox),
        ("outside, B 1", lambda: small.outside(alone, modes=("exact", "dual"), most=3.0)),
        ("outside, B 8", lambda: small.outside(a_token_a_step, most=1.0)),
        ("a token a step, B 1", lambda: small.modes(alone)),
        ("V 126,464, B 1", lambda: wide.modes(Setting(1, steps=32, few=4))),
        ("served", lambda: served(small, Setting(8, block=64, steps=16), clients=8, requests=8)),
        ("guards", lambda: sandbox.guards(None, GUARDS)),
        ("MOSA", lambda: mosa_ratio(wide, Size(2, 56, 200))),
        ("HTTP", lambda: http(sandbox, clients=32, requests=48, guard=guard, replicas=replicas)),
        ("block-causal", lambda: small.block_causal(Setting(8, block=16, steps=32))),
    ]
    if long:
        longer = Setting(8, length=128, steps=128)
        jobs += [
            ("a token a step, longer", lambda: small.modes(longer)),
            ("a token a step, longer prompt", lambda: small.modes(replace(longer, prompt=128))),
            ("a token a step, one block", lambda: small.modes(replace(longer, block=128), modes=("exact",))),
            ("outside, longer", lambda: small.outside(longer, most=1.0)),
            ("B 32", lambda: small.modes(Setting(32))),
            ("V 126,464, longer", lambda: wide.modes(Setting(8, 64, 128, steps=32, few=4))),
            ("MOSA, 8 layers", lambda: mosa_ratio(deep, Size(4, 56, 200))),
            ("MOSA, sandbox", lambda: mosa_ratio(sandbox, Size(4, 30, 96))),
            ("objectives, 8 layers", lambda: objectives(deep, Size(2, 56, 200), rollout_steps=1)),
            ("objectives, sandbox", lambda: objectives(sandbox, Size(4, 30, 96), rollout_steps=2)),
        ]
    return jobs


def at_size(watch: Watch, shape: str, rounds: int, long: bool) -> Jobs:
    """The rows of `bench/gpu.sh`."""
    bench, tiny = Bench(watch, shape, rounds), Bench(watch, "tiny", rounds)
    ceilings = dict(edge=8192, copied=2**31)
    small, middle, large = (Setting(batch, 64, 128, 32, 128, few=8) for batch in (1, 8, 32))
    few, many, asked = 2, 8, replace(large, steps=32)
    bar = {"outside": 3.0, "sri": 0.02, "served": 95.0, "minutes": 3.0, "mfu": 40.0}
    if shape == "tiny":
        ceilings = dict(edge=256, copied=2**20)
        small, middle, large = (Setting(batch, 8, 32, 16, 16, few=4) for batch in (1, 2, 4))
        few, many, asked, bar = 1, 2, large, dict[str, float]()

    def modes(setting: Setting) -> Callable[[], Iterable[Row]]:
        return lambda: bench.modes(setting, absolute=True)

    def step(prompts: int, **how: bool) -> tuple[str, Callable[[], Iterable[Row]]]:
        bars = {"most": bar.get("minutes"), "least": bar.get("mfu")}
        return "MOSA step", lambda: mosa(bench, Size(prompts, small.prompt, small.length), **bars, **how)

    trained = Size(few, small.prompt, small.length)
    jobs: Jobs = [
        ("weights", bench.weights),
        ("ceilings", lambda: bench.ceilings(**ceilings)),
        ("B 1", modes(small)),
        ("B 8", modes(middle)),
        ("outside", lambda: bench.outside(small, modes=("exact", "dual"), most=bar.get("outside"))),
        ("outside", lambda: bench.outside(middle, modes=("exact", "dual"), most=bar.get("outside"))),
        ("profile", lambda: bench.profile(small, bars=bool(bar))),
        ("profile", lambda: bench.profile(middle, guarded=True, bars=bool(bar))),
        ("guard sri", lambda: bench.guards(middle, ("sri",), most=bar.get("sri"))),
        step(few),
        step(many),
        ("served", lambda: served(bench, asked, clients=large.batch, requests=large.batch, least=bar.get("served"))),
        ("B 32", modes(large)),
        step(many, checkpointing=True),
        ("tiny, float32", lambda: tiny.exact_tokens(Setting(4, 8, 32, 16, 16))),
        ("profile, dual", lambda: bench.profile(small, "dual")),
    ]
    if long:
        jobs += [
            ("MOSA, plainly", lambda: mosa_ratio(bench, trained)),
            ("objectives", lambda: objectives(bench, trained, rollout_steps=1)),
        ]
    return jobs


def positive(text: str) -> int:
    """A number of rounds."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main() -> int:
    settle_process()  # as commands do
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", choices=("llada-8b", "tiny"), help="the rows of a GPU, at this shape")
    parser.add_argument("--minutes", type=float, help="rows that don't fit are left out; 15 on a CPU, 8 on a GPU")
    parser.add_argument("--rounds", type=positive, default=3, help="at most, of what is interleaved")
    parser.add_argument(
        "--long", action="store_true", help="longer responses, more batches, each objective; no time limit"
    )
    parser.add_argument("--only", nargs="+", metavar="JOB", help="jobs whose name begins so; a wrong one lists them")
    parser.add_argument("--guard", help="a fitted guard's folder, for a row over HTTP behind it")
    parser.add_argument("--replicas", type=int, help="a row over HTTP with as many replicas over Ray")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    given = parser.parse_args()
    shape = given.shape or ("llada-8b" if given.device == "cuda" else None)
    if shape == "llada-8b" and given.device == "cpu":
        parser.error("LLaDA-8B's shape needs --device cuda; --shape tiny runs on a CPU.")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch sees no CUDA device; --device cpu --shape tiny runs on a CPU.")
    if given.device == "cpu":
        torch.set_num_threads(1)
    limit = 600 if given.long else 8 if shape else 15
    watch = Watch(given.device, limit if given.minutes is None else given.minutes)
    if shape:
        jobs = at_size(watch, shape, given.rounds, given.long)
    else:
        jobs = on_two_cores(watch, given.rounds, given.long, given.guard, given.replicas)
    for word in given.only or ():
        if not any(name.startswith(word) for name, _ in jobs):
            named = ", ".join(dict.fromkeys(name for name, _ in jobs))
            parser.error(f"no job begins with {word!r}. Jobs: {named}.")
    jobs = [(name, job) for name, job in jobs if given.only is None or name.startswith(tuple(given.only))]
    command = shlex.join(["python", "bench/measure.py", *sys.argv[1:]])
    name = "cpu" if shape is None else "gpu" if given.device == "cuda" and shape == "llada-8b" else "try"
    try:
        return Record(name, watch, given.out, command).run(jobs)
    except OSError as error:
        parser.error(f"--out {given.out} can't be written: {error}.")
    except KeyboardInterrupt:
        kept = f" {given.out.with_suffix('.md')} has the rows that are done." if given.out is not None else ""
        print(f"\nstopped.{kept}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
