"""What a guard looks at, what it says of it, and how the words of a request are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from midward.guards.config import GuardError
from midward.models import LanguageModel
from midward.sampling import Request, Sampling
from midward.sampling.requests import resolve
from midward.store import key_of

Look = Literal["before", "during", "after"]


@dataclass(frozen=True)
class Exchange:
    """What a guard may look at; each one needs only its part.

    text: the response, None where there is none yet. signal: the SRI signal of its generation [T], or of its steps up
    to the one that it was stopped at; of a guard by blocks, what it read at their looks [blocks, J, F + 1]. plain: the
    goal as it was before an attack dressed it up, which only an evaluation knows (an oracle; no deployed guard has it).
    states: phi of the looks [blocks, J, D], of an answer to learn from. early: what the request alone scored, see
    `Guard.early`.
    """

    request: Request
    text: str | None = None
    signal: np.ndarray | None = None
    plain: str | None = None
    states: np.ndarray | None = None
    early: np.ndarray | None = None


@dataclass(frozen=True)
class Labelled:
    """The model's own answers, for a guard that takes labels: to harmless prompts it answered, to harmful ones that
    it refused, and to harmful ones that it complied with behind a forced opening. None is an evaluation's attack."""

    answered: Sequence[Exchange]
    refused: Sequence[Exchange]
    complied: Sequence[Exchange]


@dataclass(frozen=True)
class Verdict:
    """What a guard said of one response.

    looks: when it looked. score: None where the guard couldn't say (unscored, never flagged). step: the denoising step
    after which the generation was stopped, from 0; None where it ran to its end. signal: the SRI signal up to there.
    block, progress: of a guard that looks at blocks, the first look above the threshold: which block, from 0, and how
    much of it stood (0..1). member: of a cascade, which of its guards it was.
    """

    guard: str
    looks: Look
    flagged: bool
    score: float | None
    threshold: float
    step: int | None = None
    signal: tuple[float, ...] | None = None
    block: int | None = None
    progress: float | None = None
    member: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON, as files and pages have it; step and block count from 1 there."""
        return asdict(self) | {
            name: None if count is None else count + 1 for name, count in (("step", self.step), ("block", self.block))
        }


def prompt_hash(prompt: Any) -> str:
    """16 hex digits of a prompt: a text, token ids or messages."""
    return key_of(prompt=prompt)


def prompt_ids(model: LanguageModel, request: Request) -> list[int]:
    """The ids of a request's prompt."""
    return resolve(model, Request(request.prompt), Sampling(length=1, steps=1), 0)[1]


def user_text(model: LanguageModel, request: Request) -> str:
    """What the last user turn of a request says; of token ids, all between the chat template's two ends.

    Args:
        model: whose chat template and tokenizer count.
        request: a text, a conversation or token ids.

    Raises:
        GuardError: for a conversation without a user turn.
    """
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    if prompt and isinstance(prompt[0], int):
        return _between(model, [token for token in prompt if isinstance(token, int)])
    texts = [turn["content"] for turn in prompt if not isinstance(turn, int) and turn["role"] == "user"]
    if not texts:
        raise GuardError("the prompt has no user turn to look at; give a text or a conversation.")
    return texts[-1]


def around(model: LanguageModel) -> tuple[list[int], list[int]]:
    """What the chat template puts before and behind the words of one user turn; nothing where there is none."""
    if not getattr(model.tokenizer, "chat_template", None):
        return [], []
    empty, word = model.encode(""), model.encode("a")
    head, tail = _shared(empty, word), _shared(empty[::-1], word[::-1])[::-1]
    return head, tail[max(0, len(head) + len(tail) - len(empty)) :]


def _shared(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The tokens that both begin with."""
    return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]


def _between(model: LanguageModel, ids: list[int]) -> str:
    """The ids as text, without what the chat template puts around every user's words. Masks stay, as their token."""
    head, tail = around(model)
    if len(ids) > len(head) + len(tail):
        ids = ids[len(head) : len(ids) - len(tail)]
    return model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
