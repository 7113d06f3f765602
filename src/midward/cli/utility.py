"""`midward utility`: what a model can do, before and after it was aligned or guarded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from midward._flags import Flag
from midward.cli._options import Compare, GuardFile, ModelOptions, SamplingOptions, SharedBy, labelled
from midward.cli._run import Result, finish, run_folder
from midward.cli._show import following, say
from midward.errors import InputError
from midward.models.names import adapter_name
from midward.runs.run import Measured, Run
from midward.utility.asked import Asked


def utility(
    *,
    adapter: Annotated[list[str] | None, Flag()] = None,
    model: ModelOptions,
    sampling: SamplingOptions,
    asked: Asked,
    guard: GuardFile = None,
    compare: Compare = None,
    out_folder: Annotated[Path, Flag(name="--out", free=True)] = Path("utility"),
    workers: SharedBy = "1",
) -> Result:
    """What can a model do? Exact scores of tasks, for any adapters and guard, against other runs.

    Without --length, a response has the length that its task asks for. Run again, it goes on where it stopped; works
    under torchrun.

    Args:
        adapter: Folder of a PEFT adapter made for the model; as LABEL=FOLDER, or given several times, each beside the
            bare model; adapters of one label are seeds of one model.
        out_folder: Folder of answers, rows and tables.
    """
    own, others = asked.split(model.at_home)  # a wrong name is told before torch is imported
    folder = run_folder(out_folder)
    named = labelled("--adapter", adapter, adapter_name)
    for other in compare or ():
        Run.load(other)
    from accelerate import PartialState

    from midward import guards
    from midward.runs import compare as runs
    from midward.utility import harness, run

    if others and workers != 1:
        raise InputError(
            f"--workers share the sandbox's own tasks; {', '.join(others)} of lm-evaluation-harness are shared by "
            "torchrun."
        )
    models = run.models_of(named, guarded=guard is not None)
    if guard is not None:
        guards.describe(guard)  # a wrong file is told before anything big is loaded
    compared = {str(path): runs.load(path)[1] for path in compare or []}
    if others:
        say("tasks     reading lm-evaluation-harness's index, and the tasks' data")
    loaded = harness.load(others, asked.include_path, asked.allow_code_execution) if others else None
    measured, rows, reports = [], [], {}
    with following() as progress:
        for label, seed, path in models:
            network = replace(model, adapter=path).load()
            network.fold_adapter()
            chosen = sampling.resolve(network, [guard] if guard else [])
            front = guards.load(guard, network, chosen) if guard else None
            behind: dict[str, Any] = {"guard": str(guard), "digest": front.digest} if front else {}
            measured.append(Measured.of(network, label=label, **behind))
            folder.start(measured, sampling=vars(chosen), seed=sampling.seed)
            how: dict[str, Any] = {"given": sampling.values, "sampling": chosen, "guard": front, "progress": progress}
            how["workers"] = workers
            about = {"model": label, "seed": seed} if label else {}
            scored, reports[label] = run.score(network, asked, out_folder, own, loaded, about=about, say=say, **how)
            rows += scored
    if loaded:
        PartialState().destroy_process_group()
    return finish(folder, run.summarise(rows, reports, compared))
