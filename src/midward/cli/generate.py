"""`midward generate`: responses to a prompt, or to a column of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from midward._flags import Flag, prompt_of
from midward.cli._options import (
    BatchSize,
    GuardFile,
    ModelOptions,
    Overwrite,
    SamplingOptions,
    SharedBy,
    answer,
    load_behind,
)
from midward.cli._run import Result
from midward.cli._show import StepBar, bar, say
from midward.errors import InputError


def generate(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompt: Annotated[str | None, Flag(argument=True, read=prompt_of)] = None,
    prompts: Annotated[Path | None, Flag()] = None,
    column: Annotated[str | None, Flag()] = None,
    out_file: Annotated[Path | None, Flag(name="--out")] = None,
    limit: Annotated[int | None, Flag(min=1)] = None,
    guard: GuardFile = None,
    batch_size: BatchSize = 8,
    check_agreement: Annotated[int | None, Flag(min=1)] = None,
    overwrite: Overwrite = False,
    workers: SharedBy = "1",
) -> Result:
    """Answer one prompt, or every row of a file. Run again, it goes on where it stopped.

    Args:
        prompt: One prompt, - for standard input; its response goes to stdout.
        prompts: A .csv or .jsonl file of prompts.
        column: The column that holds them (prompt, goal or behavior).
        out_file: JSON lines, one a row, written as they come.
        limit: Only the first rows.
        check_agreement: With --cache or --threshold: what they change on the first prompts.
    """
    if (prompt is None) == (prompts is None):
        raise InputError(
            'give a prompt (midward generate "..."; - reads standard input) or --prompts FILE, one of them.'
        )
    if (prompts is None) != (out_file is None):
        raise InputError("--prompts and --out FILE.jsonl go together; the response to a single prompt goes to stdout.")
    if prompts is None and workers != 1:
        raise InputError("--workers share the rows of --prompts; a single prompt has no use for them.")
    if check_agreement and sampling.cache is None and sampling.threshold is None:
        raise InputError("--check-agreement compares --cache or --threshold with neither; give one of them.")
    rows: list[dict[str, Any]]
    if prompts is None or out_file is None:
        rows, field = [{"prompt": prompt}], "prompt"
    else:
        from midward.goals.columns import prompts_of
        from midward.store import require_writable

        rows, field = prompts_of(prompts, column)
        require_writable(out_file, prompts)
    from midward.sampling import agreement  # imports torch: what is wrong above is told at once

    loaded, chosen = load_behind(model, sampling, guard)
    loaded.encode("?")  # without a chat template no row has a response
    if check_agreement:
        texts = [text for row in rows if isinstance(text := row.get(field), str) and text.strip()]
        exact, fast = sampling.exact().settings(loaded), sampling.settings(loaded)
        say(f"agreement {agreement(loaded, texts[:check_agreement], exact, fast, batch_size=batch_size)}")
    if out_file is None:
        with bar() as progress:
            [response] = loaded.answer([rows[0]["prompt"]], chosen, watchers=[StepBar(progress)])
        text = response.checked().text
        return Result({**rows[0], "response": text, "ended": response.ended, "nfe": response.nfe}, text)
    how = {"column": field, "batch_size": batch_size, "limit": limit, "overwrite": overwrite, "workers": workers}
    written = answer(loaded, chosen, rows, out_file, **how)
    errors = [row["error"] for row in written if row["error"] is not None]
    lost = f"\n{len(errors)} of them without a response; the first: {errors[0]}" if errors else ""
    data = {"out": out_file, "rows": len(written), "errors": len(errors)}
    return Result(data, files=f"{len(written)} rows in {out_file}{lost}")
