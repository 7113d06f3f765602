"""`midward generate`: responses to a prompt, or to a column of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from midward._flags import Flag
from midward.cli._options import BatchSize, ModelOptions, Overwrite, SamplingOptions
from midward.cli._run import Result
from midward.cli._show import StepBar, bar, say
from midward.errors import InputError


def generate(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompt: Annotated[
        str | None, Flag("One prompt, - for standard input; its response goes to stdout.", argument=True)
    ] = None,
    prompts: Annotated[Path | None, Flag("A .csv or .jsonl file of prompts.")] = None,
    column: Annotated[str | None, Flag("The column that holds them (prompt, goal or behavior).")] = None,
    out_file: Annotated[Path | None, Flag("JSON lines, one a row, written as they come.", name="--out")] = None,
    limit: Annotated[int | None, Flag("Only the first rows.", min=1)] = None,
    batch_size: BatchSize = 8,
    check_agreement: Annotated[
        int | None, Flag("With --cache or --threshold: what they change on the first prompts.", min=1)
    ] = None,
    overwrite: Overwrite = False,
) -> Result:
    """Answer one prompt, or every row of a file. Run again, it goes on where it stopped."""
    if (prompt is None) == (prompts is None):
        raise InputError('give a prompt (midward generate "...") or --prompts FILE, one of them.')
    if (prompts is None) != (out_file is None):
        raise InputError("--prompts and --out FILE.jsonl go together; the response to a single prompt goes to stdout.")
    if check_agreement and sampling.cache is None and sampling.threshold is None:
        raise InputError("--check-agreement compares --cache or --threshold with neither; give one of them.")
    rows: list[dict[str, Any]] = [{"prompt": sys.stdin.read().strip() if prompt == "-" else prompt}]
    if prompts is not None and out_file is not None:
        from midward._tables import read_table
        from midward.goals.columns import text_column

        rows = read_table(prompts)
        column = text_column(rows, str(prompts), column, first="prompt")
        _check_out(out_file, prompts)
    elif not rows[0]["prompt"].strip():
        raise InputError("the prompt is empty.")
    from midward import sampling as room  # imports torch: what is wrong above is told at once
    from midward.runs.generate import generate as run

    loaded = model.load()
    chosen = sampling.resolve(loaded)
    if check_agreement:
        texts = [row.get(column or "prompt") for row in rows]
        asked = [text for text in texts if isinstance(text, str) and text.strip()][:check_agreement]
        exact = sampling.exact().settings(loaded)
        say(f"agreement {room.agreement(loaded, asked, exact, chosen, batch_size=batch_size)}")
    with bar() as progress:
        watchers = [StepBar(progress)]
        if out_file is None:
            [response] = room.sample(loaded, [rows[0]["prompt"]], chosen, watchers=watchers)
            text = response.checked().text
            return Result({**rows[0], "response": text, "ended": response.ended, "nfe": response.nfe}, text)
        task = progress.add_task("rows", total=None)
        written = run(
            loaded,
            rows,
            out_file,
            column=column or "prompt",
            sampling=chosen,
            batch_size=batch_size,
            limit=limit,
            overwrite=overwrite,
            watchers=watchers,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    errors = [row["error"] for row in written if row["error"] is not None]
    lost = f"\n{len(errors)} of them without a response; the first: {errors[0]}" if errors else ""
    return Result(
        {"out": out_file, "rows": len(written), "errors": len(errors)}, files=f"{len(written)} rows in {out_file}{lost}"
    )


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
