"""`midward trace`: one generation step by step, or two side by side, as a page to be played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midward.cli._options import ModelOptions, SamplingOptions
from midward.cli._show import StepBar, bar, out, say
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.models import LanguageModel
    from midward.reports.stepplayer import Generation
    from midward.sampling import Sampling


def trace(
    model: ModelOptions,
    sampling: SamplingOptions,
    page: Annotated[
        Path | None, typer.Option("--html", help="The page to write; the traces go beside it as .safetensors.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Or a folder: the page and all that midward report needs to show it.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What is asked.")] = None,
    forced: Annotated[
        list[str] | None,
        typer.Option(help="POSITION:TEXT, a text that stands at a response token from the start; repeatable."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="What stands beside it: another adapter's folder, base (no adapter), or another sampler of the same "
            "weights: ar, left-to-right, random ... (see midward dynamics)."
        ),
    ] = None,
    guard: Annotated[
        list[Path] | None,
        typer.Option(help="A fitted guard; repeatable: each generation is watched by the one fitted for it."),
    ] = None,
    anchors: Annotated[
        list[Path] | None,
        typer.Option(help="Anchors (guard fit writes them): the SRI signal without a guard; repeatable."),
    ] = None,
    load: Annotated[
        list[Path] | None, typer.Option(help="A recorded trace instead of a prompt; twice for two side by side.")
    ] = None,
    row: Annotated[int, typer.Option(min=0, help="Which request of recorded traces.")] = 0,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave out what was said, for sharing; no trace is kept.")
    ] = False,
) -> None:
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
    if load is not None:
        given = {"--forced": forced, "--against": against, "--guard": guard, "--anchors": anchors}
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise InputError(f"{wrong[0]} goes with --prompt; a recorded trace is shown as it is.")
        shown = _recorded(model, load, row)
    else:
        assert prompt is not None
        if not prompt.strip():
            raise InputError("the prompt is empty.")
        watch = _Watch(tuple(guard or ()), tuple(anchors or ()))
        watch.check()
        spans = [_span(text) for text in forced or ()]
        shown = _traced(model, sampling, page, prompt, spans, _Against.read(against, model), watch, not redact)
    _write(page, shown, redact)
    if out_folder is not None:
        _keep(out_folder, model, shown, redact)


def _write(page: Path, shown: Sequence[Generation], redact: bool) -> None:
    from midward.reports import html, stepplayer

    title = "Two generations, step by step" if len(shown) > 1 else "A generation, step by step"
    html.write(page, title, [stepplayer.fragment(shown, redact=redact)])
    for each in shown:
        number = len(each.steps)
        told = f"; guard {each.verdict['guard']}: " if each.verdict else ""
        told += ("flagged" if each.verdict["flagged"] else "passed") if each.verdict else ""
        say(f"{each.title}: {number} steps{told}{f' ({each.note})' if each.note else ''}")
    out(f"open {page}")


def _keep(folder: Path, model: ModelOptions, shown: Sequence[Generation], redact: bool) -> None:
    """What `midward report` reads."""
    from midward.runs.run import Measured, RunFolder

    run = RunFolder(folder, "trace")
    run.start([Measured(name=model.model, label=generation.title) for generation in shown])
    generations = [generation.redacted() if redact else generation for generation in shown]
    run.finish({"generations": [asdict(generation) for generation in generations]})


# --- recorded ----------------------------------------------------------------------------------------------------


def _recorded(model: ModelOptions, files: Sequence[Path], row: int) -> list[Generation]:
    from midward.reports.traced import of_trace
    from midward.sampling import Trace

    traces = [Trace.load(path) for path in files]
    for path, one in zip(files, traces, strict=True):
        if row not in one.commit_step:
            raise InputError(f"{path} holds no request {row}; it has {', '.join(map(str, sorted(one.commit_step)))}.")
    loaded = model.load()
    shown = []
    for path, one in zip(files, traces, strict=True):
        notes = one.notes
        if "model" in notes and notes["model"] != loaded.name:
            say(f"{path} was made with {notes['model']}; its tokens are read with those of {loaded.name}.")
        told = {name: notes.get(name) for name in ("signal", "verdict", "scores")}
        title, note = str(notes.get("title", path.stem)), str(notes.get("note", ""))
        shown.append(of_trace(one, row, loaded, title=title, note=note, **told))
    return shown


# --- made now ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Against:
    """What stands beside the generation: other weights, or another sampler of the same."""

    model: ModelOptions | None = None
    sampler: str | None = None

    @classmethod
    def read(cls, text: str | None, model: ModelOptions) -> _Against | None:
        """Raises InputError for what is none of them."""
        if text is None:
            return None
        from midward.dynamics.samplers import SAMPLERS

        if text == "base":
            if model.adapter is None:
                raise InputError("--against base needs --adapter: without one the model is its own base.")
            return cls(model=replace(model, adapter=None))
        if text.replace("_", "-") in SAMPLERS:
            return cls(sampler=text.replace("_", "-"))
        if (Path(text) / "adapter_config.json").is_file():
            return cls(model=replace(model, adapter=text))
        raise InputError(
            f"--against {text}: no adapter's folder (with an adapter_config.json), not base, and no sampler; there are "
            f"{', '.join(SAMPLERS)}."
        )


@dataclass(frozen=True)
class _Watch:
    """Guards and anchors; each generation has those that were fitted for it."""

    guards: tuple[Path, ...]
    anchors: tuple[Path, ...]

    def check(self) -> None:
        """Tell of a wrong file before a model is loaded."""
        from midward.dynamics import Anchors
        from midward.guards import describe

        for path in self.guards:
            describe(path)
        for path in self.anchors:
            Anchors.load(path)

    def fitting(self, model: LanguageModel, sampling: Sampling) -> tuple[Any, Any, str]:
        """The guard and the anchors for this model and sampling, None where there are none, and why."""
        from midward.dynamics import Anchors
        from midward.guards import load

        guard, no_guard = _first(self.guards, load, model, sampling)
        anchors, no_anchors = _first(self.anchors, Anchors.load, model, sampling)
        return guard, anchors, " ".join(why for why in (no_guard, no_anchors) if why)


def _first(paths: Sequence[Path], read: Callable[[Path], Any], *fitted_for: Any) -> tuple[Any, str]:
    """The first that was fitted for the model and sampling, and otherwise why the last one wasn't."""
    why = ""
    for path in paths:
        found = read(path)
        try:
            found.check(*fitted_for)
        except ValueError as error:
            why = str(error)
        else:
            return found, ""
    return None, why


