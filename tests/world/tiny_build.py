"""Builds of seconds: the real code on a tiny recipe and few words. Such a model has learned next to nothing."""

from tools.world.curriculum import Stage
from tools.world.train import KINDS, Recipe, make_tokenizer

TINY = Recipe(
    stages=(
        Stage("words", 4, {"document": 0.5, "exercise": 0.5}, {24: 0.5, 64: 0.5}, fall=0.0),
        Stage("facts", 3, {"steps": 0.6, "fill": 0.4}, {64: 1.0}),
    ),
    width=32,
    layers=1,
    heads=2,
    feed_forward=48,
    tokens=300,
    bfloat16=False,
    every=2,
)


def trainer(folder, kind="masked", recipe=TINY, **given):
    """The trainer of a kind at work in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder / "words.json", 200)
    return KINDS[kind][0](recipe, folder, **given)
