"""The Inspect provider `midward/<model>`: chat with a model of this process, and what only our runtime can do.

With a base URL it is a model on a server instead, see `midward.serving.remote`.

`<model>` is what `midward.load` takes: `midward/sandbox`, `midward/org/model`, `midward//path/to/folder`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from inspect_ai._util.error import PrerequisiteError  # private: see `ProviderError`
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from midward._hints import did_you_mean, one_of
from midward.errors import InputError
from midward.guards import STUB, sampling_of
from midward.guards import load as load_guard
from midward.models import ModelError
from midward.runs.run import Measured
from midward.sampling import Sampling
from midward.sampling.likelihood import Span, SpanScore
from midward.sampling.settings import by_schedule
from midward.serving.card import capabilities_of
from midward.serving.engine import Engine, shared
from midward.serving.plan import make_sampling, read_messages
from midward.serving.turn import Stop, Turn
from midward.serving.wire import Choice, Details, ExtraBody, Masks
from midward.store import key_of

if TYPE_CHECKING:
    import torch

    from midward.models import LanguageModel

logger = logging.getLogger(__name__)

_OWN_ARGS = ("adapter", "device", "dtype", "quantize", "device_map", "batch_size", "masks", "guard")
_SETTINGS = tuple(field.name for field in fields(Sampling))
_NO_EFFECT = (
    *("top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "best_of"),
    *("logprobs", "top_logprobs", "prompt_logprobs"),
)
_UNSUPPORTED = ("stop_seqs", "response_schema")


class ProviderError(PrerequisiteError, ModelError):
    """The model of an evaluation can't be had.

    A `PrerequisiteError`, so that Inspect's command line shows the message without a traceback; Inspect has no public
    name for it.
    """


class Runtime(ModelAPI):
    """Our runtime behind Inspect's interface: in this process (`MidwardAPI`), or on a server (`remote.RemoteAPI`).

    Attributes:
        open: whether it grants more than chat; only then its `model` is there to be asked for tokens.
        masks: the policy for mask tokens in messages.
        arguments: sampling settings over the model's own.
    """

    open = True
    masks: Masks
    arguments: Mapping[str, Any]

    @property
    @abstractmethod
    def model(self) -> LanguageModel:
        """Family and tokenizer of the model; its network too where this process runs it."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """The settings of a request that gives none of its own."""

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[str]:
        """What may be asked of it, by the names of `midward.attacks.Capability`."""

    @abstractmethod
    async def score(self, spans: Sequence[Span], *, mode: str, length: int) -> list[SpanScore]:
        """Return the spans' log-probabilities; see `midward.sampling.likelihood.span_log_probs`."""

    @abstractmethod
    async def gradient(self, span: Span, slots: Sequence[int], *, length: int) -> torch.Tensor:
        """Return the gradient at prompt slots; see `midward.sampling.likelihood.span_gradient`."""

    @abstractmethod
    def measured(self, label: str = "", guard: str | None = None) -> Measured:
        """What a run's record says of it. label: of its rows. guard: the file of the guard in front of it."""

    def choice(self, text: str, stop_reason: Stop) -> ChatCompletionChoice:
        """An answer as Inspect's."""
        message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        return ChatCompletionChoice(message=message, stop_reason=stop_reason)

    def let_go(self) -> None:
        """Free what another model of the run needs; it is there again when it is asked."""

    def check(self, tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
        """Refuse what would change the answer if it were ignored; warn once of what has no effect."""
        if tools:
            raise InputError(f"midward/{self.model_name} can't call tools; received {len(tools)} of them.")
        for name in _UNSUPPORTED:
            if getattr(config, name):
                raise InputError(
                    f"midward/{self.model_name} can't follow {name}; received {getattr(config, name)!r}. "
                    "Leave it out, and cut or check the text afterwards."
                )
        if config.num_choices is not None and config.num_choices < 1:
            raise InputError(f"num_choices must be 1 or more; received {config.num_choices}.")
        for name in _NO_EFFECT:
            if getattr(config, name) is not None:
                self.warn(name, f"{name} has no effect on midward/{self.model_name}.")

    def warn(self, about: str, message: str) -> None:
        """Log a warning, once."""
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message)

    def settings(self, config: GenerateConfig, room: int | None) -> dict[str, Any]:
        """The sampling settings given by model arguments and GenerateConfig.

        Args:
            config: Inspect's.
            room: the positions that are left behind the prompt; None where nobody knows.
        """
        given = dict(self.arguments)
        if config.temperature is not None:
            given["temperature"] = config.temperature
        if config.seed is not None:
            given["seed"] = config.seed
        if config.max_tokens is not None:
            given["length"] = config.max_tokens if room is None else max(1, min(config.max_tokens, room))
            if room is not None and config.max_tokens > room:
                self.warn(
                    "max_tokens",
                    f"max_tokens={config.max_tokens} is more than midward/{self.model_name} has room for behind a "
                    f"prompt of {self.model.max_positions - room} tokens; responses get the positions that are left.",
                )
        return given

    @cached_property
    def _warned(self) -> set[str]:
        return set()


