"""The reward curve as a picture."""

from pathlib import Path

from midward._extras import figure

_PANELS = (
    ("score (nats)", ("reward", "positive", "negative")),
    ("against the reference (nats)", ("positive_gain", "negative_gain", "over_refusal")),
    ("KL (nats a token)", ("kl", "kl_benign")),
)


@figure
def draw_curve(history: list[dict[str, float]], path: Path) -> None:
    """Write reward.png: the scores, their gain over the reference, and the drift, by optimizer step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 8), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(len(_PANELS), 1, sharex=True)
    for panel, (label, names) in zip(axes, _PANELS):
        for name in names:
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                panel.plot(*zip(*points), label=name.replace("_", " "), linewidth=1.3)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(loc="best", fontsize=8)
    axes[-1].set_xlabel("optimizer step")
    canvas.savefig(path, dpi=110)
