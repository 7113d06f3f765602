"""The demo in Python: what examples/demo.sh does by verbs, by the functions below them.

    python examples/demo.py [FOLDER]

Shorter than the script: one training seed, and the guard's table last. Run again, it goes on where it stopped.
"""

import sys
from pathlib import Path

from midward import models
from midward.alignment import SentenceSet, align, sources
from midward.alignment.config import DataConfig
from midward.attacks import evalset, results
from midward.attacks.cases import cases, mixed
from midward.attacks.config import AttackConfig
from midward.attacks.matrix import matrix_of, rows_of
from midward.goals import of_trial
from midward.guards import compare, fit_guards, make
from midward.guards.config import Sizes
from midward.judges.bench import bench
from midward.judges.phrases import refusal_in
from midward.runs.measure import Case, measure
from midward.sampling import Request, Sampling
from midward.stats import rate
from midward.world.trials import trials

GOALS, STEPS = 20, 160
ATTACKS = ("direct", "wildjailbreak", "prefill", "prefill-mid", "pad")
HARMLESS = ("benign", "benign-wrapped", "banned")
SIZES = Sizes(anchors=60, train=160, held_out=100)


def main(out: Path) -> None:
    model = models.load("sandbox")
    sampling = Sampling.for_model(model)

    # 1. Two adapters: initial alignment's and MOSA's.
    adapters = {}
    for method in ("initial", "mosa"):
        read = sources.read(DataConfig(), {"method": method, "max_steps": STEPS}, at_home=True)
        settings = {"length": sampling.length, **read.settings}
        trained = align(
            models.load("sandbox"),
            read.harmful,
            out / "adapters" / method,
            benign=read.benign,
            sentences=SentenceSet(**read.sentences),
            **settings,
        )
        adapters[method] = str(trained.adapter)

    # 2. Published attacks on the model bare and with each adapter, judged by the world's oracle.
    config = AttackConfig(
        attacks=ATTACKS, goals=("sandbox",), limit=GOALS, judges=("oracle", "readable"), no_replay=True
    )
    matrix = matrix_of(config, rows_of(config, list(adapters.items()), [], {}), 0)
    outcomes = results.read(evalset.run(matrix, out / "attack", display="none"))
    for attack in ATTACKS:
        for row in ("base", *adapters):
            cell = [outcome for outcome in outcomes if (outcome.attack, outcome.row) == (attack, row)]
            verdicts = [outcome.success("oracle", "reply") for outcome in cell]
            print(f"{attack:14} {row:8} attack success {rate(verdicts)}")

    # 3. What it cost: harmless requests, through the one loop that measures anything.
    for label, adapter in {"base": None, **adapters}.items():
        network = models.load("sandbox", adapter)
        for name in HARMLESS:
            asked = [Case(of_trial(trial), Request(trial.text), name) for trial in trials(name, GOALS, split="test")]
            judge = bench([case.goal for case in asked])
            rows = measure(network, asked, out / "harmless" / label, sampling=sampling, judge=judge)
            print(f"{name:14} {label:8} right {rate(row['correct'] for row in rows)}")

    # 4. SRI Guard and the recommended guard on the base model, on answers that they haven't seen.
    guards = {"sri": make("sri"), "hesitate": make("hesitate")}
    harmless = mixed(["benign"], SIZES.harmless, split="tuning")
    refusing = mixed(["plain"], SIZES.anchors, split="tuning")
    fit_guards(
        model,
        guards,
        harmless,
        refusing,
        out / "guard",
        refused=lambda text: refusal_in(text) is not None,
        sampling=sampling,
        sizes=SIZES,
    )
    sets = ("prefill", "prefill-mid", "pad", *HARMLESS)
    asked = [case for name in sets for case in cases(model, name, GOALS, split="test")]
    judge = bench([case.goal for case in asked])
    summary = compare.Comparison(model, asked, guards, out / "guarded", sampling, judge).run(repeats=1)
    for row in summary["defences"]:
        print(
            f"{row['defence']:8} attack success {row['asr']['all']['value']:.3f}, caught {row['caught']['value']:.3f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "report-python"))
