"""Target queries a second: the attack matrix against the same attacks one goal and one query at a time, as ratios.

    python bench/attack_throughput.py                     # the sandbox, on the CPU
    python bench/attack_throughput.py --quick             # fewer goals
    python bench/attack_throughput.py --device cuda --shape llada-8b   # random bfloat16 weights at LLaDA-8B's shape

Matrix and one-by-one run in turn in one process, on the same attacks and settings; the second on a few of the goals.
A third line puts the plain goals one by one to the published sampler (tests/reference.py): the head on all positions,
no early end, batch 1, and nothing around it. Queries are those that reach the target: a replay that is known isn't one.
CPU time of the process, which other load on the machine hardly moves; and wall clock.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from sampling import SHAPES, published_sampler, random_model

import midward
from midward import Sampling
from midward.attacks import evalset, matrix, results
from midward.models import LanguageModel
from midward.serving import provider
from midward.serving.engine import Engine

ATTACKS = ("direct", "tap", "pair", "prefill")


class Clock:
    """Seconds of wall clock and of CPU time since it was made."""

    def __init__(self):
        self.started = time.perf_counter(), time.process_time()

    def read(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self.started[0], time.process_time() - self.started[1]


def attack(planned, goals, arguments, *, batch, samples, tasks, seed):
    """Queries answered, replays included, and the seconds it took; samples and tasks: in flight at a time."""
    evalset.MAX_SAMPLES, evalset.MAX_TASKS = samples, tasks
    todo = matrix.Matrix(
        rows=[matrix.Row("base", "sandbox", arguments={**arguments, "batch_size": batch})],
        attacks=planned,
        sets={"sandbox": goals},
        judges=["oracle"],
        roles=dict.fromkeys(matrix.roles_needed(planned, ["oracle"]), matrix.ASSISTANT),
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        found = results.read(evalset.run(todo, Path(folder), display="none"))
        seconds = clock.read()
    assert not any(one.error for one in found), next(one.error for one in found if one.error)
    asked = sum(one.record.target_queries + (one.record.replay == "asked") for one in found)
    return asked, seconds


def reference(model, goals):
    """Goals answered by the published sampler one after the other, and the seconds it took."""
    chosen = Sampling.for_model(model)

    @torch.no_grad()
    def forward(canvas, mask):
        return model.head(model.hidden(canvas.to(model.device), mask)).float()

    clock = Clock()
    for goal in goals:
        prompt = torch.tensor([model.encode([{"role": "user", "content": goal.prompt}])])
        block = chosen.block or chosen.length
        settings = {"length": chosen.length, "steps": chosen.steps, "block": block}
        published_sampler(forward, prompt, mask_id=model.family.mask_id, **settings)
    return len(goals), clock.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape; the sandbox's own unless given")
    parser.add_argument("--attacks", nargs="+", default=ATTACKS)
    parser.add_argument("--goals", type=int, default=64)
    parser.add_argument("--alone", type=int, default=3, help="goals that are attacked one by one, each time")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="16 goals, one repeat")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    if options.quick:
        options.goals, options.alone, options.repeats = 16, 2, 1

    sandbox = midward.load("sandbox", device=options.device)
    model, arguments = sandbox, {"device": options.device}
    if options.shape:
        dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
        network = random_model(SHAPES[options.shape], options.device, dtype).network
        model = LanguageModel("random", sandbox.family, sandbox.tokenizer, network)
    engine = Engine(model)
    provider.shared = lambda *where: engine
    planned = matrix.plan_attacks(options.attacks, "quick")
    goals = matrix.load_sets(["sandbox"], options.goals)["sandbox"]
    print(f"{options.shape or 'sandbox'} on {options.device}, {len(goals)} goals, {', '.join(options.attacks)}")

    totals = {name: [0, 0.0, 0.0] for name in ("matrix", "one by one", "reference one by one")}
    attack(planned, goals[:2], arguments, batch=options.batch, samples=64, tasks=8, seed=99)  # warm everything up
    for turn in range(options.repeats):
        runs = {
            "reference one by one": lambda: reference(model, goals[: options.alone]),
            "one by one": lambda turn=turn: attack(
                planned, goals[: options.alone], arguments, batch=1, samples=1, tasks=1, seed=turn
            ),
            "matrix": lambda turn=turn: attack(
                planned, goals, arguments, batch=options.batch, samples=64, tasks=8, seed=turn
            ),
        }
        for name, run in runs.items():
            queries, (wall, cpu) = run()
            totals[name] = [a + b for a, b in zip(totals[name], (queries, wall, cpu))]
    rates = {}
    for name, (queries, wall, cpu) in totals.items():
        rates[name] = queries / wall, queries / cpu
        print(f"  {name}: {queries} queries, {queries / wall:.2f} a second, {queries / cpu:.2f} a CPU second")
    for name in ("one by one", "reference one by one"):
        by_wall, by_cpu = (rates["matrix"][i] / rates[name][i] for i in range(2))
        print(f"  the matrix is {by_wall:.1f}x faster than {name} (CPU time {by_cpu:.1f}x)")


if __name__ == "__main__":
    main()
