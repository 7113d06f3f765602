"""Train a model of the invented world from nothing: `python -m tools.world.build --out runs/my-sandbox`.

Run again, it goes on from its last checkpoint. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from midward.errors import MidwardError
from tools.world.train import Recipe, build
from tools.world.twin import TwinRecipe

RECIPES = {"diffusion": Recipe, "autoregressive": TwinRecipe}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, train, and return the exit status: 2 for bad input or a gate that was missed."""
    parser = argparse.ArgumentParser(prog="python -m tools.world.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--kind", choices=RECIPES, default="diffusion", help="the world's model, or its causal twin")
    parser.add_argument("--seed", type=int, default=0, help="of weights, texts and masks")
    parser.add_argument(
        "--threads", type=int, help="CPU threads, by default those of the shipped weights, which depend on it"
    )
    given = parser.parse_args(arguments)
    threads = {} if given.threads is None else {"threads": max(1, given.threads)}
    recipe = RECIPES[given.kind](seed=given.seed, **threads)
    _say(f"stages: {', '.join(f'{stage.name} {stage.steps}' for stage in recipe.stages)}")
    try:
        folder = build(given.out, recipe, progress=_show)
    except MidwardError as error:
        _say(f"error: {error}")
        return 2
    _say(f"the model is in {folder}: midward chat --model {folder}")
    return 0


def _show(row: dict[str, Any]) -> None:
    exact = ", ".join(f"{kind} {share:.2f}" for kind, share in row["exact"].items()) or "-"
    place = f"{row['step']}/{row['of']} {row['stage']}"
    _say(f"{place}: loss {row['loss']:.3f}, exact {exact} ({row['seconds']:.0f} s)")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
