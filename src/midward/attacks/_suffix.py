"""What the searches for a suffix share: which tokens they draw from, and where a suffix stands in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from midward.attacks.capabilities import AttackError
from midward.attacks.target import Target


@lru_cache(maxsize=8)
def plain_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that are visible ASCII text and come back as themselves when that text is read."""
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special]
    texts = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    visible = [
        (token, text)
        for token, text in zip(ids, texts, strict=True)
        if text.isascii() and text.isprintable() and text.strip()
    ]
    if not visible:
        raise AttackError("the tokenizer has no token of visible ASCII text, so no suffix can be made of it.")
    again = tokenizer([text for _, text in visible], add_special_tokens=False)["input_ids"]
    return tuple(token for (token, _), back in zip(visible, again, strict=True) if back == [token])


def vocabulary(target: Target) -> tuple[int, ...]:
    """The plain tokens of a target. Raises CapabilityError for one that this process doesn't run."""
    return plain_tokens(target.own().model.tokenizer)


def filler(target: Target, count: int) -> tuple[int, ...]:
    """A suffix to start from that says nothing.

    Args:
        target: whose tokens.
        count: tokens of the suffix.

    Returns:
        Exclamation marks where the tokenizer keeps them apart, else its first plain token, `count` times.
    """
    words = vocabulary(target)
    for mark in (" !", "!"):
        ids = target.tokens(mark)
        if len(ids) == 1 and ids[0] in words and target.tokens(target.decode(ids * count)) == ids * count:
            return ids * count
    return words[:1] * count


def slots_of(target: Target, prompt: str, suffix: Sequence[int]) -> list[int] | None:
    """Where the suffix stands in the encoded prompt.

    Args:
        target: whose tokens and chat template.
        prompt: the user turn that ends in the suffix.
        suffix: its tokens.

    Returns:
        Prompt positions; None where the suffix's text is read as other tokens there.
    """
    start = start_in(target.encode(prompt), suffix)
    return None if start is None else list(range(start, start + len(suffix)))


def start_in(ids: Sequence[int], suffix: Sequence[int]) -> int | None:
    """Where the suffix begins in an encoded prompt, at its last place; None where its text is read as other tokens."""
    wanted = list(suffix)
    starts = range(len(ids) - len(wanted), -1, -1)
    return next((start for start in starts if ids[start : start + len(wanted)] == wanted), None)
