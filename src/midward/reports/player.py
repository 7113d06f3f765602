"""The live terminal player: a watcher that shows the canvas filling, step by step.

with Player(console) as player:
    model.generate(prompt, watchers=[player])
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from midward._hints import printable
from midward.guards.exchange import Verdict
from midward.sampling.canvas import Canvas
from midward.sampling.step import Step

# Told apart by more than colour: weight, slant, underline.
MASK_MARK, END_MARK = "·", "▪"
MASKED, PREDICTED, NEW = "dim", "dim italic", "bold black on green"
FORCED, STANDING, ENDED = "bold underline yellow", "", "dim cyan"


class Player:
    """Shows every row of the running batch: masks dim, tokens of this step highlighted, forced spans marked.

    Model output is drawn as plain text: neither rich markup nor control characters in it have any effect.

    Args:
        console: where to draw; None is the terminal. If it is no terminal, only the last state is printed.
        pace: seconds that a step stays on the screen at least, for models that are too fast to watch.
    """

    needs_all_steps = False  # rows stop at their end token

    def __init__(self, console: Console | None = None, *, pace: float = 0.0) -> None:
        self.console = console or Console()
        self.pace = pace
        self._shown = -inf  # when the last step was drawn
        self._live = Live(console=self.console, refresh_per_second=12, vertical_overflow="visible")
        self._canvas: Canvas | None = None
        self._lines: dict[int, Text] = {}
        self._head = ""

    def __enter__(self) -> "Player":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_start(self, canvas: Canvas) -> None:
        """Take up a batch."""
        self._canvas = canvas
        self._lines = {}

    def on_step(self, step: Step) -> None:
        """Draw one step."""
        canvas = self._canvas
        if canvas is None:
            return
        of = "" if step.of is None else f" of {step.of}"
        self._head = f"step {step.index + 1}{of}, positions {step.block[0]}-{step.block[1] - 1}"
        forced_of = {row.index: canvas.forced[i] for i, row in enumerate(canvas.rows)}
        # At masked positions stands what the step predicts; the dual cache predicts a block alone.
        predicted = step.predictions[0].tolist() if canvas.sampling.cache != "dual" else None
        for i, row in enumerate(step.rows):
            self._lines[row] = _draw(
                canvas.model,
                step.ids[i, step.response].tolist(),
                step.committed[i].tolist(),
                step.new[i].tolist(),
                forced_of[row].tolist(),
                None if predicted is None else predicted[i],
            )
        time.sleep(max(0.0, self._shown + self.pace - time.monotonic()))
        self._live.update(self.render(), refresh=self.pace > 0)
        self._shown = time.monotonic()

    def on_end(self, canvas: Canvas) -> None:
        """Let go of the batch; the last state stays on the screen."""
        self._canvas = None

    def render(self) -> Group:
        """Return what is on the screen now."""
        return Group(Text(self._head, style="dim"), *(self._lines[row] for row in sorted(self._lines)))


@contextmanager
def playing(console: Console, pace: float = 0.0) -> Iterator[list[Player]]:
    """A player as the watchers of a generation; none where the console is no terminal."""
    if not console.is_terminal:
        yield []
        return
    with Player(console, pace=pace) as player:
        yield [player]


def verdict_line(verdict: Verdict) -> str:
    """What a guard said, in a line; its signal is a bar a step: low refuses, high complies."""
    score = "unscored" if verdict.score is None else f"score {verdict.score:.3g}"
    what = "flagged" if verdict.flagged else "passed"
    when = f" after step {verdict.step + 1}" if verdict.step is not None else ""
    bars = "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value))] for value in verdict.signal or ())
    signal = f"; signal {bars} {verdict.signal[-1]:.2f}" if verdict.signal else ""
    return f"guard     {what}{when} ({score}, threshold {verdict.threshold:.3g}){signal}"


def _draw(
    model: Any, ids: list[int], committed: list[bool], new: list[bool], forced: list[bool], predicted: list[int] | None
) -> Text:
    line = Text()
    ended = False
    for at, token in enumerate(ids):
        if committed[at]:
            is_end = token in model.family.end_ids
            ended = ended or (is_end and all(committed[:at]))
            style = NEW if new[at] else FORCED if forced[at] else ENDED if is_end or ended else STANDING
            text = END_MARK if is_end and not forced[at] else model.tokenizer.decode([token])
            line.append(printable(text, "\n"), style=style)
        elif predicted is not None and predicted[at] not in model.family.end_ids:
            line.append(printable(model.tokenizer.decode([predicted[at]]), "\n"), style=PREDICTED)
        else:
            line.append(MASK_MARK, style=MASKED)
    return line
