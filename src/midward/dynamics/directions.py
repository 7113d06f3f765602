"""Directions in the space of states: of the tokens that stand in finished answers, and of masks before the first step.

Shapes: D hidden size, n tokens of an answer, N and M answers. States are those after the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from midward.errors import InputError
from midward.models import LanguageModel
from midward.sampling import Canvas, Forced, Request, Sampling
from midward.sampling.canvas import Row
from midward.sampling.requests import resolve


@torch.no_grad()
def asked_states(
    model: LanguageModel, requests: Sequence[Request], sampling: Sampling, *, batch_size: int = 8
) -> Iterator[torch.Tensor]:
    """States [length, D] of each request's response before the first step: what is forced stands, the rest is masked.

    Float32, on the CPU.
    """
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        rows = [Row(i, *resolve(model, request, sampling, start + i)) for i, request in enumerate(batch)]
        canvas = Canvas(model, sampling, rows)
        yield from model.hidden(canvas.ids, canvas.mask)[:, canvas.response].float().cpu()


def answer_states(
    model: LanguageModel, answers: Sequence[tuple[Request, str]], sampling: Sampling, *, batch_size: int = 8
) -> Iterator[torch.Tensor]:
    """States [n, D] of the tokens of each answer that the model wrote, where all of them stand and an end token behind.

    Args:
        answers: requests, and the texts of their responses.
        model, sampling, batch_size: as they were sampled; the text is cut at the settings' length.
    """
    lines = [model.tokens(text)[: sampling.length] for _, text in answers]
    standing = [
        Request(request.prompt, (Forced(0, (*line, model.family.end_ids[0])[: sampling.length]),))
        for (request, _), line in zip(answers, lines, strict=True)
    ]
    states = asked_states(model, standing, sampling, batch_size=batch_size)
    for (request, _), line, each in zip(answers, lines, states, strict=True):
        forced = {span.position + i for span in request.forced for i in range(len(span.ids))}
        yield each[[position for position in range(len(line)) if position not in forced]]


def direction(towards: Iterable[torch.Tensor], away: Iterable[torch.Tensor]) -> torch.Tensor:
    """The unit vector [D] from the mean state of one kind of answers to that of another, each answer counting alike.

    Args:
        towards, away: states [n, D] of each answer; those without a token are left out.

    Raises:
        InputError: where nothing is left of a kind, or both means are the same.
    """
    sides = [[states.mean(0) for states in side if len(states)] for side in (towards, away)]
    if not all(sides):
        raise InputError("a direction takes answers of two kinds, with a token in each; one kind has none.")
    difference = torch.stack(sides[0]).mean(0) - torch.stack(sides[1]).mean(0)
    if not difference.norm() > 0:
        raise InputError("two kinds of answers have the same mean state, so there is no direction between them.")
    return difference / difference.norm()
