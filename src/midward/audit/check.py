"""What a check is: a few harmless questions, and what their answers prove."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from midward.attacks.capabilities import Capability
from midward.audit.dialects import Endpoint, Reply
from midward.audit.wire import Raw, quote

#: open: let in, and the evidence shows it. ignored: accepted, and nothing came of it. refused: the server said that it
#: won't. unclear: nobody can tell from outside.
Verdict = Literal["open", "ignored", "refused", "unclear"]
UNSTABLE = "equal requests differ here, as far as it shows, so the answer proves nothing"
#: Capability -> how far it is granted; "" is all of it.
Grants = Mapping[Capability, str]


@dataclass(frozen=True)
class Outcome:
    """What a check found. grants: of an open one, where it isn't what its check says."""

    verdict: Verdict
    evidence: str
    grants: Grants | None = None


@dataclass(frozen=True)
class Check:
    """A question to an endpoint.

    Attributes:
        name: what it is called.
        about: what is asked, in words.
        ask: puts it; None where it makes no sense there. Of a midward server's own, it is put to those alone.
        apis: the languages that it is asked in.
        grants: what an attacker has where it is open.
        hole: whether it should be closed; what any chat endpoint gives is none.
    """

    name: str
    about: str
    ask: Callable[[Any], Outcome | None]
    apis: tuple[str, ...] = ("openai", "sglang")
    grants: Grants = field(default_factory=dict)
    hole: bool = True

    def outcome(self, at: Endpoint) -> Outcome | None:
        """What it finds at an endpoint."""
        try:
            return self.ask(at)
        except Declined as lacking:
            return lacking.outcome


class Declined(Exception):
    """There is no answer to look at. outcome: of the check that asked."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


def answered(reply: Reply) -> Reply:
    """The reply itself. Raises Declined where it has no answer."""
    if (lacking := declined(reply)) is not None:
        raise Declined(lacking)
    return reply


def declined(reply: Reply) -> Outcome | None:
    """The outcome where there is no answer to look at; None where there is one."""
    if reply.refused:
        return Outcome("refused", reply.raw.trouble or "answered by a content filter")
    return None if reply.answered else Outcome("unclear", reply.raw.trouble)


def by_change(at: Endpoint, reply: Reply) -> Outcome:
    """The outcome where all that shows is whether the answer is another one."""
    changed = at.changed(reply)
    if changed is None:
        return Outcome("unclear", f"accepted; {UNSTABLE}")
    if changed:
        return Outcome("open", f"{quote(reply.text)} instead of {quote(at.plain.text)}, which equal requests give")
    return Outcome("ignored", "accepted, and the answer is the same")


def path_of(raw: Raw) -> Outcome:
    """The outcome of a path that gave nothing."""
    if raw.refused:
        return Outcome("refused", raw.trouble)
    return Outcome("unclear", raw.trouble or "an answer that holds none")


def strings(value: Any) -> Iterator[str]:
    """All texts in an answer's JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


def numbers(values: Any) -> list[float]:
    """Those of a list that are finite numbers; none where it is no list."""
    given = values if isinstance(values, list) else []
    return [float(each) for each in given if type(each) in (int, float) and abs(each) < 1e30]
