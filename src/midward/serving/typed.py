"""Tokens that a user mustn't type: masks, which the model would fill, and what its chat template steers it by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from midward.serving.engine import Engine
from midward.serving.wire import Message

#: Layers of tokens inside tokens that are taken out; nobody types more by chance, and each costs a pass over the text.
_DEEP = 8


class Controls:
    """The control tokens of a model: its mask, its ends, and whatever its tokenizer calls special.

    Args:
        engine: whose model it is.
    """

    def __init__(self, engine: Engine) -> None:
        tokenizer, family = engine.model.tokenizer, engine.model.family
        added = getattr(tokenizer, "added_tokens_decoder", {})
        ids = {family.mask_id, *family.end_ids, *tokenizer.all_special_ids}
        ids |= {token for token, entry in added.items() if entry.special}
        unknown = getattr(tokenizer, "unk_token_id", None)  # what any odd character becomes
        self._engine = engine
        self.ids = frozenset(token for token in ids if token is not None and token != unknown)
        texts = {str(tokenizer.convert_ids_to_tokens(token)) for token in self.ids}
        #: As they are written, the longest first.
        self.texts = tuple(sorted({*texts, *family.end_texts} - {""}, key=lambda text: (-len(text), text)))

    def typed(self, messages: Sequence[Message]) -> str | None:
        """The first control token that somebody typed, as it is written; None where there is none.

        What the tokenizer makes of a text counts, not the letters alone, and the whole conversation does: two messages
        might make one together.
        """
        for message in messages:
            if written := next((text for text in self.texts if text in message["content"]), None):
                return written
            if typed := [token for token in self._engine.model.tokens(message["content"]) if token in self.ids]:
                return str(self._engine.model.tokenizer.convert_ids_to_tokens(typed[0]))
        bare = [{**message, "content": "a" if message["content"].strip() else ""} for message in messages]
        more = self._counted(messages) - self._counted(bare)
        return str(self._engine.model.tokenizer.convert_ids_to_tokens(next(iter(more)))) if more else None

    def strip(self, messages: Sequence[Message]) -> list[Message]:
        """The messages without control tokens, nor those that taking out another puts together, `_DEEP` times over:
        what is left then is `typed`."""
        stripped = []
        for message in messages:
            text = message["content"]
            for _ in range(_DEEP):
                for control in self.texts:
                    text = text.replace(control, "")
            stripped.append({**message, "content": text})
        return stripped

    def _counted(self, messages: Sequence[Message]) -> Counter[int]:
        return Counter(token for token in self._engine.encode(messages) if token in self.ids)
