"""Suffixes as tokens: where one stands in the prompt, what it starts from, and which single swaps are worth a look.

Shapes: S tokens of the suffix, V vocabulary rows.
"""

from __future__ import annotations

import random

import torch

from midward.attacks._suffix import plain_tokens
from midward.errors import InputError
from midward.models import LanguageModel

Suffix = tuple[int, ...]


class SuffixPrompt:
    """A user's turn with a suffix behind it, seen as the model's own tokens."""

    def __init__(self, model: LanguageModel, text: str) -> None:
        self.model, self.goal = model, text

    def text(self, suffix: Suffix) -> str:
        """What the user would send."""
        shown = self.model.tokenizer.decode(list(suffix), clean_up_tokenization_spaces=False)
        return f"{self.goal} {shown}"

    def ids(self, suffix: Suffix) -> list[int]:
        """The whole prompt, through the chat template."""
        return self.model.encode(self.text(suffix))

    def place(self, suffix: Suffix) -> tuple[list[int], int] | None:
        """The prompt's ids and the index of the suffix's first token; None where its text is read as other tokens."""
        ids, wanted = self.ids(suffix), list(suffix)
        for start in range(len(ids) - len(wanted), -1, -1):
            if ids[start : start + len(wanted)] == wanted:
                return ids, start
        return None


def start_of(prompt: SuffixPrompt, tokens: int) -> Suffix:
    """A suffix of equal tokens that says nothing: exclamation marks where they are read back as they are.

    Raises InputError where no token of visible text repeats itself in this prompt.
    """
    tokenizer = prompt.model.tokenizer
    words = plain_tokens(tokenizer)
    marks = [tuple(tokenizer.encode(mark, add_special_tokens=False)) for mark in (" !", "!")]
    for token in [*(ids[0] for ids in marks if len(ids) == 1 and ids[0] in words), *words]:
        suffix = (token,) * tokens
        if prompt.place(suffix) is not None:
            return suffix
    raise InputError(f"no token of {prompt.model.name!r} can be repeated {tokens} times in a prompt; use fewer.")


def swaps(
    slope: torch.Tensor, prompt: SuffixPrompt, current: Suffix, *, width: int, top: int, rng: random.Random
) -> tuple[list[tuple[Suffix, list[int]]], int]:
    """At most `width` suffixes with their prompt's ids, one token of `current` swapped in each; how many were dropped.

    slope [S, V]: the loss's gradient with respect to the one-hot suffix. The swaps are drawn evenly, none twice, from
    the `top` plain tokens of steepest descent at each slot (all plain tokens where there are fewer). One that changes
    any other token of the whole prompt once its text is encoded again is dropped and counted.
    """
    words = plain_tokens(prompt.model.tokenizer)
    steepest = slope[:, list(words)].topk(min(top, len(words)), largest=False).indices.tolist()
    placed = prompt.place(current)
    assert placed is not None  # it was read back when it was chosen
    ids, start = placed
    found: list[tuple[Suffix, list[int]]] = []
    dropped = 0
    pairs = [(slot, words[at]) for slot, row in enumerate(steepest) for at in row]
    for slot, token in rng.sample(pairs, len(pairs)):
        if token == current[slot]:
            continue
        swapped = [*ids[: start + slot], token, *ids[start + slot + 1 :]]
        suffix = (*current[:slot], token, *current[slot + 1 :])
        if prompt.ids(suffix) != swapped:
            dropped += 1
            continue
        found.append((suffix, swapped))
        if len(found) == width:
            break
    return found, dropped
