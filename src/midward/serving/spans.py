"""Spans, scores, gradients and a tokenizer as JSON, both ways: what crosses the wire with `--research` beside chat."""

from __future__ import annotations

import base64
import math
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

from midward.errors import InputError
from midward.models import LanguageModel
from midward.sampling import Forced
from midward.sampling.likelihood import Span, SpanScore
from midward.serving.wire import Message, Strict


class ForcedBody(Strict):
    """Tokens at a response position."""

    position: int
    ids: list[int]


class SpanBody(ForcedBody):
    """A `Span`: a prompt (a user turn, a conversation, or ids), and tokens behind it."""

    prompt: str | list[int] | list[Message]
    forced: list[ForcedBody] = Field(default_factory=list)

    @classmethod
    def of(cls, span: Span) -> SpanBody:
        """Of a span."""
        forced = [ForcedBody(position=each.position, ids=list(each.ids)) for each in span.forced]
        prompt: Any = span.prompt if isinstance(span.prompt, str) else list(span.prompt)
        return cls(prompt=prompt, position=span.position, ids=list(span.ids), forced=forced)

    def span(self) -> Span:
        """The span. Raises InputError for one that there can't be."""
        forced = tuple(Forced(each.position, tuple(each.ids)) for each in self.forced)
        return Span(self.prompt, self.position, tuple(self.ids), forced)


class ScoreBody(Strict):
    """A call of `Engine.score`."""

    spans: list[SpanBody] = Field(max_length=1024)
    mode: Literal["parallel", "sequential", "mc", "even", "all"]
    length: int


class GradientBody(Strict):
    """A call of `Engine.gradient`."""

    span: SpanBody
    slots: list[int]
    length: int


class ScoreRecord(BaseModel):
    """A `SpanScore`; JSON has no numbers that aren't finite, so those are words."""

    tokens: list[float | str]
    total: float | str
    stderr: float | str
    nfe: int
    top: bool

    @classmethod
    def of(cls, score: SpanScore) -> ScoreRecord:
        """Of a score."""
        tokens, total, stderr = [_worded(each) for each in score.tokens], _worded(score.total), _worded(score.stderr)
        return cls(tokens=tokens, total=total, stderr=stderr, nfe=score.nfe, top=score.top)

    def score(self) -> SpanScore:
        """The score."""
        tokens = [float(each) for each in self.tokens]
        return SpanScore(tokens, float(self.total), float(self.stderr), self.nfe, self.top)


def _worded(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


class GradientRecord(BaseModel):
    """A gradient: base64 of its little-endian float32 numbers, row by row."""

    gradient: str
    shape: list[int]

    @classmethod
    def of(cls, gradient: torch.Tensor) -> GradientRecord:
        """Of a gradient [S, V]."""
        numbers = gradient.detach().float().cpu().numpy().astype("<f4")
        return cls(gradient=base64.b64encode(numbers.tobytes()).decode(), shape=list(gradient.shape))

    def tensor(self) -> torch.Tensor:
        """The gradient, float32."""
        numbers = np.frombuffer(base64.b64decode(self.gradient), dtype="<f4").astype(np.float32)
        return torch.from_numpy(numbers).reshape(self.shape)


#: Encoded on both sides, to see that a tokenizer arrived as it was sent.
_PROBE = "  Tell me, step by step:\n1. what's 3.14 * 2 \u2014 and na\u00efve? "


class TokenizerRecord(BaseModel):
    """The files that a tokenizer is read from, its chat template among them, and what it makes of a text."""

    files: dict[str, str]
    probe: list[int]

    @classmethod
    def of(cls, model: LanguageModel) -> TokenizerRecord:
        """Of a model's."""
        with tempfile.TemporaryDirectory() as folder:
            model.tokenizer.save_pretrained(folder)
            files = {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}
        return cls(files=files, probe=model.tokens(_PROBE) + model.encode(_PROBE))

    def tokenizer(self) -> Any:
        """The tokenizer. Raises InputError where the files are none."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                if Path(name).name != name or Path(name).suffix not in (".json", ".jinja", ".txt"):
                    raise InputError(f"the server's tokenizer has a file {name!r}, which isn't taken.")
                (Path(folder) / name).write_text(content, encoding="utf-8")
            try:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            except Exception as error:  # of tokenizers, transformers: of any kind
                raise InputError(f"the server's tokenizer can't be read ({error}).") from error

    def check(self, model: LanguageModel) -> None:
        """Raise InputError where the model's tokenizer makes another thing of the text."""
        if model.tokens(_PROBE) + model.encode(_PROBE) != self.probe:
            raise InputError("the server's tokenizer reads texts in another way there; use the same midward here.")
