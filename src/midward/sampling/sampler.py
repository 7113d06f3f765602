"""`sample`: requests in, responses out, in the same order; and `fill`, the same as a coroutine."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from midward.errors import InputError
from midward.models import LanguageModel

from . import autoregressive, cache, canvases, diffusion
from .canvas import Canvas, Row
from .passes import Passes, alone
from .requests import Request, Response, resolve
from .settings import Sampling
from .step import Adjuster, Steerer, Watcher


def sample(
    model: LanguageModel,
    requests: Sequence[Request | Any],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 8,
    watchers: Sequence[Watcher] = (),
) -> list[Response]:
    """Sample one response per request.

    Args:
        model: What answers.
        requests: `Request`s, or plain prompts (texts, conversations, lists of token ids).
        sampling: The settings; None takes the model's own defaults.
        batch_size: Rows a forward, 1 or more. Requests of similar length share a batch; in float32 what else is in its
            batch, and the order of requests, change a response only where logits tie to rounding.
        watchers: See every step, in the order given. An `Editor` among them may write first.

    Returns:
        The responses, in the requests' order. A row whose logits aren't finite numbers has an `error` and no text; the
        others are as they would be without it.

    Raises:
        InputError: Before the first forward, naming the request: an empty or too long prompt, a forced span or ban past
            the end, overlapping spans, ids outside the vocabulary, settings or watchers that the model's kind can't
            follow.
        TypeError: What is no request.
    """
    return alone(fill(model, requests, sampling, batch_size=batch_size, watchers=watchers))


def fill(
    model: LanguageModel,
    requests: Sequence[Request | Any],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 8,
    watchers: Sequence[Watcher] = (),
    skipped: Collection[int] = (),
    leaves: Callable[[dict[int, Response]], None] | None = None,
) -> Passes[list[Response]]:
    """`sample` as a coroutine, see `midward.sampling.passes`; it must be driven without gradients.

    Args:
        model, requests, sampling, batch_size, watchers: As of `sample`.
        skipped: Indices of requests that are only counted: they have no response.
        leaves: Told of responses, by index, as soon as their rows take no further step; of all by the end.

    Returns:
        The responses but for those skipped, in the requests' order.
    """
    if isinstance(requests, str | Request | Mapping) or not isinstance(requests, Sequence):
        raise TypeError(f"requests are a list, one entry a response; received {type(requests).__name__}.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be 1 or more; received {batch_size!r}.")
    sampling = Sampling.for_model(model) if sampling is None else sampling
    _check_kind(model, sampling)
    for watcher in watchers:
        if model.family.kind != "diffusion" and isinstance(watcher, Steerer | Adjuster):
            what = "states" if isinstance(watcher, Steerer) else "logits"
            raise InputError(
                f"{type(watcher).__name__} changes {what} of masked diffusion; {model.name!r} is {model.family.kind}."
            )

    rows = []
    for index, request in enumerate(requests):
        if index not in skipped:
            request, prompt_ids = resolve(model, request, sampling, index)
            rows.append(Row(index, request, prompt_ids))
    rows.sort(key=lambda row: len(row.prompt_ids))  # stable, so equal lengths keep their order

    if model.family.kind == "canvas":
        canvases.refuse(model.name, sampling, rows)
    cache.refuse(model, sampling, rows, watchers)
    kinds = {"diffusion": diffusion.run, "autoregressive": autoregressive.run, "canvas": canvases.run}
    run = kinds[model.family.kind]
    responses: dict[int, Response] = {}
    for start in range(0, len(rows), batch_size):
        canvas = Canvas(model, sampling, rows[start : start + batch_size])
        canvas.on_leave = partial(_hand_out, canvas, responses, leaves)
        with ExitStack() as stack:
            for watcher in watchers:
                stack.callback(watcher.on_end, canvas)
                watcher.on_start(canvas)
            yield from run(canvas, watchers)
        canvas.leave([i for i, row in enumerate(canvas.rows) if row.index not in responses])
    return [responses[index] for index in sorted(responses)]


def _hand_out(
    canvas: Canvas,
    responses: dict[int, Response],
    leaves: Callable[[dict[int, Response]], None] | None,
    numbers: Sequence[int],
) -> None:
    """Note the responses of canvas rows that take no further step, and tell of them."""
    indices = [canvas.rows[number].index for number in numbers]
    gone = dict(zip(indices, canvas.responses(numbers), strict=True))
    responses.update(gone)
    if leaves and gone:
        leaves(gone)


def _check_kind(model: LanguageModel, sampling: Sampling) -> None:
    if model.family.kind != "autoregressive":
        return
    whole = None if sampling.block is None else sampling.length
    followed = {"order": "left_to_right", "threshold": None, "guidance": 0, "prompt_masks": "joint", "schedule": "even"}
    names = sampling.unlike(**followed, block=whole)
    if names:
        raise InputError(
            f"{model.name!r} is autoregressive and samples one token a step, left to right; it can't follow "
            f"{names}. Use Sampling.for_model(model)."
        )
