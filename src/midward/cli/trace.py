"""`midward trace`: one generation step by step, or two side by side, as a page to be played."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from midward.cli._options import ModelOptions, Overwrite, SamplingOptions
from midward.cli._run import Result, run_folder
from midward.cli._show import StepBar, bar, say
from midward.errors import InputError
from midward.reports.trace_config import TraceConfig


def trace(model: ModelOptions, sampling: SamplingOptions, config: TraceConfig, overwrite: Overwrite = False) -> Result:
    """Write a page that plays a generation: its canvas, the SRI signal and the guard's verdict at every step.

    The page needs nothing but a browser.
    """
    sides = [(model, "")]
    if config.against is not None:  # a wrong name is told before torch is imported
        adapter, name = config.beside(model.adapter)
        sides.append((model if name else replace(model, adapter=adapter), name))
    from midward import guards
    from midward.dynamics import Anchors
    from midward.dynamics.samplers import sampler
    from midward.reports import html, stepplayer, tracing
    from midward.runs.run import Measured

    run = run_folder(config.out, overwrite, **config.recorded(html.redacted)) if config.out else None
    page, shown = config.file, []
    watching: dict[str, Any] = {"guard_files": config.guard or [], "anchor_files": config.anchors or []}
    for path in watching["guard_files"]:
        guards.describe(path)  # a wrong file is told before a model is loaded
    for path in watching["anchor_files"]:
        Anchors.load(path)
    page.parent.mkdir(parents=True, exist_ok=True)
    traces = [(path, tracing.load(path, config.row)) for path in config.load or ()]
    loaded = model.load()
    if run is not None and overwrite:
        for path in page.parent.glob(f"{page.stem}*.safetensors"):  # what this one keeps may be less
            path.unlink()
    if config.load:
        shown = tracing.read(loaded, traces, config.row, say)
    else:
        chosen = sampling.resolve(loaded, config.guard or [])
        samplings = [sampler(name, chosen) if name else chosen for _, name in sides]
        if sides[-1][1] and samplings[-1] == chosen:
            raise InputError(
                f"--against {config.against}: that is how this generation is sampled already ({chosen}); name another "
                "sampler, or sample this one otherwise (--steps, --order, --threshold)."
            )
        for number, ((options, name), how) in enumerate(zip(sides, samplings, strict=True)):
            if options is not model:
                del loaded  # two large models need not fit at once
                loaded = options.load()
            kept = None if config.redact else page.with_name(f"{page.stem}{'-against' * number}.safetensors")
            shared: Any = {"forced": config.spans, "path": kept, "suffix": name, **watching}
            with bar() as progress:
                shown.append(tracing.record(loaded, how, config.asked, watchers=[StepBar(progress)], **shared))
        if any(watching.values()) and all(each.verdict is None and each.signal is None for each in shown):
            raise InputError(f"nothing was watched: {shown[0].note}")
    title = "Two generations, step by step" if len(shown) > 1 else "A generation, step by step"
    if run is not None:
        run.start([Measured(name=model.model, label=each.title) for each in shown])
    html.write(page, title, [stepplayer.fragment(shown, redact=config.redact)])
    if run is not None:  # what midward report reads
        run.finish({"generations": [asdict(each.redacted() if config.redact else each) for each in shown]})
    for each in shown:
        say(each.summary)
    return Result({"page": page, "generations": [each.title for each in shown]}, f"open {page}")
