"""A response for every row of a table, written as they come and resumed after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from midward._hints import differing
from midward._tables import Row, require_column
from midward.errors import InputError
from midward.models import LanguageModel
from midward.sampling import Request, Response, Sampling, Watcher, sample
from midward.sampling.requests import resolve
from midward.store import RowFile, key_of, write_text

OWN = ("key", "index", "prompt", "response", "ended", "nfe", "seconds", "error")


def generate(
    model: LanguageModel,
    rows: Sequence[Row],
    out: str | Path,
    *,
    column: str = "prompt",
    sampling: Sampling | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    overwrite: bool = False,
    watchers: Sequence[Watcher] = (),
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Row]:
    """Sample a response to `column` of every row (of the first `limit`); return the rows written, in the rows' order.

    A prompt is a text, or a conversation (a list of {"role", "content"}). `out` (JSON lines) gets one row each, batch
    by batch: key, index (from 0), prompt, response, ended, nfe (forwards), seconds (its share of the batch's time),
    error (None, or why this row has no response), and the row's other columns; one named like these is written as
    source_<name>. The settings stand beside it in `<out>.settings.json`.
    Called again it goes on where it stopped: rows of the same model, adapter, sampling, column, prompt and index are
    kept, and the file is that of an uninterrupted run. `progress` is called with the number of rows just finished.
    Raises InputError where the column is missing, or `out` holds rows of other settings and `overwrite` is not set.
    """
    out = Path(out)
    require_column(rows, column, "the table")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more; received {batch_size}.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more; received {limit}.")
    sampling = sampling or Sampling.for_model(model)
    settings = _settings(model, sampling, column)
    keys = [
        key_of(
            model=settings["fingerprint"],
            sampling=settings["sampling"],
            column=column,
            index=index,
            prompt=row.get(column),
        )
        for index, row in enumerate(rows)
    ]
    file = _open(out, settings, keys, overwrite)

    todo = keys[:limit]
    progress(sum(key in file.rows for key in todo))
    for start in range(0, len(todo), batch_size):
        batch = range(start, min(start + batch_size, len(todo)))
        missing = [index for index in batch if keys[index] not in file.rows]
        if not missing:
            continue
        # The whole batch again, though some of it may be written: batches of another shape round otherwise.
        responses, errors, seconds = _answer(model, {i: rows[i].get(column) for i in batch}, sampling, watchers)
        written = []
        for index in missing:
            response = responses.get(index)
            written.append(
                {
                    "key": keys[index],
                    "index": index,
                    "prompt": rows[index].get(column),
                    "response": response.text if response else None,
                    "ended": response.ended if response else None,
                    "nfe": response.nfe if response else 0,
                    "seconds": round(seconds, 4) if response else 0.0,
                    "error": errors.get(index),
                    **_others(rows[index], column),
                }
            )
        file.extend(written)
        progress(len(missing))
    return [file.rows[key] for key in todo]


def _answer(
    model: LanguageModel, prompts: dict[int, Any], sampling: Sampling, watchers: Sequence[Watcher]
) -> tuple[dict[int, Response], dict[int, str], float]:
    """Responses and errors by row index, and the seconds a response took. A bad row stops no other."""
    requests: dict[int, Request] = {}
    errors: dict[int, str] = {}
    for index, prompt in prompts.items():
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            errors[index] = f"row {index} has an empty prompt"
        elif not isinstance(prompt, str | list):
            errors[index] = f"row {index}: a prompt is a text or a list of messages; received {prompt!r}"
        else:
            try:
                requests[index] = Request(resolve(model, prompt, sampling.length, index)[1])
            except (TypeError, ValueError) as error:
                errors[index] = str(error).replace("request", "row", 1)
    started = time.perf_counter()
    found = sample(model, list(requests.values()), sampling, batch_size=max(1, len(requests)), watchers=watchers)
    seconds = (time.perf_counter() - started) / max(1, len(requests))
    answers = dict(zip(requests, found, strict=True))
    errors |= {index: f"row {index}: {one.error}" for index, one in answers.items() if one.error}
    return {index: one for index, one in answers.items() if one.error is None}, errors, seconds


def _others(row: Row, column: str) -> Row:
    """The row's other columns, under names that are free."""
    others: Row = {}
    for name, value in row.items():
        free = name
        while free in OWN or (free != name and free in row):
            free = f"source_{free}"
        if name != column:
            others[free] = value
    return others


def _settings(model: LanguageModel, sampling: Sampling, column: str) -> dict[str, Any]:
    return {
        "model": model.name,
        "adapter": model.adapter,
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "column": column,
        "sampling": asdict(sampling),
    }


def _open(out: Path, settings: dict[str, Any], keys: Sequence[str], overwrite: bool) -> RowFile:
    """The rows already there, all of this very run; otherwise ValueError says what differs."""
    beside = Path(f"{out}.settings.json")
    if overwrite and not out.is_dir():
        out.unlink(missing_ok=True)
    file = RowFile(out)
    own = set(keys)
    if foreign := [row for key, row in file.rows.items() if key not in own]:
        before = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        found = _differences(before, settings) or [
            f"row {foreign[0].get('index')} is not of this table and these settings"
        ]
        raise InputError(
            f"{out} holds {len(foreign)} rows of another run: {'; '.join(found)}. Give another --out, or --overwrite."
        )
    out.touch()
    write_text(beside, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    return file


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, in words; nothing where the settings agree or the earlier ones aren't known."""
    if not before:
        return []
    found = differing(before, {name: now[name] for name in ("fingerprint", "column")})
    found += differing(before["sampling"], now["sampling"])
    return [line.replace("fingerprint", "model fingerprint") for line in found]
