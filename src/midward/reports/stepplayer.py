"""The step player: generations whose canvases fill step by step, side by side, on an HTML page (see `html`).

page = html.write(path, "A generation", [stepplayer.fragment([Generation.of(trace, 0, model)])])

Shapes: L response positions, F steps that the generation took part in, T steps of a signal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from midward.errors import InputError
from midward.reports import html

if TYPE_CHECKING:
    from midward.guards import Verdict
    from midward.models import LanguageModel
    from midward.sampling import Trace

NEVER, FORCED = -1, -2  # as in a trace's commit_step
MASK = -1  # the place of a mask in `Generation.frames`
VERDICT = ("guard", "looks", "flagged", "score", "threshold", "step")  # the fields of a verdict that are shown
HIDDEN = "▒▒▒"  # stands for every token of a redacted generation


@dataclass(frozen=True)
class Generation:
    """One generation, as it is shown.

    title: what tells it from the one beside it. prompt: its text. note: a line below, where there is something to say.
    tokens: (text, whether it ends a response), each that occurs once. steps [F]: from 0. frames [F][L]: what stands or
    is predicted at each position after that step, as an index of `tokens`; MASK where nothing is.
    commit_step [L]: the step that committed each position, NEVER or FORCED. confidence [L]: the probability with which
    it was; None where that isn't known. total: the settings' steps; None where they depend on the data.
    signal [T]: the SRI signal, as far as it goes. scores [T]: a guard's score after each step, to be held against the
    verdict's threshold. verdict: the fields of a `midward.guards.Verdict`.

    Raises InputError for fields that contradict each other.
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

    @classmethod
    def of(
        cls,
        trace: Trace,
        row: int,
        model: LanguageModel,
        *,
        title: str,
        signal: Sequence[float] | None = None,
        verdict: Verdict | Mapping[str, Any] | None = None,
        scores: Sequence[float | None] | None = None,
        note: str = "",
    ) -> Generation:
        """A request of a trace that kept its predictions, made with this model (its tokenizer and family are used).

        signal: by default the verdict's. Raises InputError for a trace without predictions, or with ids that the
        model's vocabulary lacks; KeyError for a request that wasn't traced.
        """
        told = dict(verdict) if isinstance(verdict, Mapping) else verdict.record() if verdict else None
        commit = trace.commit_step[row].tolist()
        steps = trace.predicted_steps(row)
        if not steps and any(step >= 0 for step in commit):
            raise InputError("the trace kept no predictions; make it with Trace(predictions=True).")
        ids = [trace.predicted_ids(row, step).tolist() for step in steps]
        _check(model, [trace.prompt_ids[row], *ids])
        if model.family.kind == "autoregressive":  # what isn't there yet isn't predicted either
            ids = [
                [token if _stands(at, step) else None for token, at in zip(line, commit, strict=True)]
                for step, line in zip(steps, ids, strict=True)
            ]
        if model.family.kind == "canvas" and steps and not (told and told["flagged"]):
            # Nothing is committed for good there: the last step's most probable canvas is the response.
            commit = [steps[-1] if at == NEVER else at for at in commit]
        table: dict[int | None, int] = {model.family.mask_id: MASK, None: MASK}
        tokens: list[tuple[str, bool]] = []
        for line in ids:
            for token in line:
                if token not in table:
                    table[token] = len(tokens)
                    tokens.append((_text(model, token), token in model.family.end_ids))
        if signal is None and told:
            signal = told.get("signal")
        return cls(
            title=title,
            prompt=_prompt(model, trace.prompt_ids[row]),
            tokens=tuple(tokens),
            steps=tuple(steps),
            frames=tuple(tuple(table[token] for token in line) for line in ids),
            commit_step=tuple(commit),
            confidence=tuple(_finite(value) for value in trace.confidence[row].tolist()),
            total=trace.of,
            signal=None if signal is None else tuple(float(value) for value in signal),
            scores=None if scores is None else tuple(_finite(value) for value in scores),
            verdict=told,
            note=note,
        )

    @property
    def length(self) -> int:
        """L."""
        return len(self.commit_step)

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
            tuple(
                place[token] if _stands(at, step) else MASK for token, at in zip(frame, self.commit_step, strict=True)
            )
            for step, frame in zip(self.steps, self.frames, strict=True)
        )
        return replace(
            self, prompt=html.redacted(self.prompt), tokens=tokens, frames=frames, confidence=(None,) * self.length
        )

    def record(self) -> dict[str, Any]:
        """As JSON: the first frame whole, of the others what differs from the one before, as [position, token, ...]."""
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

    name: an id that no other element of the page has. redact: leave out what was said, see `Generation.redacted`.
    heading: its accessible name. Raises InputError without a generation.
    """
    if not generations:
        raise InputError("a step player needs a generation or more; received none.")
    shown = [each.redacted() for each in generations] if redact else list(generations)
    markup = html.render(
        "player.html.j2",
        name=name,
        heading=heading,
        generations=shown,
        data=html.data(f"{name}-data", [each.record() for each in shown]),
        kinds=_kinds(shown),
    )
    return html.Part(markup, styles=("player.css",), scripts=("player.js",))


def _kinds(generations: Sequence[Generation]) -> dict[str, bool]:
    """Which kinds of token occur, for the legend."""
    return {
        "forced": any(FORCED in each.commit_step for each in generations),
        "predicted": any(
            token != MASK and not _stands(at, step)
            for each in generations
            for step, frame in zip(each.steps, each.frames, strict=True)
            for token, at in zip(frame, each.commit_step, strict=True)
        ),
    }


def _stands(at: int, step: int) -> bool:
    """Whether a position that was committed at step `at` stands after `step`."""
    return at == FORCED or 0 <= at <= step


def _text(model: LanguageModel, token: int) -> str:
    return model.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _prompt(model: LanguageModel, ids: list[int]) -> str:
    from midward.guards.guard import user_text
    from midward.sampling import Request

    return user_text(model, Request(ids))


def _check(model: LanguageModel, lines: Sequence[Sequence[int]]) -> None:
    largest = max((token for line in lines for token in line), default=0)
    if largest >= model.vocab_size:
        raise InputError(
            f"the trace holds token {largest}, and {model.name!r} has {model.vocab_size}; give the model that it was "
            "made with."
        )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
