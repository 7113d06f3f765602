"""The perplexity filter: prompts that read unlike a language are refused (Jain et al. 2023, arXiv 2309.00614)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from midward.errors import InputError
from midward.guards.config import GuardError
from midward.guards.exchange import Exchange, around, user_text
from midward.guards.guard import Guard
from midward.models import LanguageModel, load
from midward.sampling import Span, span_log_probs


@dataclass(frozen=True, config={"extra": "forbid"})
class Perplexity:
    """reference: the model that reads the prompts, anything `midward.load` takes; None is the guarded model itself.
    window: tokens; the worst window counts; 0 takes the mean of the whole prompt. samples: random masks a prompt, where
    the reading model is a diffusion model, whose likelihood is a Monte Carlo bound. seed: of those masks."""

    reference: Annotated[str, Field(min_length=1)] | None = None
    window: Annotated[int, Field(ge=0)] = 10
    samples: Annotated[int, Field(ge=2)] = 32
    seed: int = 0


class PerplexityFilter(Guard):
    """Score: the largest mean negative log-probability of `window` neighbouring tokens of the last user turn, in nats a
    token (the logarithm of the windowed perplexity). Mask tokens in the text are taken out first.

    An autoregressive reference gives it exactly by one forward. A diffusion model's is the mean over random orders of
    revealing the turn, as `span_log_probs(mode="mc")`, in front of nothing but the template's beginning.
    """

    name = "perplexity"
    about = "the worst window of the prompt under a language model"
    looks = "before"
    Settings = Perplexity

    def score(self, model: LanguageModel, exchanges: Sequence[Exchange], *, batch_size: int = 8) -> np.ndarray:
        reader = self._reader(model)
        head = _head(reader)
        texts = [_ids(reader, user_text(model, each.request)) for each in exchanges]
        scores = np.zeros(len(texts))
        for length in sorted({len(ids) for ids in texts if ids}):
            # A text's canvas has its own length: masks behind it would be another text.
            alike = [i for i, ids in enumerate(texts) if len(ids) == length]
            spans = span_log_probs(
                reader,
                [Span(head, 0, tuple(texts[i])) for i in alike],
                mode="mc",
                length=length,
                samples=self.settings.samples,
                seed=self.settings.seed,
                batch_size=max(batch_size, self.settings.samples),
            )
            for i, span in zip(alike, spans, strict=True):
                scores[i] = worst_window(-np.array(span.tokens), self.settings.window)
        return scores

    def bind(self, model: LanguageModel, sampling: object = None) -> None:
        super().bind(model)
        self.bound["reference"] = self._reader(model).fingerprint

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        super().restore(tensors)
        if "reference" not in self.bound:
            raise InputError("it doesn't say which weights read the prompts")

    def _reader(self, model: LanguageModel) -> LanguageModel:
        if self.settings.reference is None:
            return model
        if not hasattr(self, "_loaded"):
            self._loaded = load(self.settings.reference, device=model.device, dtype=model.dtype)
            before = self.bound.get("reference", self._loaded.fingerprint)
            if before != self._loaded.fingerprint:
                raise GuardError(
                    f"the perplexity filter was fitted with other weights of {self.settings.reference!r}: "
                    f"{before} there, {self._loaded.fingerprint} here. Fit it anew."
                )
        return self._loaded


def worst_window(surprise: np.ndarray, window: int) -> float:
    """The largest mean of neighbours.

    Args:
        surprise: negative log-probabilities [tokens], in nats.
        window: how many neighbours; 0, or more than there are, takes all.
    """
    if not 0 < window < len(surprise):
        return float(surprise.mean())
    return float(np.lib.stride_tricks.sliding_window_view(surprise, window).mean(-1).max())


def _ids(reader: LanguageModel, text: str) -> list[int]:
    """The text's tokens, without masks."""
    return [token for token in reader.tokens(text) if token != reader.family.mask_id]


def _head(reader: LanguageModel) -> list[int]:
    """What stands in front of a user's text: the chat template's beginning, or one token of a model without one."""
    head, _ = around(reader)
    begin = reader.tokenizer.bos_token_id
    return head or [reader.family.end_ids[0] if begin is None else begin]