def _traced(
    model: ModelOptions,
    sampling: SamplingOptions,
    page: Path,
    prompt: str,
    spans: list[tuple[int, str]],
    against: _Against | None,
    watch: _Watch,
    keep: bool,
) -> list[Generation]:
    from midward.dynamics.samplers import sampler

    page.parent.mkdir(parents=True, exist_ok=True)
    path = page.with_suffix(".safetensors") if keep else None
    beside = page.with_name(f"{page.stem}-against.safetensors") if keep else None
    loaded = model.load()
    chosen = sampling.resolve(loaded, watch.guards)
    shown = [_generation(loaded, chosen, prompt, spans, watch, path)]
    if against is not None and against.sampler is not None:
        other = sampler(against.sampler, chosen)
        shown.append(_generation(loaded, other, prompt, spans, watch, beside, against.sampler))
    elif against is not None and against.model is not None:
        del loaded  # two large models need not fit at once
        loaded = against.model.load()
        shown.append(_generation(loaded, chosen, prompt, spans, watch, beside))
    if (watch.guards or watch.anchors) and all(each.verdict is None and each.signal is None for each in shown):
        raise InputError(f"nothing was watched: {shown[0].note}")
    return shown


def _generation(
    model: LanguageModel,
    sampling: Sampling,
    prompt: str,
    spans: Sequence[tuple[int, str]],
    watch: _Watch,
    path: Path | None,
    how: str = "",
) -> Generation:
    """Sample once with everything traced, and keep the trace."""
    from midward.dynamics import SRISignal
    from midward.reports.stepplayer import NEVER, Generation
    from midward.reports.traced import of_trace
    from midward.sampling import Forced, Request, Trace, sample

    request = Request(prompt, forced=tuple(Forced.text(model, at, text) for at, text in spans))
    guard, anchors, note = watch.fitting(model, sampling)
    recorded = Trace(predictions=True)
    signal = SRISignal(anchors) if anchors is not None else None
    with bar() as progress:
        watchers: list[Any] = [recorded, *([signal] if signal else []), StepBar(progress)]
        if guard is None:
            [response] = sample(model, [request], sampling, watchers=watchers)
        else:
            [response] = guard.sample(model, [request], sampling, watchers=watchers)
    response.checked()
    verdict = None if response.verdict is None else response.verdict.record()
    told: dict[str, Any] = {
        "title": _title(model, how),
        "note": note,
        "verdict": verdict,
        "signal": verdict["signal"] if verdict and verdict["signal"] else _known(signal),
        "scores": None,
    }
    if guard is not None and guard.anchors and verdict and verdict["signal"]:
        told["scores"] = guard.scores_so_far(verdict["signal"])
    if 0 not in recorded.commit_step:  # the guard let nothing be generated
        nothing = (NEVER,) * sampling.length
        return Generation(told["title"], prompt, (), (), (), nothing, (None,) * len(nothing), verdict=verdict)
    recorded.notes = {"model": model.name, "adapter": model.adapter, **told}
    if path is not None:
        recorded.save(path)
    return of_trace(recorded, 0, model, **told)


def _known(signal: Any) -> list[float] | None:
    """The signal of the one request; None where it took part in no step."""
    if signal is None:
        return None
    values = signal.signals()
    return values[0].tolist() if len(values) and not values[0].isnan().any() else None


def _title(model: LanguageModel, how: str) -> str:
    parts = [Path(model.name).name, *([f"+ {Path(model.adapter).name}"] if model.adapter else [])]
    return " ".join(parts) + (f", {how}" if how else "")


def _span(text: str) -> tuple[int, str]:
    """POSITION:TEXT. Raises InputError."""
    at, colon, words = text.partition(":")
    if not colon or not at.strip().isdecimal() or not words:
        raise InputError(f'--forced is POSITION:TEXT, e.g. "0:Sure, here is"; received {text!r}.')
    return int(at), words
