"""`midward models`: which kinds of checkpoint can be loaded, and how that was verified."""

from __future__ import annotations

from midward.cli._show import out

_ATTENTION = {
    "full": "full: every position sees every other",
    "block": "block-causal: a position sees its own block and those before",
    "causal": "causal: one token a step",
}


def models() -> None:
    """List the families of models: checkpoints, how they are loaded and sampled, how that was verified."""
    from midward.models import families

    shown = []
    for info in families():
        sampling = ", ".join(f"{name} {value}" for name, value in info.sampling.items())
        about = {
            "checkpoints": info.checkpoints,
            "config.json": " or ".join(info.architectures),
            "loaded into": info.backbone,
            "attention": _ATTENTION[info.attention],
            "sampling": sampling,
            "adapters on": info.adapters,
            "verified by": info.verified,
            "differs": info.differs,
        }
        lines = [f"  {name:<11}  {text}" for name, text in about.items() if text]
        shown.append("\n".join([info.name, *lines]))
    out("\n\n".join(shown))
    out(
        "\n--model takes a folder or a Hub id. align is for the diffusion families without diffusion-gemma; "
        "what else a family can't do is refused by name."
    )
