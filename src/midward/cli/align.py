"""`midward align`: an adapter that makes a model refuse, or break off, where it would do harm."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from midward._flags import Flag
from midward.alignment.config import AlignConfig, DataConfig, resolve
from midward.cli._options import Given, ModelOptions, Overwrite, pairs
from midward.cli._run import Result, finish
from midward.cli._show import CurveBar, bar, say
from midward.sampling import Sampling


def align(
    model: ModelOptions,
    config: Given[AlignConfig],
    data: DataConfig,
    out: Annotated[Path, Flag()],
    set_: Annotated[list[str] | None, Flag(name="--set", metavar="KEY=VALUE")] = None,
    processes: Annotated[int | None, Flag(min=1)] = None,
    overwrite: Overwrite = False,
) -> Result:
    """Train a LoRA adapter: MOSA, or another method. Run again, it goes on where it stopped.

    Works under torchrun and accelerate launch too (configs/accelerate).

    Args:
        out: Folder for the adapter, the training curve and the record.
        set_: A setting below, as YAML, null included; repeat it.
        processes: Fail unless torchrun or accelerate launch started this many processes.
    """
    from midward.alignment import sources

    read = sources.read(data, config.values | pairs("--set", set_), at_home=model.at_home)
    # The model's own length isn't known yet, so any window fits.
    plan = resolve({"length": 2**20, **read.settings})
    loaded = model.load(**plan.memory(benign=bool(read.benign)))
    from midward.alignment import RewardWarning, SentenceSet, run

    settings = {"length": Sampling.for_model(loaded).length, **read.settings}  # what is trained is what is sampled
    say(f"align     {len(read.harmful)} harmful and {len(read.benign or [])} benign prompts")
    say(f"          {', '.join(f'{name} {value}' for name, value in resolve(settings).to_dict().items())}")
    with bar() as progress, warnings.catch_warnings():
        curve = CurveBar(progress)
        warnings.simplefilter("ignore", RewardWarning)  # it is told below
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about its own next version
        trained = run.align(
            loaded,
            read.harmful,
            out,
            benign=read.benign,
            sentences=SentenceSet(**read.sentences),
            overwrite=overwrite,
            on_log=curve.row,
            on_start=curve.start,
            processes=processes,
            **settings,
        )
    for message in trained.warnings:
        say(f"warning: {message}")
    record = {"adapter": str(trained.adapter), "steps": trained.steps, "history": trained.history}
    if trained.reused:
        return Result(record, files=f"{trained.adapter} is finished already ({trained.steps} steps)")
    shown = finish(trained.run, {"finished": True, "steps": trained.steps, "warnings": trained.warnings})
    begun = f", from step {trained.resumed_from}" if trained.resumed_from else ""
    files = f"{trained.steps} steps{begun}; adapter, reward.csv and its figure are in {trained.adapter}"
    return replace(shown, data={**record, "warnings": trained.warnings}, files=files)
