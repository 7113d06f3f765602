"""How many tokens two settings agree on: what an approximate one costs, measured on a user's own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from midward.models import LanguageModel

from .requests import Request, Response
from .sampler import sample
from .settings import Sampling


@dataclass(frozen=True)
class Agreement:
    """What of the exact responses came out the same.

    tokens, equal_tokens: of each exact response up to and with its end token, and those of them that stand at the same
    place in the other one. responses, equal_responses: where all do, and neither goes on. forwards_exact,
    forwards_fast: of all rows, partial ones too.
    """

    tokens: int
    equal_tokens: int
    responses: int
    equal_responses: int
    forwards_exact: int
    forwards_fast: int

    @property
    def token_share(self) -> float:
        """In [0, 1]; NaN without tokens."""
        return self.equal_tokens / self.tokens if self.tokens else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.token_share:.1%} of {self.tokens} tokens and {self.equal_responses} of {self.responses} responses "
            f"equal; {self.forwards_fast} row-forwards, {self.forwards_exact} without"
        )


def compare(exact: Sequence[Response], fast: Sequence[Response]) -> Agreement:
    """Compare responses to the same requests. Raises InputError for unequal numbers of them."""
    tokens = equal_tokens = equal_responses = 0
    for reference, approximate in zip(exact, fast, strict=True):
        # With end="keep" the ids go on behind the end token, which is among them.
        count = min(len(reference.ids) + reference.ended, len(reference.raw_ids))
        pairs = zip(reference.raw_ids[:count], approximate.raw_ids[:count], strict=True)
        tokens += count
        equal_tokens += sum(a == b for a, b in pairs)
        equal_responses += reference.ids == approximate.ids and reference.ended == approximate.ended
    forwards = [sum(response.nfe for response in responses) for responses in (exact, fast)]
    return Agreement(tokens, equal_tokens, len(exact), equal_responses, *forwards)


def agreement(
    model: LanguageModel, requests: Sequence[Request | Any], exact: Sampling, fast: Sampling, *, batch_size: int = 8
) -> Agreement:
    """Sample the requests with both settings and compare. Raises what `sample` does.

    At a temperature above 0 a row's draws are the same in both, but a threshold numbers its steps otherwise, so that
    equal tokens then are no more than two samples of one distribution would share.
    """
    both = [
        [response.checked() for response in sample(model, requests, settings, batch_size=batch_size)]
        for settings in (exact, fast)
    ]
    return compare(*both)
