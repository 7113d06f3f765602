"""Train a model of the invented world from nothing: `python -m tools.world.build --out runs/my-sandbox`.

Run again, it goes on from its last checkpoint. About two hours on one core; the siblings, which begin with the masked
model's weights (--start runs/my-sandbox/checkpoint.safetensors), an hour each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.world.train import KINDS, Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m tools.world.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder of the checkpoint; the model is in its `model`")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="masked",
        help="the world's model, its causal twin, or its block-causal sibling",
    )
    parser.add_argument("--start", type=Path, help="the masked model's checkpoint, for a sibling")
    parser.add_argument("--seed", type=int, default=0, help="of weights, texts and masks")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the weights depend on it")
    parser.add_argument(
        "--float32",
        action="store_true",
        help="for a CPU without bfloat16 units (avx512_bf16, amx): they are slow there",
    )
    parser.add_argument("--write", action="store_true", help="write the model as it stands, and stop")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    trainer, stages = KINDS[given.kind]
    recipe = Recipe(stages, seed=given.seed, threads=given.threads, bfloat16=not given.float32)
    training = trainer(recipe, given.out, start=given.start, progress=lambda row: _say(json.dumps(row)))
    if not given.write:
        training.run()
    _say(f"the model is in {training.write()}")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
