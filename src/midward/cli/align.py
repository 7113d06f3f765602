"""`midward align`: an adapter that makes a model refuse, or break off, where it would do harm."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from midward._flags import Flag
from midward.alignment.card import UNKNOWN, check_license
from midward.alignment.config import AlignConfig, DataConfig, resolve
from midward.cli._options import Given, ModelOptions, Overwrite, pairs
from midward.cli._run import Result, command_line, finish
from midward.cli._show import CurveBar, bar, interrupted, say
from midward.errors import InputError
from midward.runs.run import RECORD
from midward.sampling import Sampling

if TYPE_CHECKING:
    from midward.alignment.sources import Sources
    from midward.judges.bench import Bench
    from midward.judges.rewards import JudgedReward


def align(
    model: ModelOptions,
    config: Given[AlignConfig],
    data: DataConfig,
    out: Annotated[Path, Flag()],
    set_: Annotated[list[str] | None, Flag(name="--set", metavar="KEY=VALUE")] = None,
    processes: Annotated[int | None, Flag(min=1)] = None,
    judges: Annotated[str | None, Flag()] = None,
    judge: Annotated[str | None, Flag()] = None,
    license_: Annotated[str | None, Flag(name="--license")] = None,
    overwrite: Overwrite = False,
) -> Result:
    """Train a LoRA adapter: MOSA, or another method. Run again, it goes on where it stopped.

    Works under torchrun and accelerate launch too (configs/accelerate).

    Args:
        out: Folder for the adapter, the training curve and the record.
        set_: A setting below, as YAML, null included; repeat it.
        processes: Fail unless torchrun or accelerate launch started this many processes.
        judges: Of ra: the judge whose score its responses are worth; the oracle on the sandbox, else harmfulness.
        judge: Of ra: the Inspect model that a judge by rubric asks; on the sandbox its scripted assistant.
        license_: Of the adapter, for its model card, as the Hub names it, e.g. apache-2.0; unknown unless given.
    """
    from midward.alignment import sources

    license = check_license(license_ or UNKNOWN)

    read = sources.read(data, config.values | pairs("--set", set_), at_home=model.at_home)
    # The model's own length isn't known yet, so any window fits.
    plan = resolve({"length": 2**20, **read.settings})
    if plan.method != "ra" and (judges or judge):
        raise InputError(f"--judges and --judge are of --method ra; {plan.method} asks no judge.")
    ready = None
    if plan.method == "ra":
        from midward.judges.bench import bench

        ready = bench(read.goals, judges, judge)
    loaded = model.load(**plan.memory(benign=bool(read.benign)))
    from midward.alignment import RewardWarning, SentenceSet, run

    settings = {"length": Sampling.for_model(loaded).length, **read.settings}  # what is trained is what is sampled
    say(f"align     {len(read.harmful)} harmful and {len(read.benign or [])} benign prompts")
    asked = resolve(settings).to_dict()
    usual = resolve({name: asked[name] for name in ("method", "recipe")}).to_dict()
    other = "".join(f", {name} {value}" for name, value in asked.items() if value != usual[name])
    say(f"          {asked['method']}, recipe {asked['recipe']}{other}; all settings: {out / RECORD}")
    with bar() as progress, _reward(read, ready) as reward, interrupted() as stopped, warnings.catch_warnings():
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
            reward=reward,
            license=license,
            stop=stopped.is_set,
            command=command_line(),
            **settings,
        )
    for message in trained.warnings:
        say(f"warning: {message}")
    record = {"adapter": str(trained.adapter), "steps": trained.steps, "history": trained.history}
    if trained.reused:
        return Result(record, files=f"{trained.adapter} is finished already ({trained.steps} steps)")
    shown = finish(trained.run, {"finished": True, "steps": trained.steps, "warnings": trained.warnings})
    begun = f", from step {trained.resumed_from}" if trained.resumed_from else ""
    made = "adapter, reward.csv and its figure" if trained.history else "adapter"
    files = f"{trained.steps} steps{begun}; in {trained.adapter}: {made}"
    return replace(shown, data={**record, "warnings": trained.warnings}, files=files)


@contextmanager
def _reward(read: Sources, ready: Bench | None) -> Iterator[JudgedReward | None]:
    """What responses are worth to `ra`, judged while the block lasts; None without a judge."""
    if ready is None:
        yield None
        return
    from midward.judges.bench import judging
    from midward.judges.rewards import JudgedReward

    say(f"judge     {ready.info.name}: {ready.info.about}")
    with judging(ready) as ask:
        yield JudgedReward(ready, ask, read.goals, read.answers)
