"""A response's text as it grows: what stands never changes, so that it can be sent before the rest is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What a decoder shows for bytes that are no whole character (yet).
_TORN = "\N{REPLACEMENT CHARACTER}"


class Growing:
    """The text of one response, from its tokens so far.

    sent: what stands for good. Held back are characters whose last bytes are missing, and what may be the beginning of
    a text that ends the response. stopped: whether one of these stands; nothing comes behind it.

    Args:
        decode: from ids to their text; of more ids it begins with that of fewer, but for torn characters.
        stops: texts before which the response ends.
        ends: texts that end a response of this model, where it has no token for that.
        skip: tokens at the beginning that aren't told: the caller's own.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), ends: Sequence[str] = (), skip: int = 0
    ) -> None:
        self._decode, self._stops, self._ends, self._skip = decode, tuple(stops), tuple(ends), skip
        self._ids: list[int] = []
        self.sent = ""
        self.stopped = False

    def grow(self, ids: Sequence[int]) -> str:
        """What can be sent now, of the response's ids from its start to where they stand.

        No more ids than before are of a run that failed and is done again: nothing is sent twice, and where its text
        isn't the same, nothing more at all."""
        if len(ids) <= len(self._ids):
            self.stopped = False
        if self.stopped:
            return ""
        self._ids = list(ids)
        text = self._text(self._ids).rstrip(_TORN)
        end = self._stop_in(text)
        if end is not None:
            return self._to(text[:end], stopped=True)
        held = max((_overlap(text, stop) for stop in (*self._stops, *self._ends)), default=0)
        return self._to(text[: len(text) - held])

    def finish(self, text: str) -> str | None:
        """What is left to send of a response that is over, whose text is `text`; None where that doesn't begin with
        what was sent."""
        if self.stopped:
            return "" if text.startswith(self.sent) else None
        end = self._stop_in(text)
        if end is not None:
            self.stopped, text = True, text[:end]
        return self._to(text) if text.startswith(self.sent) else None

    def tokens(self, ids: Sequence[int]) -> int:
        """How many of a response's tokens are in its text, as it was cut."""
        ids = ids[self._skip :]
        if not self.stopped:
            return len(ids)
        low, high = 0, len(ids)  # the fewest whose text holds all that was sent
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self._decode(ids[:middle])) >= len(self.sent) else (middle + 1, high)
        return low

    def _text(self, ids: Sequence[int]) -> str:
        return self._decode(ids[self._skip :])

    def _stop_in(self, text: str) -> int | None:
        """Where the text ends: before the stop that is whole first, in whatever pieces the text comes."""
        whole = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(whole)[1] if whole else None

    def _to(self, text: str, stopped: bool = False) -> str:
        if len(text) <= len(self.sent) or not text.startswith(self.sent):  # less than was held back, or another text
            self.stopped = self.stopped or stopped
            return ""
        piece, self.sent, self.stopped = text[len(self.sent) :], text, self.stopped or stopped
        return piece


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
