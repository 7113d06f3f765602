"""`midward trace`: one generation step by step, or two side by side, as a page to be played."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from midward._flags import Flag
from midward.cli._options import ModelOptions, SamplingOptions
from midward.cli._run import Result
from midward.cli._show import StepBar, bar, say
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.reports.stepplayer import Generation
    from midward.reports.tracing import Watch


def trace(
    model: ModelOptions,
    sampling: SamplingOptions,
    page: Annotated[
        Path | None, Flag("The page to write; the traces go beside it as .safetensors.", name="--html")
    ] = None,
    out_folder: Annotated[
        Path | None, Flag("Or a folder: the page and all that midward report needs to show it.", name="--out")
    ] = None,
    prompt: Annotated[str | None, Flag("What is asked.")] = None,
    forced: Annotated[
        list[str] | None,
        Flag("A text that stands at a response token from the start; repeatable.", metavar="POSITION:TEXT"),
    ] = None,
    against: Annotated[
        str | None,
        Flag(
            "What stands beside it: another adapter's folder, base (no adapter), or another sampler of the same "
            "weights: ar, left-to-right, random ... (see midward dynamics)."
        ),
    ] = None,
    guard: Annotated[
        list[Path] | None, Flag("A fitted guard; repeatable: each generation is watched by the one fitted for it.")
    ] = None,
    anchors: Annotated[
        list[Path] | None, Flag("Anchors (guard fit writes them): the SRI signal without a guard; repeatable.")
    ] = None,
    load: Annotated[list[Path] | None, Flag("A recorded trace instead of a prompt; twice for two.")] = None,
    row: Annotated[int, Flag("Which request of recorded traces.", min=0)] = 0,
    redact: Annotated[bool, Flag("Leave out what was said, for sharing; no trace is kept.")] = False,
) -> Result:
    """Write a page that plays a generation: its canvas, the SRI signal and the guard's verdict at every step.

    The page needs nothing but a browser.
    """
    if (prompt is None) == (load is None):
        raise InputError('give a prompt (--prompt "...") or a recorded trace (--load FILE), one of them.')
    if (page is None) == (out_folder is None):
        raise InputError("give --html PAGE or --out FOLDER, one of them.")
    page = page or Path(out_folder or "") / "index.html"
    if page.suffix not in (".html", ".htm") or page.is_dir():
        raise InputError(f"--html takes a file that ends in .html; received {page}.")
    from midward.reports import html, stepplayer, tracing

    if prompt is None:
        given = {"--forced": forced, "--against": against, "--guard": guard, "--anchors": anchors}
        if wrong := [name for name, value in given.items() if value]:
            raise InputError(f"{wrong[0]} goes with --prompt; a recorded trace is shown as it is.")
        traces = [(path, tracing.load(path, row)) for path in load or ()]
        shown = tracing.read(model.load(), traces, row, say)
    else:
        if not prompt.strip():
            raise InputError("the prompt is empty.")
        watch = tracing.Watch(tuple(guard or ()), tuple(anchors or ()))
        watch.check()
        spans = [_span(text) for text in forced or ()]
        shown = _sampled(model, sampling, prompt, spans, _beside(against, model), watch, None if redact else page)
    title = "Two generations, step by step" if len(shown) > 1 else "A generation, step by step"
    html.write(page, title, [stepplayer.fragment(shown, redact=redact)])
    if out_folder is not None:
        _keep(out_folder, model, shown, redact)
    for each in shown:
        passed = "flagged" if each.verdict and each.verdict["flagged"] else "passed"
        verdict = f"; guard {each.verdict['guard']}: {passed}" if each.verdict else ""
        say(f"{each.title}: {len(each.steps)} steps{verdict}{f' ({each.note})' if each.note else ''}")
    return Result({"page": page, "generations": [each.title for each in shown]}, f"open {page}")


def _sampled(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompt: str,
    spans: list[tuple[int, str]],
    beside: ModelOptions | str | None,
    watch: Watch,
    page: Path | None,
) -> list[Generation]:
    """The generation and what stands beside it: another model's, or one of a sampler by name. page: beside which
    traces are kept."""
    from midward.dynamics.samplers import sampler
    from midward.reports import tracing

    paths = [page and page.with_suffix(".safetensors"), page and page.with_name(f"{page.stem}-against.safetensors")]
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
    loaded = model.load()
    chosen = sampling.resolve(loaded, watch.guards)
    with bar() as progress:
        with_steps: Any = {"forced": spans, "watch": watch, "watchers": [StepBar(progress)]}
        shown = [tracing.record(loaded, chosen, prompt, path=paths[0], **with_steps)]
        if isinstance(beside, str):
            other = sampler(beside, chosen)
            shown.append(tracing.record(loaded, other, prompt, path=paths[1], suffix=beside, **with_steps))
        elif beside is not None:
            del loaded  # two large models need not fit at once
            shown.append(tracing.record(beside.load(), chosen, prompt, path=paths[1], **with_steps))
    if (watch.guards or watch.anchors) and all(each.verdict is None and each.signal is None for each in shown):
        raise InputError(f"nothing was watched: {shown[0].note}")
    return shown


def _beside(text: str | None, model: ModelOptions) -> ModelOptions | str | None:
    """What --against names: other weights, or another sampler of the same. Raises InputError for none of them."""
    from midward.dynamics.samplers import SAMPLERS

    if text == "base" and model.adapter is None:
        raise InputError("--against base needs --adapter: without one the model is its own base.")
    if text is None or text == "base":
        return text and replace(model, adapter=None)
    if text.replace("_", "-") in SAMPLERS:
        return text.replace("_", "-")
    if (Path(text) / "adapter_config.json").is_file():
        return replace(model, adapter=text)
    raise InputError(
        f"--against {text}: no adapter's folder (with an adapter_config.json), not base, and no sampler; there are "
        f"{', '.join(SAMPLERS)}."
    )


def _keep(folder: Path, model: ModelOptions, shown: list[Generation], redact: bool) -> None:
    """What `midward report` reads."""
    from midward.runs.run import Measured, RunFolder

    run = RunFolder(folder, "trace")
    run.start([Measured(name=model.model, label=generation.title) for generation in shown])
    generations = [generation.redacted() if redact else generation for generation in shown]
    run.finish({"generations": [asdict(generation) for generation in generations]})


def _span(text: str) -> tuple[int, str]:
    """POSITION:TEXT. Raises InputError."""
    at, colon, words = text.partition(":")
    if not colon or not at.strip().isdecimal() or not words:
        raise InputError(f'--forced is POSITION:TEXT, e.g. "0:Sure, here is"; received {text!r}.')
    return int(at), words
