"""What goes in and what comes out: `Request` with its `Forced` spans, `Ban`s and `Edit`s, and `Response`."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from midward.errors import InputError
from midward.models.errors import ModelError

from .settings import Sampling, blocks_of_steps

if TYPE_CHECKING:
    from midward.models import LanguageModel

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]
#: Which of a response's tokens are masked again: positions, as a function of (model, ids [length], own [length], step)
#: and of nothing else; `own` says where a token stands that may be masked.
Selector = Callable[["LanguageModel", Sequence[int], Sequence[bool], int], Iterable[int]]
#: By the name that an `Edit` has them by. `midward.chat` adds "refusal".
SELECTORS: dict[str, Selector] = {
    "none": lambda model, ids, own, step: (),
    "all": lambda model, ids, own, step: range(len(ids)),
}


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
        return cls(position, tuple(model.tokens(text)))


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
        return cls(tuple(model.tokens(text)), position)


@dataclass(frozen=True)
class Edit:
    """A change of the canvas in the middle of a generation, by somebody inside the denoising loop.

    It is made once a step has committed its tokens and before the step is shown, so that watchers and guards see the
    edited canvas: first tokens are masked again, then others are written. Written tokens take nothing of the schedule;
    the masks that are left then are spread anew over the steps that are left, so that none remains.
    An autoregressive model can only be cut back to a length (all positions from one on, or "all"), and goes on from
    there. A canvas model, which commits nothing, can only be written to: from then on every step says what was written.

    Source: TrajHijack (arXiv 2604.08557), which masks a refusal again and writes an agreement, and Recovery Alignment
    (arXiv 2510.00565, section 4.1), whose attacker replaces the prediction at a step.

    Args:
        step: After which it is made, from 0. With a threshold, of those that the row takes itself.
        write: What is written where, over whatever stands there. Not over forced tokens.
        remask: What is masked again: "none", "all" the response's tokens, those that another of `SELECTORS` picks, or
            these response positions. Forced and frozen tokens always stay.
        freeze: Whether no later edit may mask what was written; if so it counts as forced from then on.
    """

    step: int
    write: tuple[Forced, ...] = ()
    remask: str | tuple[int, ...] = "none"
    freeze: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.step, int) or self.step < 0:
            raise InputError(f"the step of an edit is 0 or more; received {self.step!r}.")
        if not isinstance(self.write, tuple) or not all(isinstance(span, Forced) for span in self.write):
            raise InputError(f"what an edit writes is a tuple of Forced spans; received {self.write!r}.")
        if not isinstance(self.remask, str | tuple) or any(
            not isinstance(place, int) or place < 0 for place in self.remask if not isinstance(self.remask, str)
        ):
            raise InputError(f"what an edit masks again is a name or response positions; received {self.remask!r}.")
        if not self.write and not self.remasks:
            raise InputError(f"the edit at step {self.step} changes nothing; write something, or mask something again.")

    @property
    def remasks(self) -> bool:
        """Whether it may mask tokens again."""
        return self.remask not in ("none", ())

    @property
    def positions(self) -> tuple[int, ...]:
        """The response positions that it masks again, where it gives them."""
        return self.remask if isinstance(self.remask, tuple) else ()

    @property
    def written(self) -> dict[int, int]:
        """Response position -> token that it writes there."""
        return {span.position + i: token for span in self.write for i, token in enumerate(span.ids)}


@dataclass(frozen=True)
class Edited:
    """What an edit did: the response positions that it wrote to, and those that it masked again and left masked."""

    step: int
    written: tuple[int, ...] = ()
    remasked: tuple[int, ...] = ()


def written_by(edits: Iterable[Edited]) -> frozenset[int]:
    """Response positions where a token stands in the end that one of these edits wrote."""
    standing: set[int] = set()
    for edit in edits:
        standing = standing.difference(edit.remasked).union(edit.written)
    return frozenset(standing)


@dataclass(frozen=True)
class Request:
    """One prompt with what its response must and must not contain.

    prompt: a text (one user turn), a conversation, or token ids (used as they are). Mask tokens in it are
    filled like the response's. seed: overrides the prompt's own part in the random draws; two requests that
    are equal in everything draw the same numbers. edits: in the order in which they are made.
    """

    prompt: Prompt
    forced: tuple[Forced, ...] = ()
    bans: tuple[Ban, ...] = ()
    seed: int | None = None
    edits: tuple[Edit, ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON, for keys; edits only where there are some, so that requests without keep their keys."""
        record = asdict(self)
        if not self.edits:
            del record["edits"]
        return record


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
    edits: what the request's edits wrote and masked again, in the order in which they were made.
    verdict: what a guard said, a `midward.guards.Verdict`; None where none was asked.
    error: why there is no response: the model's numbers weren't finite. `text` and `ids` are empty then, and say
        nothing: neither that it refused nor that it is safe. None for a response.
    commit_step: what `Trace` says of it, where whoever ran it traced it along; None elsewhere.
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
    edits: tuple[Edited, ...] = ()
    commit_step: list[int] | None = None

    @property
    def written(self) -> frozenset[int]:
        """Response positions where a token stands that an edit wrote, and not the model."""
        return written_by(self.edits)

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


