"""A sandbox build of seconds: the real code on a tiny recipe. It has learned next to nothing."""

from tools.world.curriculum import Stage
from tools.world.train import Recipe

TINY = Recipe(
    stages=(
        Stage("steps", 24, {"steps": 0.6, "exercise": 0.4}, {24: 0.8, 96: 0.2}, {}),
        Stage("words", 12, {"exercise": 1.0}, {24: 1.0}, {"exercise": 0.0}),
    ),
    vocabulary=600,
    width=32,
    layers=1,
    heads=2,
    feed_forward=48,
    tokens=500,
    threads=1,
    corpus=400,
    check_every=6,
)
