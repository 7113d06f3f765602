"""`Target`: the model under attack, what may be asked of it, what was, and how much is left of the budget."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
)
from inspect_ai.util import collect

from midward._asking import LIMITS
from midward.attacks.capabilities import OWN, SERVED, Capability, CapabilityError, check
from midward.attacks.capabilities import AttackError as AttackError
from midward.attacks.shapes import shape, span
from midward.errors import InputError
from midward.goals import Goal
from midward.sampling import Forced, Request

if TYPE_CHECKING:
    import torch

    from midward.models import LanguageModel


T = TypeVar("T")


class BudgetSpent(Exception):
    """The target has answered as many queries as the attack may put; the best so far is the result."""


class EmptyReply(RuntimeError):
    """A served model keeps sending nothing at all: an error of the sample, no harmless answer."""


_LIMITS = ("max_retries", "attempt_timeout", "timeout")


@runtime_checkable
class Runtime(Protocol):
    """What a model of this process offers beside chat: `evaluation.provider.MidwardAPI`."""

    @property
    def model(self) -> LanguageModel: ...

    @property
    def capabilities(self) -> frozenset[str]: ...

    @property
    def length(self) -> int: ...

    async def score(self, spans: Sequence[Any], *, mode: str, length: int) -> list[Any]: ...

    async def gradient(
        self, span: Any, slots: Sequence[int], *, length: int, drafts: Sequence[Any] = ((),)
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Piece:
    """Tokens at a response position (0 is the first): `text`, or `ids` where text isn't exact enough (they count)."""

    position: int
    text: str | None = None
    ids: tuple[int, ...] | None = None

    def body(self) -> dict[str, Any]:
        """As in the provider's `extra_body`."""
        what = {"text": self.text} if self.ids is None else {"ids": list(self.ids)}
        return {"position": self.position, **what}


Turns = tuple[tuple[str, str], ...]  # (role, text), oldest first; roles system, user, assistant


@dataclass(frozen=True)
class Ask:
    """One request to the target, all that is needed to put it again.

    turns: (role, text), the last one the user's. A single text is one user turn. forced, bans: see `Piece`; they are of
    the response. fill: what to do with mask tokens in the turns (None: the provider's default), see
    `ExtraBody.prompt_masks`: with "fill_only" the reply's text is the last turn, filled; with "fill_then_answer" it is
    that and the response behind it. seed, temperature, length: over the model's settings.
    """

    turns: Turns
    forced: tuple[Piece, ...] = ()
    bans: tuple[Piece, ...] = ()
    fill: Literal["fill_only", "fill_then_answer"] | None = None
    seed: int | None = None
    temperature: float | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        unknown = [role for role, _ in self.turns if role not in _CHAT]
        if unknown or not self.turns or self.turns[-1][0] != "user":
            raise InputError(
                f"turns are {', '.join(_CHAT)} ones, the last one the user's; "
                f"received {[role for role, _ in self.turns]}."
            )

    @classmethod
    def of(cls, text: str, *, system: str | None = None, **settings: Any) -> Ask:
        """One user turn, behind a system turn where there is one."""
        head: Turns = (("system", system),) if system else ()
        return cls((*head, ("user", text)), **settings)

    @property
    def text(self) -> str:
        """The last turn's text."""
        return self.turns[-1][1]


@dataclass(frozen=True)
class Reply:
    """What the target answered. authored: the text of the tokens it wrote itself, without forced ones. nfe: forward
    passes, 0 where the endpoint doesn't say. ended: whether the response came to its end within the length.
    forced_at: for each forced piece the characters of the text from and up to which it stands, None where the response
    ended before it. drawn: whether a seed had a say in it, also where the endpoint doesn't tell."""

    ask: Ask
    text: str
    authored: str
    nfe: int = 0
    ended: bool = True
    forced_at: tuple[tuple[int, int] | None, ...] = ()
    drawn: bool = True

    @property
    def landed(self) -> bool:
        """Whether it holds its first forced piece; one that ended before it doesn't."""
        return bool(self.forced_at) and self.forced_at[0] is not None


@dataclass(frozen=True)
class Probe:
    """A span of the response whose probability is asked for: tokens `ids` at `position`, with `forced` ones seen."""

    turns: Turns
    position: int
    ids: tuple[int, ...]
    forced: tuple[Piece, ...] = ()


