"""Stop texts: where a response is cut, and a watcher that ends rows which no later step can change before that."""

from __future__ import annotations

from collections.abc import Sequence

from midward.models import LanguageModel
from midward.sampling import Canvas, Step


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop texts; empty ones are none."""
    for stop in until:
        if stop:
            text = text.split(stop, 1)[0]
    return text


class Stops:
    """Ends a row once what stands before its first mask holds a stop text: the cut text is the same as without."""

    needs_all_steps = False

    def __init__(self, model: LanguageModel, until: Sequence[str]) -> None:
        self.model, self.until = model, until
        self.standing: dict[int, int] = {}  # request -> tokens before its first mask, when last looked at

    def on_start(self, canvas: Canvas) -> None:
        self.standing.clear()

    def on_step(self, step: Step) -> None:
        standing = step.committed.long().cumprod(-1).sum(-1).tolist()
        for place, (row, count) in enumerate(zip(step.rows, standing, strict=True)):
            if count > self.standing.get(row, 0):
                self.standing[row] = count
                text = self.model.decode(step.ids[place, step.response][:count])
                if cut(text, self.until) != text:
                    step.stopped.add(row)

    def on_end(self, canvas: Canvas) -> None:
        pass
