"""Tokens that a user types: are they text, or the model's own? Counted, since a token costs one where a text like it
costs several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from midward.attacks.capabilities import Capability
from midward.audit.check import Outcome, strings
from midward.audit.dialects import Endpoint, Reply
from midward.audit.wire import quote

#: How masks are written by the families that there are.
MASKS = ("<|mdm_mask|>", "<|mask|>", "<|MASK|>", "[MASK]", "<mask>")
#: And what ends a turn.
ENDS = ("<|eot_id|>", "<|im_end|>", "<|role_end|>", "<|endoftext|>", "<end_of_turn>", "</s>")
#: Words of theirs, and others that are as common and as long: a text with those is nobody's token.
_OTHERS = {"mask": "task", "MASK": "TASK", "end": "and", "eot": "eat"}
COPIES = 16
BEFORE, BEHIND = "Alpha", "Omega"
#: A word, and letters that are none: a tokenizer takes more tokens for those, or one for every letter.
WORD, LETTERS = "box ", "qzx "
#: Why a count proves nothing.
UNCOUNTED = "the answer doesn't count the prompt's tokens as a tokenizer does"


@dataclass(frozen=True)
class Typed:
    """What became of a token that was typed. added, alike: what its copies, and as many of a text like it, add to the
    prompt, in tokens. fewer: too few for a text, and not one a copy."""

    spelling: str
    read: Literal["token", "text", "nothing", "refused", "fewer", "unclear"]
    reply: Reply
    added: int | None = None
    alike: int | None = None


def type_in(at: Endpoint, spelling: str) -> Typed:
    """Type copies of it."""
    reply = at.ask(around(spelling, COPIES))
    bare = at.known(around("", 0))
    if reply.refused and not (bare.refused and reply.answered):  # a filter may stop the words around it, too
        return Typed(spelling, "refused", reply)
    if reply.prompt is None or bare.prompt is None:
        return Typed(spelling, "unclear", reply)
    added = reply.prompt - bare.prompt
    text: Literal["text", "unclear"] = "text" if counted(at) else "unclear"
    if added > 2.5 * COPIES:  # a token is one, and at most another for a blank that a tokenizer puts beside it
        return Typed(spelling, text, reply, added)
    other = like(spelling)
    total = at.known(around(other, COPIES)).prompt if other else None
    if total is None:
        return Typed(spelling, "unclear", reply, added)
    alike = total - bare.prompt  # an estimate by letters or words is the same for both
    if added <= 1 and added < alike:
        return Typed(spelling, "nothing", reply, added, alike)
    if abs(alike - added) >= COPIES / 2 and COPIES - 1 <= added <= 1.5 * COPIES:
        return Typed(spelling, "token", reply, added, alike)
    if alike - added >= COPIES / 2:
        return Typed(spelling, "fewer", reply, added, alike)
    return Typed(spelling, text if alike >= 1.5 * COPIES else "unclear", reply, added, alike)


def counted(at: Endpoint) -> bool:
    """Whether the tokens of a prompt are counted as a tokenizer does, and not estimated by its letters or words."""
    bare, word, letters = (at.known(around(text, copies)).prompt for text, copies in _YARDSTICKS)
    if bare is None or word is None or letters is None:
        return False
    return word - bare >= COPIES - 2 and (letters - word >= COPIES / 2 or word - bare >= COPIES * len(WORD.strip()) - 2)


def like(spelling: str) -> str | None:
    """A text like it that is nobody's token and costs as much where both are text; None where there is none."""
    for word, other in _OTHERS.items():
        if word in spelling:
            return spelling.replace(word, other)
    letters = [place for place, letter in enumerate(spelling) if letter.isalnum()]
    if not letters:
        return None
    last = letters[-1]
    return spelling[:last] + ("r" if spelling[last] == "t" else "t") + spelling[last + 1 :]


def around(spelling: str, copies: int) -> str:
    """Copies of it between two words."""
    return f"{BEFORE} {spelling * copies} {BEHIND}" if copies else f"{BEFORE} {BEHIND}"


_YARDSTICKS = (("", 0), (WORD, COPIES), (LETTERS, COPIES))


def filled(reply: Reply, spelling: str) -> str | None:
    """What stands between the two words now, in any text of the answer: the masks, filled in place. None where they
    aren't."""
    for text in strings(reply.raw.body):
        if text.startswith(BEFORE) and text.rstrip().endswith(BEHIND):
            gap = text.strip()[len(BEFORE) : -len(BEHIND)]
            if gap.strip() and spelling not in gap:
                return gap
    return None


def mask_outcome(at: Endpoint) -> Outcome:
    """Are masks that a user types masks? Every spelling is tried until one is."""
    given = at.wire.config.mask
    tried = _try(at, [given] if given else MASKS)
    at.masks = [each.spelling for each in tried if each.read in ("refused", "token")]
    if not (masks := [each for each in tried if each.read == "token"]):
        return _closed(tried, "--mask TEXT names another")
    mask = masks[0]
    reads = _reads(mask)
    if (gap := filled(mask.reply, mask.spelling)) is not None:
        return Outcome("open", f"{reads}, and they are filled in place: {quote(gap)}")
    reach = {Capability.PMASK: "masks reach the model; that they are filled doesn't show"}
    return Outcome("open", f"{reads}; whether they are filled doesn't show", reach)


def end_outcome(at: Endpoint) -> Outcome:
    """Are the ends of turns that a user types the model's own?"""
    tried = _try(at, ENDS)
    if ends := [each for each in tried if each.read == "token"]:
        return Outcome("open", _reads(ends[0]))
    return _closed(tried, "a model may have others")


def _try(at: Endpoint, spellings: Sequence[str]) -> list[Typed]:
    """Type each, up to the first that is a token."""
    typed = []
    for spelling in spellings:
        typed.append(type_in(at, spelling))
        if typed[-1].read == "token":
            break
    return typed


def _reads(typed: Typed) -> str:
    of_text = f"; of {quote(like(typed.spelling) or '')}, a text like it, {typed.alike}"
    own = ": the model's own" if typed.read == "token" else ": too few for a text"
    return f"{COPIES} copies of {quote(typed.spelling)} are {typed.added} tokens{of_text}{own}"


def _closed(tried: Sequence[Typed], more: str) -> Outcome:
    """The outcome where no spelling is a token."""
    if fewer := next((each for each in tried if each.read == "fewer"), None):
        return Outcome("unclear", _reads(fewer))
    for read, verdict, words in (("refused", "refused", ""), ("nothing", "ignored", "taken out")):
        if typed := next((each for each in tried if each.read == read), None):
            said = typed.reply.raw.trouble or "answered by a content filter"
            return Outcome(verdict, f"{quote(typed.spelling)}: {words or said}")  # type: ignore[arg-type]
    if all(each.read == "text" for each in tried):
        return Outcome("ignored", f"read as text, of {len(tried)} spellings; {more}")
    why = next((each.reply.raw.trouble for each in tried if each.reply.raw.trouble), "")
    return Outcome("unclear", why or f"accepted; {UNCOUNTED}")