class Target:
    """The model under attack.

    budget: queries it answers before it raises `BudgetSpent`; a response, a scored span and a gradient are one query
    each. None: no limit. seed: of what it samples, unless a request has its own.
    Counts: queries (by kind: "respond", "score", "gradient"), nfe, used (capabilities).
    """

    def __init__(self, model: Model, *, budget: int | None = None, seed: int = 0) -> None:
        self.name = str(model)
        self.model = model
        self.runtime: Runtime | None = model.api if isinstance(model.api, Runtime) else None
        self.budget, self.seed = budget, seed
        self.queries = {"respond": 0, "score": 0, "gradient": 0}
        self.nfe = 0
        self.used: set[str] = set()
        self._settled: dict[Ask, Reply] = {}
        # What the model and the run say; what a call says goes over it, so limits are given where they say nothing.
        self._given = model._resolve_config(None)
        unlimited = [name for name in _LIMITS if getattr(self._given, name) is None]
        self._limits = {} if self.runtime else {name: getattr(LIMITS, name) for name in unlimited}

    @property
    def capabilities(self) -> frozenset[str]:
        """What may be asked of it."""
        return SERVED if self.runtime is None else self.runtime.capabilities

    @property
    def left(self) -> int | None:
        """Queries left of the budget; None without one."""
        return None if self.budget is None else self.budget - sum(self.queries.values())

    def need(self, *capabilities: Capability) -> None:
        """Raise CapabilityError unless the target has all of these; note them as used."""
        check(self.name, self.capabilities, capabilities)
        self.used.update(capabilities)

    @property
    def length(self) -> int:
        """Positions of a response, as the settings have it. Needs our own runtime."""
        own = self._own()
        return self._given.max_tokens or own.length

    def tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without special tokens added."""
        tokenizer = self._own().model.tokenizer
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        tokenizer = self._own().model.tokenizer
        return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def shaped(self, goal: Goal, name: str, **settings: Any) -> Request:
        """The goal in an attack's shape (see `midward.attacks.shapes.shape`), for this model and response length."""
        return shape(self._own().model, goal, name, length=self.length, **settings)

    def span(self, phrase: str, position: int) -> Piece:
        """A phrase at a response position, as `midward.attacks.shapes.span` makes it."""
        return self.pieces(span(self._own().model, phrase, position, self.length))[0]

    def pieces(self, *spans: Forced) -> tuple[Piece, ...]:
        """Forced spans as an `Ask` has them, with their text."""
        return tuple(Piece(each.position, self.decode(each.ids), each.ids) for each in spans)

    def encode(self, turns: Turns) -> list[int]:
        """The prompt's ids, through the chat template."""
        return self._own().model.encode(_messages(turns))

    async def respond(self, *asks: Ask, n: int = 1) -> list[Reply]:
        """Put requests, all at once: `n` replies to each, in the requests' order (seeds seed, seed + 1, ...).

        Where the budget doesn't suffice for all, only the first ones are put and answered; with nothing left
        BudgetSpent is raised. Raises CapabilityError; what the endpoint raises once its retries are spent; EmptyReply.
        """
        asks = tuple(self._prepared(ask) for ask in asks)
        if n > 1:
            self.need(Capability.N)
        groups = [(ask, n) for ask in asks]
        if self.left is not None and self.left < n * len(asks):
            if self.left <= 0:
                raise BudgetSpent
            full, rest = divmod(self.left, n)
            groups = groups[:full] + ([(asks[full], rest)] if rest else [])
        self.queries["respond"] += sum(count for _, count in groups)
        self.used.add(Capability.CHAT)
        found = await together(*(self._one(ask, count) for ask, count in groups))
        replies = [reply for group in found for reply in group]
        self.nfe += sum(reply.nfe for reply in replies)
        self._settled |= {replace(reply.ask, seed=None): reply for reply in replies if not reply.drawn}
        return replies

    def settled(self, ask: Ask) -> Reply | None:
        """The reply to a request that was put already and whose seed had no say in it: it would get this one again."""
        return self._settled.get(replace(ask, seed=None))

    async def score(self, *probes: Probe, mode: str = "parallel") -> list[Any]:
        """Log-probabilities of spans of the response (`midward.sampling.likelihood.SpanScore`), all at once.

        mode: see `span_log_probs`; search by "parallel", report by "sequential". Where the budget doesn't suffice for
        all, only the first ones come back; with nothing left BudgetSpent is raised.
        """
        runtime = self._own(Capability.SLP)
        probes = probes[: self._take("score", len(probes))]
        spans = [self._span(probe) for probe in probes]
        scores = await runtime.score(spans, mode=mode, length=self.length)
        self.nfe += sum(score.nfe for score in scores)
        return scores

    async def gradient(self, probe: Probe, slots: Sequence[int], *, drafts: Sequence[Any] = ((),)) -> torch.Tensor:
        """Gradient [S, V] of the span's negative log-probability at prompt slots; see `span_gradient`."""
        runtime = self._own(Capability.GRAD)
        self._take("gradient", 1)
        self.nfe += 2 * len(drafts)
        return await runtime.gradient(self._span(probe), slots, length=self.length, drafts=drafts)

    def _own(self, *capabilities: Capability) -> Runtime:
        """The runtime, once it has these. Its tokenizer and its length are no capability of the attack's."""
        self.need(*capabilities)
        if self.runtime is None:
            raise CapabilityError(
                f"this needs tokens, and {self.name} is served elsewhere and takes text only; use {OWN}."
            )
        return self.runtime

    def _take(self, kind: str, count: int) -> int:
        """How many of `count` queries may be put; they are counted."""
        if self.left is not None:
            if self.left <= 0:
                raise BudgetSpent
            count = min(count, self.left)
        self.queries[kind] += count
        return count

    def _span(self, probe: Probe) -> Any:
        from midward.sampling.likelihood import Span

        forced = tuple(Forced(one.position, one.ids or self.tokens(one.text or "")) for one in probe.forced)
        return Span(self.encode(probe.turns), probe.position, probe.ids, forced)

    def _prepared(self, ask: Ask) -> Ask:
        """The request as this target can take it: capabilities noted, a system turn folded where there are none."""
        roles = [role for role, _ in ask.turns]
        needed = {
            Capability.POS: bool(ask.forced),
            Capability.BAN: bool(ask.bans),
            Capability.PMASK: ask.fill is not None,
        }
        self.need(*(capability for capability, wanted in needed.items() if wanted))
        if "assistant" in roles:
            self.need(Capability.HIST)
        if "system" in roles:
            if not self._takes_system(ask.turns):
                self.used.add("SYS-folded")
                return replace(ask, turns=_folded(ask.turns))
            self.used.add(Capability.SYS)
        return ask

    def _takes_system(self, turns: Turns) -> bool:
        """Whether the system turns reach the model. A chat template may take one at the head, and none further on."""
        if Capability.SYS not in self.capabilities:
            return False
        inner = [i for i, (role, _) in enumerate(turns) if role == "system" and i > 0]
        if self.runtime is None or not inner:
            return True
        try:
            without = tuple(turn for i, turn in enumerate(turns) if i not in inner)
            return self.encode(turns) != self.encode(without)
        except Exception:  # a template says no by raising whatever it likes
            return False

    async def _one(self, ask: Ask, n: int) -> list[Reply]:
        seed = self.seed if ask.seed is None else ask.seed
        if self.runtime is not None:
            return _replies(ask, await self._generate(ask, seed, n), seed)
        outputs = await together(*(self._generate(ask, seed + i, 1) for i in range(n)))
        return [reply for i, output in enumerate(outputs) for reply in _replies(ask, output, seed + i)]

    async def _generate(self, ask: Ask, seed: int, n: int) -> ModelOutput:
        config = GenerateConfig(seed=seed, temperature=ask.temperature, max_tokens=ask.length, **self._limits)
        if self.runtime is not None:
            body: dict[str, Any] = {
                "forced": [one.body() for one in ask.forced],
                "bans": [one.body() for one in ask.bans],
                "prompt_masks": ask.fill,
            }
            wanted = {key: value for key, value in body.items() if value}
            config.extra_body = {**(self._given.extra_body or {}), **wanted} if wanted else None
            config.num_choices = n if n > 1 else None
        messages = chat(ask.turns)
        for _ in range(2):
            output = await self.model.generate(messages, config=config)
            # A model of ours may say nothing, and that is its answer; an endpoint that sends nothing has failed.
            if self.runtime is not None or output.completion.strip():
                return output
        raise EmptyReply(f"{self.name} sent an empty reply twice (it stopped by {output.stop_reason}).")


