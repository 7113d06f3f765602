"""What a server of midward's grants with `--research`: its own fields and paths, which no other server is asked for."""

from __future__ import annotations

import base64
from typing import Any

from midward.attacks.capabilities import Capability
from midward.audit.check import Check, Outcome, answered, by_change, declined, numbers, path_of
from midward.audit.checks import IDS
from midward.audit.dialects import LENGTH, Chat, Reply
from midward.audit.typed import MASKS, around, filled
from midward.audit.wire import Raw, quote

_MASKED = 6  # masks of a text that is to be filled
_AT = 16  # where in a response a word is forced, beside its beginning; behind the tokens of one word


def _word(at: Chat) -> str:
    """A word that the model's vocabulary has, and that the plain answer doesn't begin with."""
    first, *rest = at.plain.text.split() or [""]
    known = (word for word in reversed(rest) if word.isalnum() and len(word) <= _AT)
    return next((word for word in known if word.lower() != first.lower()), "yes")


def _ask(at: Chat, **extra: Any) -> Reply:
    """The reply to our own fields. Raises Declined where it has no answer."""
    return answered(at.ask(midward=extra))


def forced(at: Chat) -> Outcome:
    """Are tokens forced at positions of the response?"""
    word = _word(at)
    reply = _ask(at, forced=[{"position": place, "text": word} for place in (0, _AT)])
    begins, place = reply.text.startswith(word), numbers(reply.raw.at("midward", "choices", 0, "forced_at", 1))
    start, stop = map(int, place) if len(place) == 2 else (0, 0)
    if begins and start and reply.text[start:stop].strip() == word:
        return Outcome("open", f"{quote(word)} stands at the beginning and at character {start}: {quote(reply.text)}")
    if begins:
        only = {Capability.POS: "at the beginning, as far as it shows"}
        return Outcome("open", f"the answer begins with {quote(word)}: {quote(reply.text)}", only)
    return by_change(at, reply)


def bans(at: Chat) -> Outcome:
    """Are tokens banned at positions of the response?"""
    first = (at.plain.text.split() or [""])[0]
    if not first:
        return Outcome("unclear", "the plain answer is empty, so there is no word to ban")
    reply = _ask(at, bans=[{"position": 0, "text": first}])
    if at.stable and not reply.text.startswith(first):
        return Outcome("open", f"the answer no longer begins with {quote(first)}: {quote(reply.text)}")
    return by_change(at, reply)


def edits(at: Chat) -> Outcome:
    """Is the response written to between steps?"""
    word = _word(at)
    write = {"step": 1, "write": [{"position": 0, "text": word}]}
    reply = _ask(at, edits=[write], sampling={"steps": LENGTH})  # a threshold knows no steps
    if reply.raw.at("midward", "choices", 0, "edits") and reply.text.startswith(word):
        return Outcome("open", f"{quote(word)} was written to the beginning: {quote(reply.text)}")
    return by_change(at, reply)


def fill(at: Chat) -> Outcome:
    """Are masks in a message filled in place, where the client asks for it?"""
    for mask in at.masks or ([at.wire.config.mask] if at.wire.config.mask else MASKS):
        extra = {"masks": "allow", "prompt_masks": "fill_only"}
        reply = at.ask(around(mask, _MASKED), midward=extra)
        if reply.answered and (gap := filled(reply, mask)) is not None:
            return Outcome("open", f"{quote(around(mask, 2))} with its masks filled: {quote(gap)}")
        if reply.raw.status not in (200, 400):
            break
    return declined(reply) or Outcome("ignored", f"accepted; the answer is {quote(reply.text)}")


def ends(at: Chat) -> Outcome:
    """Are end tokens overruled? The server says which policy it kept to."""
    reply = _ask(at, sampling={"end": "keep"})
    if reply.raw.at("midward", "sampling", "end") == "keep":
        return Outcome("open", "the server's own record has it among the settings of the answer")
    return by_change(at, reply)


def score(at: Chat) -> Outcome:
    """Are spans of a response scored?"""
    span = {"prompt": IDS, "position": 0, "ids": IDS[:2]}
    raw = at.wire.post("/midward/score", {"spans": [span], "mode": "parallel", "length": _length(at)})
    if tokens := numbers(raw.at("scores", 0, "tokens")):
        return Outcome("open", f"{len(tokens)} log-probabilities of ids that the client chose, behind ids as a prompt")
    return path_of(raw)


def gradient(at: Chat) -> Outcome:
    """Are gradients given?"""
    span = {"prompt": IDS, "position": 0, "ids": IDS[:2]}
    raw = at.wire.post("/midward/gradient", {"span": span, "slots": [0], "length": _length(at)})
    sizes, packed = numbers(raw.at("shape")), raw.at("gradient")
    try:
        size = len(base64.b64decode(packed, validate=True)) if isinstance(packed, str) else 0
    except ValueError:
        size = 0
    if size and sizes and size == 4 * sizes[0] * sizes[-1]:
        return Outcome("open", f"{sizes[0]:g} x {sizes[-1]:g} numbers")
    return path_of(raw)


def tokenizer(at: Chat) -> Outcome:
    """Is the tokenizer given away?"""
    raw = at.wire.get("/midward/tokenizer")
    files = raw.at("files")
    return Outcome("open", f"{len(files)} files") if isinstance(files, dict) and files else path_of(raw)


def _length(at: Chat) -> int:
    """Positions of a response, as the server says."""
    length = Raw(200, at.card).at("sampling", "length")
    return length if isinstance(length, int) and 0 < length < 1 << 16 else LENGTH


OURS = (
    Check("forced", "tokens forced into the response", forced, ("openai",), {Capability.POS: ""}),
    Check("bans", "tokens banned at positions", bans, ("openai",), {Capability.BAN: ""}),
    Check("edits", "the response written to between steps", edits, ("openai",), {Capability.EDIT: ""}),
    Check("fill", "masks in a message filled on request", fill, ("openai",), {Capability.PMASK: ""}),
    Check("ends", "end tokens overruled", ends, ("openai",)),
    Check("score", "spans of a response scored", score, ("openai",), {Capability.SLP: ""}),
    Check("gradient", "gradients", gradient, ("openai",), {Capability.GRAD: ""}),
    Check("tokenizer", "the model's tokenizer", tokenizer, ("openai",)),
)
