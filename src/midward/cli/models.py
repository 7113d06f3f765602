"""`midward models`: which kinds of checkpoint can be loaded, and how that was verified."""

from __future__ import annotations

from midward.cli._run import Result

_ATTENTION = {
    "full": "full: every position sees every other",
    "block": "block-causal: a position sees its own block and those before",
    "causal": "causal: one token a step",
}
_NOTE = (
    "--model takes a folder or a Hub id. align is for the diffusion families without diffusion-gemma; what else a "
    "family can't do is refused by name."
)


def models() -> Result:
    """List the families of models: checkpoints, how they are loaded and sampled, how that was verified."""
    from midward.models.loading import FamilyInfo, every

    records = [
        {
            "family": info.name,
            "checkpoints": info.checkpoints,
            "config.json": " or ".join(info.architectures),
            "loaded into": info.backbone,
            "attention": _ATTENTION[info.attention],
            "sampling": ", ".join(f"{name} {value}" for name, value in info.sampling.items()),
            "adapters on": info.adapters,
            "verified by": info.verified,
            "differs": info.differs,
        }
        for info in every().values()
        if isinstance(info, FamilyInfo)
    ]
    paragraphs = [
        "\n".join([family, *(f"  {name:<11}  {text}" for name, text in about.items() if text)])
        for family, about in ((record["family"], {**record, "family": ""}) for record in records)
    ]
    broken = [f"{name}: {error}" for name, error in every().items() if not isinstance(error, FamilyInfo)]
    return Result(records, "\n\n".join([*paragraphs, *broken, _NOTE]))
