"""`midward dynamics`: recovery rates and SRI signals, over samplers of the same weights (SRI's S2 to S6)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from midward._flags import Flag
from midward.cli._options import JudgeModel, JudgeName, ModelOptions, SamplingOptions, SharedBy
from midward.cli._run import Result, finish, run_folder
from midward.cli._show import following, say
from midward.dynamics.config import DynamicsConfig
from midward.runs.run import Measured


def dynamics(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompts: DynamicsConfig,
    judges: JudgeName = None,
    judge: JudgeModel = None,
    out_folder: Annotated[Path, Flag(name="--out", free=True)] = Path("dynamics"),
    workers: SharedBy = "1",
) -> Result:
    """Does a model come back from harm while it generates, and does its internal state tell?

    Run again, it goes on where it stopped.

    Args:
        out_folder: Folder of rows, anchors, tables and figures.
    """
    run = run_folder(out_folder)
    config = prompts.filled(model.at_home)
    goals = config.goals()
    from midward.judges.bench import bench

    judged_by = bench([goal for some in goals["attacked"].values() for goal in some], judges, judge)
    from midward.probes import recovery

    loaded = model.load()
    samplers = recovery.settings(loaded, config, sampling.resolve(loaded))
    loaded.fold_adapter()
    say(f"judge     {judged_by.info.name}: {judged_by.info.about}")
    say(f"samplers  {', '.join(samplers)}")
    run.start(
        [Measured.of(loaded)],
        judges=[judged_by.key],
        goals={name: len(some) for sets in goals.values() for name, some in sets.items()},
        seed=sampling.seed,
    )
    with following() as progress:
        how: dict[str, Any] = {"judge": judged_by, "progress": progress, "workers": workers}
        summary = recovery.run(loaded, config, goals, out_folder, samplers=samplers, **how)
    return finish(run, summary, judge=judged_by)
