"""The step player: generations whose canvases fill step by step, side by side, on an HTML page (see `html`).

page = html.write(path, "A generation", [stepplayer.fragment([of_trace(trace, 0, model, title="LLaDA")])])

Shapes: L response positions, F steps that the generation took part in, T steps of a signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from midward.errors import InputError
from midward.reports import html

NEVER, FORCED = -1, -2  # as in a trace's commit_step
MASK = -1  # the place of a mask in `Generation.frames`
VERDICT = ("guard", "looks", "flagged", "score", "threshold", "step")  # the fields of a verdict that are shown
HIDDEN = "▒▒▒"  # stands for every token of a redacted generation


@dataclass(frozen=True)
class Generation:
    """One generation, as it is shown.

    Attributes:
        title: what tells it from the one beside it.
        prompt: its text.
        tokens: (text, whether it ends a response), each that occurs once.
        steps: [F], from 0.
        frames: [F][L], what stands or is predicted at each position after that step, as an index of `tokens`; MASK
            where nothing is.
        commit_step: [L], the step that committed each position, NEVER or FORCED.
        confidence: [L], the probability with which it was; None where that isn't known.
        total: the settings' steps; None where they depend on the data.
        signal: [T], the SRI signal, as far as it goes.
        scores: [T], a guard's score after each step, to be held against the verdict's threshold.
        verdict: the fields of a `midward.guards.Verdict`.
        note: a line below, where there is something to say.

    Raises:
        InputError: fields contradict each other.
    """

    title: str
    prompt: str
    tokens: tuple[tuple[str, bool], ...]
    steps: tuple[int, ...]
    frames: tuple[tuple[int, ...], ...]
    commit_step: tuple[int, ...]
    confidence: tuple[float | None, ...]
    total: int | None = None
    signal: tuple[float, ...] | None = None
    scores: tuple[float | None, ...] | None = None
    verdict: Mapping[str, Any] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        length, steps = len(self.commit_step), list(self.steps)
        places = range(MASK, len(self.tokens))
        right = {
            "steps": steps == sorted(set(steps)) and all(step >= 0 for step in steps),
            "frames": len(self.frames) == len(steps)
            and all(len(frame) == length and all(token in places for token in frame) for frame in self.frames),
            "confidence": len(self.confidence) == length,
            "tokens": all(isinstance(text, str) for text, _ in self.tokens),
            "scores": self.scores is None or self.verdict is not None,
            "verdict": self.verdict is None or set(VERDICT) <= set(self.verdict),
        }
        wrong = [name for name, fits in right.items() if not fits]
        if wrong:
            raise InputError(f"no generation of {length} tokens and {len(steps)} steps has such {wrong[0]}.")

    @property
    def length(self) -> int:
        """L."""
        return len(self.commit_step)

    @property
    def summary(self) -> str:
        """What it is and what its guard said, in a line."""
        said = "" if not self.verdict else "flagged" if self.verdict["flagged"] else "passed"
        verdict = f"; guard {self.verdict['guard']}: {said}" if self.verdict else ""
        return f"{self.title}: {len(self.steps)} steps{verdict}{f' ({self.note})' if self.note else ''}"

    @property
    def text(self) -> str:
        """What stands at the end, up to the first end token; a mask that was left is a middle dot."""
        if not self.frames:
            return ""
        shown = []
        for at, token in enumerate(self.frames[-1]):
            stands = self.commit_step[at] != NEVER and token != MASK
            if stands and self.tokens[token][1]:
                break
            shown.append(self.tokens[token][0] if stands else "·")
        return "".join(shown).rstrip("·")

    def redacted(self) -> Generation:
        """The same without its words: every token that ends nothing is HIDDEN, predictions are left out, and of the
        prompt only length and hash remain. Titles and notes stay as they are."""
        tokens = ((HIDDEN, False), *((text, True) for text, end in self.tokens if end))
        ends = iter(range(1, len(tokens)))
        place = {MASK: MASK} | {index: next(ends) if end else 0 for index, (_, end) in enumerate(self.tokens)}
        frames = tuple(
            tuple(place[token] if stands(at, step) else MASK for token, at in zip(frame, self.commit_step, strict=True))
            for step, frame in zip(self.steps, self.frames, strict=True)
        )
        return replace(
            self, prompt=html.redacted(self.prompt), tokens=tokens, frames=frames, confidence=(None,) * self.length
        )

    def record(self) -> dict[str, Any]:
        """As JSON: of each frame what differs from the one before it, as [position, token, ...]; at first all masks."""
        changes = []
        before: Sequence[int] = (MASK,) * self.length
        for frame in self.frames:
            pairs = [(at, token) for at, token in enumerate(frame) if token != before[at]]
            changes.append([number for pair in pairs for number in pair])
            before = frame
        known = any(value is not None for value in self.confidence)
        rounded = [None if value is None else round(value, 4) for value in self.confidence] if known else None
        return {
            "title": html.visible(self.title),
            "tokens": [[html.visible(text), int(end)] for text, end in self.tokens],
            "steps": list(self.steps),
            "changes": changes,
            "commit": list(self.commit_step),
            "confidence": rounded,
            "total": self.total,
            "signal": None if self.signal is None else [round(value, 4) for value in self.signal],
            "scores": None
            if self.scores is None
            else [None if value is None else round(value, 4) for value in self.scores],
            "verdict": None if self.verdict is None else {name: self.verdict[name] for name in VERDICT},
        }


def fragment(
    generations: Sequence[Generation], *, name: str = "player", redact: bool = False, heading: str = "Step player"
) -> html.Part:
    """A player of one or more generations, in step with each other, as a part of a page.

    Args:
        generations: at least one.
        name: an id that no other element of the page has.
        redact: leave out what was said, see `Generation.redacted`.
        heading: its accessible name.

    Raises:
        InputError: there is no generation.
    """
    if not generations:
        raise InputError("a step player needs a generation or more; received none.")
    shown = [generation.redacted() for generation in generations] if redact else list(generations)
    markup = html.render(
        "player.html.j2",
        name=name,
        heading=heading,
        generations=shown,
        data=html.data(f"{name}-data", [generation.record() for generation in shown]),
        kinds=_kinds(shown),
    )
    return html.Part(markup, styles=("player.css",), scripts=("player.js",))


def _kinds(generations: Sequence[Generation]) -> dict[str, bool]:
    """Which kinds of token occur, for the legend."""
    return {
        "forced": any(FORCED in generation.commit_step for generation in generations),
        "predicted": any(
            token != MASK and not stands(at, step)
            for generation in generations
            for step, frame in zip(generation.steps, generation.frames, strict=True)
            for token, at in zip(frame, generation.commit_step, strict=True)
        ),
    }


def stands(at: int, step: int) -> bool:
    """Whether a position that was committed at step `at` stands after `step`."""
    return at == FORCED or 0 <= at <= step
