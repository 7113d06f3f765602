"""`midward generate`: responses to a prompt, or to a column of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midward.cli._options import BatchSize, ModelOptions, Overwrite, SamplingOptions
from midward.cli._show import StepBar, bar, out, say
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.models import LanguageModel


def generate(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompt: Annotated[
        str | None, typer.Argument(help="One prompt, - for standard input; its response goes to stdout.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A .csv or .jsonl file of prompts.")] = None,
    column: Annotated[str | None, typer.Option(help="The column that holds them (prompt, goal or behavior).")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="JSON lines, one a row, written as they come.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    batch_size: BatchSize = 8,
    check_agreement: Annotated[
        int | None, typer.Option(min=1, help="With --cache or --threshold: what they change on the first prompts.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Answer one prompt, or every row of a file. Run again, it goes on where it stopped."""
    if (prompt is None) == (prompts is None):
        raise InputError('give a prompt (midward generate "...") or --prompts FILE, one of them.')
    if prompt == "-":
        prompt = sys.stdin.read().strip()
    if prompt is not None:
        if out_file is not None:
            raise InputError("--out goes with --prompts; the response to a single prompt goes to stdout.")
        _one(model, sampling, prompt, check_agreement)
    elif prompts is not None:
        if out_file is None:
            raise InputError("--prompts needs --out FILE.jsonl, where the responses go.")
        _all(model, sampling, prompts, column, out_file, limit, batch_size, check_agreement, overwrite)


def _all(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompts: Path,
    column: str | None,
    out_file: Path,
    limit: int | None,
    batch_size: int,
    check_agreement: int | None,
    overwrite: bool,
) -> None:
    from midward._tables import read_table
    from midward.goals.columns import text_column

    rows = read_table(prompts)
    column = text_column(rows, str(prompts), column, first="prompt")
    _check_out(out_file, prompts)
    _check_fast(sampling, check_agreement)
    from midward.runs.generate import generate as run  # imports torch: what is wrong above is told at once

    loaded = model.load()
    chosen = sampling.resolve(loaded)
    loaded.encode("?")  # without a chat template no row has a response
    if check_agreement:
        given = (row.get(column) for row in rows)
        asked = [text for text in given if isinstance(text, str) and text.strip()]
        _say_agreement(loaded, sampling, asked[:check_agreement], batch_size)
    count = min(limit or len(rows), len(rows))
    with bar() as progress:
        task = progress.add_task("rows", total=count)
        written = run(
            loaded,
            rows,
            out_file,
            column=column,
            sampling=chosen,
            batch_size=batch_size,
            limit=limit,
            overwrite=overwrite,
            watchers=[StepBar(progress)],
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    errors = [row for row in written if row["error"] is not None]
    say(f"{len(written)} rows in {out_file}")
    if errors:
        say(f"{len(errors)} of them without a response; the first: {errors[0]['error']}")


def _one(model: ModelOptions, sampling: SamplingOptions, prompt: str, check_agreement: int | None) -> None:
    if not prompt.strip():
        raise InputError("the prompt is empty.")
    _check_fast(sampling, check_agreement)
    from midward.sampling import sample

    loaded = model.load()
    chosen = sampling.resolve(loaded)
    if check_agreement:
        _say_agreement(loaded, sampling, [prompt], 1)
    with bar() as progress:
        [response] = sample(loaded, [prompt], chosen, watchers=[StepBar(progress)])
    out(response.checked().text)


def _check_fast(sampling: SamplingOptions, check_agreement: int | None) -> None:
    if check_agreement and sampling.cache is None and sampling.threshold is None:
        raise InputError("--check-agreement compares --cache or --threshold with neither; give one of them.")


def _say_agreement(loaded: LanguageModel, sampling: SamplingOptions, prompts: list[str], batch_size: int) -> None:
    """Tell what --cache and --threshold do to the responses to these prompts."""
    from midward.sampling import agreement

    fast, exact = sampling.settings(loaded), sampling.exact().settings(loaded)
    found = agreement(loaded, prompts, exact, fast, batch_size=batch_size)
    say(f"agreement {found}")


def _check_out(path: Path, prompts: Path) -> None:
    """Before anything big is loaded: a place that can be written to, and not the input itself."""
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; give the path of a file.")
    if path.exists() and path.samefile(prompts):
        raise InputError(f"--out {path} is the file of prompts; give another one.")
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise InputError(f"--out {path} can't be written: {error.strerror}.") from None
