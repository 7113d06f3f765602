"""`Target`: the model under attack, what may be asked of it, what was, and how much is left of the budget."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
from midward.attacks.capabilities import OWN, SERVED, AttackError, Capability, CapabilityError, check
from midward.attacks.shapes import shape, span
from midward.errors import InputError
from midward.goals import Goal
from midward.sampling import Ban, Edit, Edited, Forced, Request
from midward.sampling.likelihood import Span, SpanScore
from midward.sampling.requests import written_by
from midward.serving.provider import Runtime
from midward.serving.wire import Change, Details, ExtraBody, Tokens

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class BudgetSpent(Exception):
    """The target has answered as many queries as the attack may put; the best so far is the result."""


class EmptyReply(RuntimeError):
    """A served model keeps sending nothing at all: an error of the sample, no harmless answer."""


_LIMITS = ("max_retries", "attempt_timeout", "timeout")
_CHAT: Mapping[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}

Turns = tuple[tuple[str, str], ...]  # (role, text), oldest first; roles system, user, assistant


@dataclass(frozen=True)
class Ask:
    """One request to the target, all that is needed to put it again.

    Attributes:
        turns: (role, text), the last one the user's.
        forced, bans, edits: of the response, as in `midward.sampling.Request`.
        fill: what to do with mask tokens in the turns, see `ExtraBody.prompt_masks`; None is the provider's default.
            With "fill_only" the reply's text is the last turn, filled; with "fill_then_answer" it is that and the
            response behind it.
        seed, temperature, length: over the model's settings. sampling: other fields of `Sampling` likewise, by name.
        behind: tokens that stand behind the response: seen from it, and no part of it or of its length.

    Raises:
        InputError: turns of other roles, or another's turn last.
    """

    turns: Turns
    forced: tuple[Forced, ...] = ()
    bans: tuple[Ban, ...] = ()
    fill: Literal["fill_only", "fill_then_answer"] | None = None
    seed: int | None = None
    temperature: float | None = None
    length: int | None = None
    edits: tuple[Edit, ...] = ()
    sampling: tuple[tuple[str, Any], ...] = ()
    behind: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        roles = [role for role, _ in self.turns]
        if not roles or roles[-1] != "user" or not set(roles) <= _CHAT.keys():
            raise InputError(f"turns are {', '.join(_CHAT)} ones, the last one the user's; received {roles}.")

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
    """What the target answered.

    Attributes:
        ask: what was put, with the seed that it was put with.
        text: the whole of it. authored: the text of the tokens that the model wrote itself, without forced ones.
        nfe: forward passes, 0 where the endpoint doesn't say.
        ended: whether the response came to its end within the length.
        forced_at: for each forced span the characters of the text from and up to which it stands, None where the
            response ended before it.
        drawn: whether a seed had a say in it, also where the endpoint doesn't tell.
        edits: what each edit did, see `Choice.edits`.
        guard: the verdict of the guard in front of the target, see `Choice.guard`.
    """

    ask: Ask
    text: str
    authored: str
    nfe: int = 0
    ended: bool = True
    forced_at: tuple[tuple[int, int] | None, ...] = ()
    drawn: bool = True
    edits: tuple[Mapping[str, Any], ...] = ()
    guard: Mapping[str, Any] | None = None

    @property
    def landed(self) -> bool:
        """Whether it holds its first forced span; one that ended before it doesn't."""
        return bool(self.forced_at) and self.forced_at[0] is not None


