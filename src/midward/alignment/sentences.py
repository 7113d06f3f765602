"""The safe and the harmful sentences that the objective compares, and their token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from midward.alignment.config import AlignConfig, AlignError

if TYPE_CHECKING:
    from midward.models import LanguageModel

_BUILT_IN = yaml.safe_load(Path(__file__).with_name("sentences.yaml").read_text(encoding="utf-8"))
SAFE, HARMFUL = tuple(_BUILT_IN["safe"]), tuple(_BUILT_IN["harmful"])


@dataclass(frozen=True)
class SentenceSet:
    """Sentences to draw from, one a step or an example (the paper's own lists are unpublished).

    safe: refusals; each is scored with the model's end-of-sequence token after it.
    harmful: lines of a compliant, procedural answer that say nothing of the matter itself.
    """

    safe: Sequence[str] = SAFE
    harmful: Sequence[str] = HARMFUL


@dataclass(frozen=True)
class SentenceIds:
    """Token ids of a SentenceSet; every safe sentence ends in the end-of-sequence token, once."""

    safe: tuple[tuple[int, ...], ...]
    harmful: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return max(map(len, self.safe + self.harmful))


def encode_sentences(model: "LanguageModel", sentences: SentenceSet, config: AlignConfig) -> SentenceIds:
    """Token ids for `model`. Raises AlignError for an empty, duplicate, unusable or too long sentence."""
    ids = SentenceIds(
        safe=_encode(model, sentences.safe, "safe", end=True),
        harmful=_encode(model, sentences.harmful, "harmful", end=False),
    )
    begin = config.window_start if config.windowed else 0
    room = config.window_end - begin if config.fit else config.length - begin
    if ids.longest > room:
        place = "the window" if config.fit else f"the response from token {begin} on"
        raise AlignError(
            f"the longest sentence has {ids.longest} tokens (end token counted) and {place} has {room}; "
            "shorten the sentences, raise length or move the window."
        )
    return ids


def _encode(model: "LanguageModel", texts: Sequence[str], kind: str, *, end: bool) -> tuple[tuple[int, ...], ...]:
    if isinstance(texts, str) or not texts:
        raise AlignError(f"{kind} sentences must be a list of one text or more; received {texts!r}.")
    family = model.family
    forbidden = {*family.end_ids, family.mask_id}
    encoded: dict[tuple[int, ...], str] = {}
    for text in texts:
        if not isinstance(text, str):
            raise AlignError(f"{kind} sentence {text!r} is a {type(text).__name__}, not a text.")
        ids = model.tokens(text)
        # A sentence may come with the end token's own text; it still ends in it exactly once.
        while end and ids and ids[-1] == family.end_ids[0]:
            ids.pop()
        if not ids:
            raise AlignError(f"{kind} sentence {text!r} tokenises to nothing; remove it.")
        if forbidden & set(ids):
            raise AlignError(f"{kind} sentence {text!r} holds an end or mask token; write it without.")
        if end:
            ids.append(family.end_ids[0])
        key = tuple(ids)
        if key in encoded:
            raise AlignError(f"{kind} sentences {encoded[key]!r} and {text!r} are the same tokens; keep one.")
        encoded[key] = text
    return tuple(encoded)
