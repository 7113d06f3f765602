"""`midward probe NAME`: one verb for every probe; its flags are the probe's config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any

from midward._flags import Flag
from midward.cli._options import ModelOptions, SamplingOptions, SharedBy, judge_name, say_harm
from midward.cli._run import Result, finish, run_folder
from midward.cli._show import StepBar, bar, say, tasks_of
from midward.probes import configs
from midward.runs.run import Measured, Run

Out = Annotated[Path, Flag("Folder of rows, tables and figures.", name="--out", free=True)]


def __getattr__(name: str) -> Callable[..., Result]:
    """The verb of a probe: ours, whose config is known without torch, or another package's."""
    config = configs.CONFIGS.get(name)
    if config is None:
        from midward.probes.registry import find

        config = find(name).config

    def verb(
        model: ModelOptions,
        sampling: SamplingOptions,
        probe: Any,
        out: Out = Path(f"probe-{name}"),
        workers: SharedBy = "1",
    ) -> Result:
        return _run(name, model, sampling, probe, out, workers)

    verb.__annotations__["probe"], verb.__doc__ = config, getdoc(config)
    return verb


def _run(
    name: str,
    model: ModelOptions,
    sampling: SamplingOptions,
    config: configs.ProbeConfig,
    out: Path,
    workers: int | str,
) -> Result:
    folder = run_folder(out)
    config = config.at_home() if model.at_home else config
    say_harm([config.goals] if isinstance(config, configs.Attacking) else [], config.column)
    for other in config.compare or ():
        Run.load(other)
    goals = config.load()  # this and the judge's name before torch is imported
    if isinstance(config, configs.Attacking) and config.judges:
        judge_name(config.judges)
    from midward.probes.probe import cases_of, ready, run
    from midward.probes.registry import find

    probe = find(name)
    asked = ready(probe, config, goals)
    loaded = model.load()
    resolved = sampling.resolve(loaded, **probe.sampling)
    cases = cases_of(probe, loaded, asked.goals, config, resolved)
    loaded.fold_adapter()
    for line in asked.notes(resolved):
        say(f"compared  {line}")
    if asked.judge:
        say(f"judge     {asked.judge.info.name}: {asked.judge.info.about}")
    harmless = sum(not case.goal.harmful for case in cases) if asked.judge else 0
    say(f"probe     {len(cases)} responses{f', {harmless} of them to harmless goals' if harmless else ''}")
    if probe.cost and getattr(config, "plan", False):
        cost = probe.cost(loaded, cases, config, resolved)
        return Result(cost, cost)
    judges = [asked.judge.key] if asked.judge else []
    how: dict[str, Any] = {"sampling": asdict(resolved), "judges": judges, "goals": asked.counts, "seed": resolved.seed}
    folder.start([Measured.of(loaded)], **how)
    with bar() as display:
        how = {"watchers": [StepBar(display)], "progress": tasks_of(display), "workers": workers}
        summary = run(probe, loaded, config, out, sampling=resolved, asked=asked, cases=cases, **how)
    if "next" in summary:
        say(summary["next"])
    return finish(folder, summary, judge=asked.judge)