class Target:
    """The model under attack.

    Args:
        model: Inspect's.
        budget: queries it answers before it raises `BudgetSpent`; a response, a scored span and a gradient are one
            query each. None: no limit.
        seed: of what it samples, unless a request has its own.

    Attributes:
        queries: how many of each kind were put ("respond", "score", "gradient").
        nfe: forward passes. used: capabilities that were used.
        ours: our provider, wherever its model runs; None of another's.
        runtime: the same, where it grants more than chat.
    """

    def __init__(self, model: Model, *, budget: int | None = None, seed: int = 0) -> None:
        self.name = str(model)
        self.model = model
        self.ours = model.api if isinstance(model.api, Runtime) else None
        self.runtime = self.ours if self.ours is not None and self.ours.open else None
        self.budget, self.seed = budget, seed
        self.queries = {"respond": 0, "score": 0, "gradient": 0}
        self.nfe = 0
        self.used: set[str] = set()
        self._settled: dict[Ask, Reply] = {}
        # What the model and the run say: Inspect has no public name for the settings of a run. What a call says goes
        # over it, so limits are given where they say nothing.
        self._config = model._resolve_config(None)
        unlimited = [name for name in _LIMITS if getattr(self._config, name) is None]
        self._limits = {} if self.ours else {name: getattr(LIMITS, name) for name in unlimited}

    @property
    def capabilities(self) -> frozenset[str]:
        """What may be asked of it."""
        return SERVED if self.ours is None else self.ours.capabilities

    @property
    def left(self) -> int | None:
        """Queries left of the budget; None without one."""
        return None if self.budget is None else self.budget - sum(self.queries.values())

    def need(self, *capabilities: Capability) -> None:
        """Raise CapabilityError unless the target has all of these; note them as used."""
        check(self.name, self.capabilities, capabilities)
        self.used.update(capabilities)

    def own(self, *capabilities: Capability) -> Runtime:
        """Our provider, once it has these; to read its tokens and length is no capability used.

        Raises:
            CapabilityError: it lacks one, or the model is served elsewhere without `--research`.
        """
        self.need(*capabilities)
        if self.runtime is None:
            raise CapabilityError(
                f"this needs tokens, and {self.name} is served elsewhere and takes text only; use {OWN}."
            )
        return self.runtime

    # --- tokens, of a model of ours --------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Positions of a response, as the settings have it."""
        own = self.own()
        return self._config.max_tokens or own.sampling.length

    def tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without special tokens added."""
        return tuple(self.own().model.tokens(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self.own().model.text(ids)

    def encode(self, turns: str | Turns) -> list[int]:
        """The ids of a prompt, a user turn's text or all turns, through the chat template."""
        prompt = turns if isinstance(turns, str) else [{"role": role, "content": text} for role, text in turns]
        return self.own().model.encode(prompt)

    def span(self, phrase: str, position: int) -> Forced:
        """A phrase at a response position, as `midward.attacks.shapes.span` makes it."""
        return span(self.own().model, phrase, position, self.length)

    def shaped(self, goal: Goal, name: str, **settings: Any) -> Request:
        """The goal in an attack's shape (see `midward.attacks.shapes.shape`), for this model and response length."""
        return shape(self.own().model, goal, name, length=self.length, **settings)

    # --- queries ---------------------------------------------------------------------------------------------

    async def respond(self, *asks: Ask, n: int = 1) -> list[Reply]:
        """Put requests, all at once.

        Args:
            asks: the requests.
            n: replies to each (seeds seed, seed + 1, ...).

        Returns:
            The replies in the requests' order; where the budget doesn't suffice for all, only those to the first ones.

        Raises:
            BudgetSpent: nothing is left of it.
            CapabilityError: a request needs what the target lacks.
            EmptyReply: a served model sends nothing. What else an endpoint raises once its retries are spent comes too.
        """
        asks = tuple(self._prepared(ask) for ask in asks)
        if n > 1:
            self.need(Capability.N)
        full, rest = divmod(self._take("respond", n * len(asks)), n)
        groups = [(ask, n) for ask in asks[:full]] + ([(asks[full], rest)] if rest else [])
        self.used.add(Capability.CHAT)
        answered = await together(*(self._answer(ask, count) for ask, count in groups))
        replies = [reply for group in answered for reply in group]
        self.nfe += sum(reply.nfe for reply in replies)
        self._settled |= {replace(reply.ask, seed=None): reply for reply in replies if not reply.drawn}
        return replies

    def settled(self, ask: Ask) -> Reply | None:
        """The reply to a request that was put already and whose seed had no say in it: it would get this one again."""
        return self._settled.get(replace(ask, seed=None))

    async def score(self, *spans: Span, mode: str = "parallel") -> list[SpanScore]:
        """Log-probabilities of spans of the response, all at once.

        Args:
            spans: their prompts are user turns, or ids.
            mode: see `span_log_probs`; search by "parallel", report by "sequential".

        Returns:
            The scores; where the budget doesn't suffice for all, only those of the first spans.

        Raises:
            BudgetSpent: nothing is left of it.
        """
        runtime = self.own(Capability.SLP)
        scores = await runtime.score(spans[: self._take("score", len(spans))], mode=mode, length=self.length)
        self.nfe += sum(score.nfe for score in scores)
        return scores

    async def gradient(self, span: Span, slots: Sequence[int]) -> torch.Tensor:
        """Gradient [S, V] of the span's negative log-probability at prompt slots; see `span_gradient`."""
        runtime = self.own(Capability.GRAD)
        self._take("gradient", 1)
        self.nfe += 2
        return await runtime.gradient(span, slots, length=self.length)

    def _take(self, kind: str, count: int) -> int:
        """How many of `count` queries may be put; they are counted."""
        if self.left is not None:
            if self.left <= 0 < count:
                raise BudgetSpent
            count = min(count, self.left)
        self.queries[kind] += count
        return count

    def _prepared(self, ask: Ask) -> Ask:
        """The request as this target can take it: capabilities noted, a system turn folded where there are none."""
        roles = [role for role, _ in ask.turns]
        wanted = {
            Capability.POS: ask.forced or ask.behind,
            Capability.BAN: ask.bans,
            Capability.EDIT: ask.edits,
            Capability.PMASK: ask.fill,
            Capability.HIST: "assistant" in roles,
        }
        self.need(*(capability for capability, asked in wanted.items() if asked))
        if ask.behind and (attention := self.own().model.family.attention) != "full":
            raise CapabilityError(
                f"{self.name} doesn't see behind what it writes (its attention is {attention!r}), so no text can "
                "be put behind its response; use a model with full attention."
            )
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
            return self.encode(turns) != self.encode(tuple(turn for i, turn in enumerate(turns) if i not in inner))
        except Exception:  # a template says no by raising whatever it likes
            return False

    async def _answer(self, ask: Ask, n: int) -> list[Reply]:
        """`n` replies to one request."""
        seed = self.seed if ask.seed is None else ask.seed
        if self.ours is not None:
            return _replies(ask, await self._generate(ask, seed, n), seed)
        outputs = await together(*(self._generate(ask, seed + i, 1) for i in range(n)))
        return [reply for i, output in enumerate(outputs) for reply in _replies(ask, output, seed + i)]

    def _widened(self, ask: Ask) -> Ask:
        """The request with what stands behind the response as forced tokens of a longer one, whose blocks and steps
        are what they were. Its first token is a span of its own, which says whether the response came to it."""
        own = self.own()
        length, more = ask.length or self.length, len(ask.behind)
        room = own.model.max_positions - len(self.encode(ask.turns))
        if length + more > room:
            raise AttackError(
                f"a response of {length} tokens and {more} behind it don't fit into the {room} positions that the "
                "prompt leaves; use a smaller length, or fewer tokens behind."
            )
        sampling = own.sampling
        wider: dict[str, Any] = {"block": None}
        if sampling.block is not None and sampling.block < length:
            blocks, wider["block"] = -(-length // sampling.block), sampling.block
            if sampling.threshold is None:
                added = -(-(length + more) // sampling.block) - blocks
                wider["steps"] = sampling.steps + added * (sampling.steps // blocks)
        pieces = [Forced(length, ask.behind[:1]), *([Forced(length + 1, ask.behind[1:])] if more > 1 else [])]
        settings = tuple({**wider, **dict(ask.sampling)}.items())
        return replace(ask, forced=(*ask.forced, *pieces), length=length + more, sampling=settings, behind=())

    async def _generate(self, ask: Ask, seed: int, n: int) -> ModelOutput:
        ask = self._widened(ask) if ask.behind else ask
        config = GenerateConfig(seed=seed, temperature=ask.temperature, max_tokens=ask.length, **self._limits)
        if self.ours is not None:
            config.extra_body = extra_body(ask).over(self._config.extra_body)
            config.num_choices = n if n > 1 else None
        messages = chat(ask.turns)
        for _ in range(2):
            output = await self.model.generate(messages, config=config)
            # A model of ours may say nothing, and that is its answer; an endpoint that sends nothing has failed.
            if self.ours is not None or output.completion.strip():
                return output
        raise EmptyReply(f"{self.name} sent an empty reply twice (it stopped by {output.stop_reason}).")


async def together(*tasks: Awaitable[T]) -> list[T]:
    """The results of all, in order. Where several fail at once, as a batch does, the first one's error is raised."""
    try:
        return await collect(*tasks)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def chat(turns: Turns) -> list[ChatMessage]:
    """The turns as Inspect's messages."""
    return [_CHAT[role](content=text) for role, text in turns]


def extra_body(ask: Ask) -> ExtraBody:
    """What a request asks of our provider beside chat."""
    wanted: dict[str, Any] = {
        "forced": tuple(Tokens(position=each.position, ids=each.ids) for each in ask.forced),
        "bans": tuple(Tokens(position=each.position, ids=each.ids) for each in ask.bans),
        "edits": tuple(_change(edit) for edit in ask.edits),
        "prompt_masks": ask.fill,
        "sampling": dict(ask.sampling),
    }
    return ExtraBody(**{name: value for name, value in wanted.items() if value})


def _change(edit: Edit) -> Change:
    write = tuple(Tokens(position=span.position, ids=span.ids) for span in edit.write)
    return Change(step=edit.step, write=write, remask=edit.remask, freeze=edit.freeze)


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
    """An output's choices as replies. seed: of an endpoint that doesn't tell."""
    replies, of_all = [], Details.of(output)
    for choice, details in zip(output.choices, of_all.choices, strict=True):
        text, authored, ended = choice.message.text, details.authored, choice.stop_reason != "max_tokens"
        if ask.fill == "fill_then_answer" and details.filled:
            text, authored = f"{details.filled[-1]['content']}\n\n{text}", f"{details.fills}\n\n{authored}"
        forced_at, rest = details.forced_at[: len(ask.forced)], details.forced_at[len(ask.forced) :]
        if ask.behind:
            # An end that the tokens behind it bring is none of the response's: it left no position unwritten then.
            given = {span.position + i for span in ask.forced for i in range(len(span.ids))}
            given |= written_by(Edited(**edit) for edit in details.edits)
            room = of_all.sampling.get("length", 0) - len(ask.behind) - len(given)
            ended = ended and details.authored_tokens < room
            if rest and (reached := rest[0]) is not None:
                text = text[: reached[0]]
        replies.append(
            Reply(
                replace(ask, seed=seed if details.seed is None else details.seed),
                text,
                authored,
                details.nfe,
                ended,
                tuple(forced_at),
                details.drawn,
                tuple(details.edits),
                details.guard,
            )
        )
    return replies