def resolve(model: "LanguageModel", request: Any, sampling: Sampling, index: int) -> tuple[Request, list[int]]:
    """Return a request and its prompt's ids, checked. Errors name the request by its index."""
    if not isinstance(request, Request):
        request = Request(request)
    try:
        ids = _prompt_ids(model, request.prompt)
        _check_request(model, request, ids, sampling.length)
        if request.edits:
            _check_edits(model, request, ids, sampling)
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


@dataclass(frozen=True)
class Place:
    """Where a row stands when it is edited.

    block: response positions (start, stop) that are filled then; those before are finished. Of an autoregressive model
        the tokens that stand.
    left: steps that would fill what is masked again.
    kept: response positions that are forced or frozen.
    """

    block: tuple[int, int]
    left: int
    kept: Set[int]


def _check_edits(model: "LanguageModel", request: Request, ids: list[int], sampling: Sampling) -> None:
    """Refuse edits that can't be made, before the first forward."""
    if sampling.cache is not None:
        raise InputError(
            f"cache={sampling.cache!r} freezes keys and values that an edit changes, so edits can't be made. Leave the "
            "cache out."
        )
    whole = sampling.block in (None, sampling.length)
    if sampling.threshold is not None and not whole:
        raise InputError("which block a step with a threshold is in isn't known before; use block=None with edits.")
    blocks = blocks_of_steps(model.family, sampling, len(ids))
    kept = {span.position + i for span in request.forced for i in range(len(span.ids))}
    causal, lost = model.family.kind == "autoregressive", 0  # tokens that the edits so far cut off
    steps = [edit.step for edit in request.edits]
    if steps != sorted(steps):
        raise InputError(f"edits are given in the order of their steps; received steps {steps}.")
    for edit in request.edits:
        if edit.step >= len(blocks):
            raise InputError(
                f"the edit at step {edit.step} comes too late: the response takes {len(blocks)} steps, 0 to "
                f"{len(blocks) - 1}."
            )
        start, stop = blocks[edit.step]
        left = blocks[edit.step + 1 :].count((start, stop))
        if causal or sampling.threshold is not None:  # takes the steps that it needs
            left = sampling.length - edit.step
        check_edit(model, request, edit, Place((start, stop - lost), left, kept), sampling)
        if causal:
            stand = range(stop - lost)
            masked = set(stand if edit.remask == "all" else edit.positions).difference(kept, edit.written)
            lost = stop - min(masked.intersection(stand), default=len(stand))
        kept = kept.union(edit.written) if edit.freeze else kept


def check_edit(model: "LanguageModel", request: Request, edit: Edit, place: Place, sampling: Sampling) -> None:
    """Refuse an edit of a request's response that can't be made there.

    What is masked again below the active block would never be filled: it was let go of, and a cache may hold it.
    """
    what, (start, stop) = f"the edit at step {edit.step}", place.block
    if isinstance(edit.remask, str) and edit.remask not in SELECTORS:
        raise InputError(
            f"{what} masks again what no selector says: {edit.remask!r}. Available: {', '.join(SELECTORS)}"
            f"{'' if 'refusal' in SELECTORS else '; and refusal, once midward.judges is imported'}."
        )
    # What it writes must be tokens, each once, inside the response, and not where something must stay.
    _check_request(model, Request("", edit.write), [], sampling.length)
    windows = {ban.position + i for ban in request.bans for i in range(len(ban.ids))}
    for places, why in ((place.kept, "is forced or frozen"), (windows, "is in the window of a ban")):
        for position in sorted(edit.written.keys() & places):
            raise InputError(f"{what} writes to response position {position}, which {why}; write elsewhere.")
    for position in edit.positions:
        if position >= sampling.length or position in place.kept:
            why = "is forced or frozen" if position in place.kept else f"lies behind the {sampling.length} positions"
            raise InputError(f"{what} masks response position {position} again, which {why}.")
    if edit.remasks and model.family.kind == "canvas":
        raise InputError(
            f"{what} masks tokens again, which says nothing to {model.name!r}: every step draws its canvas anew, and "
            "commits nothing. Write only."
        )
    if edit.remasks and model.family.kind == "autoregressive" and edit.remask != "all":
        behind = set(range(min(edit.positions, default=0), stop)).difference(edit.positions, edit.written, place.kept)
        if behind:
            raise InputError(
                f"{what} masks tokens again and leaves response position {min(behind)}: {model.name!r} is "
                'autoregressive and can only be cut back to a length. Mask "all", or every position from one on.'
            )
    lowest = min([*edit.written, *edit.positions], default=start)
    if lowest < start or (start > 0 and edit.remasks and not edit.positions):
        raise InputError(
            f"{what} reaches below the block that is filled then, which begins at response position {start}: "
            "blocks before it are finished. Edit earlier, give positions in that block, or use block=None."
        )
    if edit.remasks and place.left < 1:
        raise InputError(
            f"{what} masks tokens again in the last step of their block, or after as many steps as there are "
            "positions, so nothing would fill them."
        )


def _check_span(what: str, position: int, ids: tuple[int, ...]) -> None:
    if not isinstance(position, int) or position < 0:
        raise InputError(f"the position of {what} is a response coordinate, 0 or more; received {position!r}.")
    if not isinstance(ids, tuple) or not ids or not all(isinstance(token, int) for token in ids):
        raise InputError(f"the ids of {what} are a non-empty tuple of integers; received {ids!r}.")
