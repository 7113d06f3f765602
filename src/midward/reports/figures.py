"""Figures, drawn off screen with matplotlib and returned as files. Every function closes what it opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe and Ito's colours: told apart by colour-blind readers and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")


def pyplot() -> Any:
    """matplotlib's, drawing off screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@contextmanager
def _axes(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    try:
        yield axes
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=130)
    finally:
        plt.close(figure)
