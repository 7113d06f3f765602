"""What goes in and what comes out: `Request` with its `Forced` spans and `Ban`s, and `Response`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from midward.errors import InputError
from midward.models.errors import ModelError

if TYPE_CHECKING:
    from midward.models import LanguageModel

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]


@dataclass(frozen=True)
class Forced:
    """Tokens that stand at a response position before the first step and are never remasked.

    position: response coordinate of the first token, 0 or more. ids: the tokens, one or more.
    They are seen by the model from the first step on and take nothing of the schedule.
    """

    position: int
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_span("a forced span", self.position, self.ids)

    @classmethod
    def text(cls, model: "LanguageModel", position: int, text: str) -> "Forced":
        """Build the span from text, without special tokens added. ValueError if it has no token."""
        return cls(position, _tokens(model, text))


@dataclass(frozen=True)
class Ban:
    """A token sequence that must not stand at a response position as a whole.

    Its parts may: only the token that would complete the sequence is never chosen. For that, the window of a
    ban is committed from left to right (in one step or over several), whatever the order elsewhere: a
    position in it never goes before the ones to its left, and its logits are masked by what stands there.
    Bans at overlapping positions share one window. This is our choice; no paper states one.
    """

    ids: tuple[int, ...]
    position: int = 0

    def __post_init__(self) -> None:
        _check_span("a ban", self.position, self.ids)

    @classmethod
    def text(cls, model: "LanguageModel", text: str, position: int = 0) -> "Ban":
        """Build the ban from text, without special tokens added. ValueError if it has no token."""
        return cls(_tokens(model, text), position)


@dataclass(frozen=True)
class Request:
    """One prompt with what its response must and must not contain.

    prompt: a text (one user turn), a conversation, or token ids (used as they are). Mask tokens in it are
    filled like the response's. seed: overrides the prompt's own part in the random draws; two requests that
    are equal in everything draw the same numbers.
    """

    prompt: Prompt
    forced: tuple[Forced, ...] = ()
    bans: tuple[Ban, ...] = ()
    seed: int | None = None


@dataclass
class Response:
    """What came out of one request.

    text: decoded `ids`, special tokens stripped.
    ids: response tokens up to and without the first end token (with end="keep": all of them).
    raw_ids: all `length` positions; a row that stopped early may hold masks behind its end token.
    ended: whether an end token was reached with no mask before it.
    nfe: forward passes this row took part in (two a step with guidance).
    steps: denoising steps this row took part in.
    prompt_ids: the prompt as it stands after sampling, its masks filled.
    verdict: what a guard said, a `midward.guards.Verdict`; None where none was asked.
    error: why there is no response: the model's numbers weren't finite. `text` and `ids` are empty then, and say
        nothing: neither that it refused nor that it is safe. None for a response.
    """

    text: str
    ids: list[int]
    raw_ids: list[int]
    ended: bool
    nfe: int
    steps: int
    prompt_ids: list[int] = field(default_factory=list)
    verdict: Any = None
    error: str | None = None

    def checked(self) -> "Response":
        """Itself. Raises ModelError where it is an error instead."""
        if self.error is not None:
            raise ModelError(self.error)
        return self

    def unscored(self, *fields: str) -> dict[str, Any]:
        """For a row of results: `fields` that nothing is known of, and the error; nothing where there is none."""
        return {} if self.error is None else {**dict.fromkeys(fields), "error": self.error}


def require_some(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ModelError where every row of results has an error."""
    if rows and all(row.get("error") for row in rows):
        raise ModelError(f"none of the {len(rows)} requests has a response; the first: {rows[0]['error']}")


def resolve(model: "LanguageModel", request: Any, length: int, index: int) -> tuple[Request, list[int]]:
    """Return a request and its prompt's ids, checked. Errors name the request by its index."""
    if not isinstance(request, Request):
        request = Request(request)
    try:
        ids = _prompt_ids(model, request.prompt)
        _check_request(model, request, ids, length)
    except (ValueError, TypeError) as error:
        raise type(error)(f"request {index}: {error}") from None
    return request, ids


def _prompt_ids(model: "LanguageModel", prompt: Any) -> list[int]:
    if not isinstance(prompt, Sequence):
        raise TypeError(f"a prompt is a text, a list of messages or token ids; received {prompt!r}.")
    if len(prompt) == 0:
        raise InputError("the prompt is empty; give a text, messages or token ids.")
    if isinstance(prompt, str) or not isinstance(prompt[0], int):
        return model.encode(prompt)
    ids = [int(token) for token in prompt]
    rows = model.vocab_size
    outside = [token for token in ids if not 0 <= token < rows]
    if outside:
        raise InputError(f"token id {outside[0]} lies outside the vocabulary of {rows} rows.")
    return ids


def _check_request(model: "LanguageModel", request: Request, ids: list[int], length: int) -> None:
    if len(ids) + length > model.max_positions:
        raise InputError(
            f"the prompt has {len(ids)} tokens and the response {length}, together more than the model's "
            f"{model.max_positions} positions; shorten one of them."
        )
    taken: dict[int, int] = {}
    for span in request.forced:
        if span.position + len(span.ids) > length:
            raise InputError(f"{span} ends behind the response's {length} positions; move it or use a larger length.")
        for offset, token in enumerate(span.ids):
            if span.position + offset in taken:
                raise InputError(f"{span} overlaps another forced span at position {span.position + offset}.")
            if token == model.family.mask_id:
                raise InputError(f"{span} holds the mask token, which forces nothing; split the span around it.")
            taken[span.position + offset] = token
    for ban in request.bans:
        if ban.position + len(ban.ids) > length:
            raise InputError(f"{ban} ends behind the response's {length} positions, so it bans nothing.")
        if all(taken.get(ban.position + offset) == token for offset, token in enumerate(ban.ids)):
            raise InputError(f"{ban} contradicts the forced spans, which put exactly that there.")
    items: list[Forced | Ban] = [*request.forced, *request.bans]
    for item in items:
        for token in item.ids:
            if not 0 <= token < model.vocab_size:
                raise InputError(f"{item}: token id {token} lies outside the vocabulary of {model.vocab_size} rows.")


def _check_span(what: str, position: int, ids: tuple[int, ...]) -> None:
    if not isinstance(position, int) or position < 0:
        raise InputError(f"the position of {what} is a response coordinate, 0 or more; received {position!r}.")
    if not isinstance(ids, tuple) or not ids or not all(isinstance(token, int) for token in ids):
        raise InputError(f"the ids of {what} are a non-empty tuple of integers; received {ids!r}.")


def _tokens(model: "LanguageModel", text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer.encode(text, add_special_tokens=False))