class MidwardAPI(Runtime):
    """A model of this process behind Inspect's interface.

    What is used of `GenerateConfig`: temperature, max_tokens (the response's length; never more than the model has room
    for), seed, num_choices (choice i is what a single request with seed + i gives), system_message, extra_body (see
    `ExtraBody`). The later of these wins: model's defaults, model arguments, GenerateConfig, extra_body's sampling.
    Without a seed it is 0, so that equal requests get equal responses; draws depend on seed and request, never on what
    else runs. The output's metadata are `Details`.

    Args:
        model_name: what `midward.load` takes.
        base_url, api_key: Inspect's; unused.
        config: Inspect's settings of generation.
        adapter, device, dtype, quantize, device_map: as in `midward.load`.
        batch_size: rows a forward; 32 on a CPU and 64 elsewhere unless given.
        masks: "allow": mask tokens written out in a message are masks, as for any user of the raw model; "strip"; or
            "refuse": such a message is answered by `STUB` with stop reason content_filter.
        guard: the file of a fitted one.
        sampling: fields of `Sampling`.

    Raises:
        ProviderError: the model can't be loaded, or an argument is wrong.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's signature)
        *,
        adapter: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Literal["8bit", "4bit"] | None = None,
        device_map: Literal["auto"] | None = None,
        batch_size: int | None = None,
        masks: Masks = "allow",
        guard: str | None = None,
        **sampling: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self._placement = (model_name, adapter, str(device), str(dtype), quantize, device_map)
        self.arguments = sampling
        self.masks = masks
        try:
            if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
                raise InputError(f"batch_size must be an integer, 1 or more; received {batch_size!r}.")
            check_arguments(masks, sampling, _OWN_ARGS)
            if guard:
                self.arguments = sampling = {**sampling_of(guard), **by_schedule(sampling)}
            engine = shared(*self._placement)
            engine.encode("hello")  # without a chat template every sample would fail
            settings = make_sampling(engine, sampling)
            self.guard = load_guard(guard, engine.model, settings) if guard else None
        except (ModelError, TypeError, ValueError) as error:
            message = str(error)
            raise ProviderError(message if model_name in message else f"midward/{model_name}: {message}") from error
        self._engine: Engine | None = engine
        self.batch_size = batch_size or (32 if engine.model.device.type == "cpu" else 64)
        digest = self.guard.digest if self.guard else None
        self.base_url = identity(engine.fingerprint, str(engine.model.dtype), sampling, masks, digest)

    @property
    def engine(self) -> Engine:
        """The loaded model and its thread; loaded again after `close`."""
        if self._engine is None:
            self._engine = shared(*self._placement)
        return self._engine

    @property
    def model(self) -> LanguageModel:
        """The loaded model."""
        return self.engine.model

    @property
    def sampling(self) -> Sampling:
        """The settings of a request that gives none of its own: the model arguments over the model's defaults."""
        return make_sampling(self.engine, self.arguments)

    @property
    def capabilities(self) -> frozenset[str]:
        """What may be asked of it, by the names of `midward.attacks.Capability`."""
        return capabilities_of(self.model.family.kind, self.sampling, self.masks, self.engine.takes_system_turns)

    def measured(self, label: str = "", guard: str | None = None) -> Measured:
        """As `Runtime` has it."""
        return Measured.of(self.model, label=label, guard=guard, digest=self.guard.digest if self.guard else None)

    def close(self) -> None:
        """Let go of the model; its memory is free once no other provider holds it."""
        self._engine = None

    let_go = close

    def max_connections(self) -> int:
        """Enough to fill two batches. The engine does the rest, whatever Inspect makes of this."""
        return max(100, 2 * self.batch_size)

    def connection_key(self) -> str:
        """One pool of connections a loaded model."""
        return repr(self._placement)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation; see the class. Raises InputError for a request that can't be followed."""
        extra = ExtraBody.read(config.extra_body)
        self.check(tools, config)
        count = config.num_choices or 1
        turn = Turn(self.engine, read_messages(input), extra, extra.masks or self.masks, self.guard)
        if turn.refused:
            return self._refused(turn.details, count)
        prompt_ids = turn.encode()
        room = self.model.max_positions - len(prompt_ids)
        turn.plan({**self.settings(config, room), **extra.sampling}, count)
        how: dict[str, Any] = {"batch_size": self.batch_size, "guard": self.guard, "trace": extra.trace}
        responses = await turn.engine.sample(turn.requests, turn.sampling, **how)
        answers = turn.answer(responses)
        tokens = sum(answer.about.authored_tokens for answer in answers)
        usage = ModelUsage(input_tokens=len(prompt_ids), output_tokens=tokens, total_tokens=len(prompt_ids) + tokens)
        choices = [self.choice(answer.text, answer.stop) for answer in answers]
        return ModelOutput(model=self.model_name, choices=choices, usage=usage, metadata=turn.details.metadata())

    async def score(self, spans: Sequence[Span], *, mode: str, length: int) -> list[SpanScore]:
        """Return the spans' log-probabilities; see `midward.sampling.likelihood.span_log_probs`."""
        return await self.engine.score(spans, mode=mode, length=length, batch_size=self.batch_size)

    async def gradient(self, span: Span, slots: Sequence[int], *, length: int) -> torch.Tensor:
        """Return the gradient at prompt slots; see `midward.sampling.likelihood.span_gradient`."""
        return await self.engine.gradient(span, slots, length=length, batch_size=self.batch_size)

    def _refused(self, details: Details, count: int) -> ModelOutput:
        """The answer to masks in a message where the policy is to refuse."""
        output = ModelOutput.from_content(self.model_name, STUB, stop_reason="content_filter")
        output.choices = output.choices * count
        details.nfe, details.choices = 0, [Choice(nfe=0, steps=0, ended=True, authored=STUB, authored_tokens=0)] * count
        output.metadata = details.metadata()
        return output


def identity(fingerprint: str, dtype: str, sampling: Mapping[str, Any], masks: Masks, guard: str | None) -> str:
    """What a provider has as its base URL: Inspect's cache of generations knows a model by its name and this, so it
    holds what else changes an answer. guard: its digest."""
    key = key_of(
        fingerprint=fingerprint, dtype=dtype, sampling=sampling, masks=masks, **({"guard": guard} if guard else {})
    )
    return f"midward:{key}"


def check_arguments(masks: Any, sampling: Mapping[str, Any], others: Sequence[str]) -> None:
    """Raise InputError or TypeError for a policy or a setting that there isn't. others: arguments that there are."""
    for name in sampling:
        if name not in _SETTINGS:
            known = (*others, *_SETTINGS)
            raise TypeError(
                f"unknown model argument {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}."
            )
    one_of("masks policy", masks, get_args(Masks))