async def together(*tasks: Awaitable[T]) -> list[T]:
    """The results of all, in order. Where several fail at once, as a batch does, the first one's error is raised."""
    try:
        return await collect(*tasks)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


_CHAT: Mapping[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def _messages(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def _folded(turns: Turns) -> Turns:
    """System turns put in front of the user turns they precede."""
    folded: list[tuple[str, str]] = []
    waiting: list[str] = []
    for role, text in turns:
        if role == "system":
            waiting.append(text)
        elif role == "user" and waiting:
            folded.append((role, "\n\n".join([*waiting, text])))
            waiting = []
        else:
            folded.append((role, text))
    return tuple(folded)


def _replies(ask: Ask, output: ModelOutput, seed: int) -> list[Reply]:
    details = (output.metadata or {}).get("choices") or [{}] * len(output.choices)
    replies = []
    for choice, detail in zip(output.choices, details, strict=True):
        text = choice.message.text
        authored = detail.get("authored", text)
        if ask.fill == "fill_then_answer" and "filled" in detail:
            text = f"{detail['filled'][-1]['content']}\n\n{text}"
            authored = f"{detail['fills']}\n\n{authored}"
        replies.append(
            Reply(
                replace(ask, seed=detail.get("seed", seed)),
                text,
                authored,
                detail.get("nfe", 0),
                choice.stop_reason != "max_tokens",
                tuple(place and (place[0], place[1]) for place in detail.get("forced_at", ())),
                detail.get("drawn", True),
            )
        )
    return replies


def chat(turns: Turns) -> list[ChatMessage]:
    """The turns as Inspect's messages."""
    return [_CHAT[role](content=text) for role, text in turns]
