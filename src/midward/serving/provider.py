"""The Inspect provider `midward/<model>`: chat with a model of this process, and what only our runtime can do.

`<model>` is what `midward.load` takes: `midward/sandbox`, `midward/org/model`, `midward//path/to/folder`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from inspect_ai._util.error import PrerequisiteError
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
from midward.sampling import Forced, Response, Sampling
from midward.sampling.likelihood import Span, SpanScore
from midward.serving.plan import (
    ExtraBody,
    Masks,
    Message,
    Plan,
    decode,
    fill_messages,
    make_plan,
    make_sampling,
    mask_token,
    read_messages,
    strip_masks,
)
from midward.serving.queue import Engine, shared
from midward.store import key_of

if TYPE_CHECKING:
    import torch

    from midward.models import LanguageModel

logger = logging.getLogger(__name__)

#: What a request with mask tokens is answered with masks="refuse".

_OWN_ARGS = ("adapter", "device", "dtype", "quantize", "device_map", "batch_size", "masks", "guard")
_SETTINGS = tuple(field.name for field in fields(Sampling))
_NO_EFFECT = (
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "best_of",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
)
_UNSUPPORTED = ("stop_seqs", "response_schema")


class ProviderError(PrerequisiteError, ModelError):
    """The model of an evaluation can't be had; told without a traceback by Inspect's command line and by midward's."""


class MidwardAPI(ModelAPI):
    """A model of this process behind Inspect's interface.

    Model arguments: adapter, device, dtype, quantize, device_map as in `midward.load`; batch_size: rows a forward
    (default 32 on a CPU, 64 elsewhere); masks: "allow" (the default: mask tokens written out in a message are masks, as
    for any user of the raw model), "strip" or "refuse" (answers `STUB` with stop reason content_filter); guard: the
    file of a fitted one; and any `Sampling` field.
    What is used of `GenerateConfig`: temperature, max_tokens (the response's length; never more than the model has room
    for), seed, num_choices (choice i is what a single request with seed + i gives), system_message, extra_body (see
    `ExtraBody`). The later of these wins: model's defaults, model arguments, GenerateConfig, extra_body's sampling.
    Without a seed it is 0, so that equal requests get equal responses; draws depend on seed and request, never on what
    else runs.

    The output's metadata: fingerprint (model and adapter), sampling (all settings), forced (the spans), masks (the
    policy), prompt_masks (mask tokens that were sent), nfe (forward passes, all choices together), choices: for each
    its seed, drawn (whether the seed had a say in it), nfe, steps, ended, authored (the text of the tokens the model
    wrote: the completion without forced ones), authored_tokens (their number; the usage's output), forced_at (for each
    forced span the characters of the completion from and up to which it stands, None where the response ended before
    it), where masks were filled filled (the messages as they stand then) and fills (the text of what was put there),
    with a guard its verdict as guard (see `midward.guards.Verdict`), and with trace commit_quarters (mean response
    position of what each quarter of the steps committed).

    Raises ProviderError where the model can't be loaded or an argument is wrong.
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
        self._where = (model_name, adapter, str(device), str(dtype), quantize, device_map)
        self._sampling = sampling
        self._warned: set[str] = set()
        self.masks = masks
        try:
            _check_arguments(batch_size, masks, sampling)
            if guard:
                self._sampling = sampling = {**sampling_of(guard), **sampling}
            engine = shared(*self._where)
            engine.encode("hello")  # without a chat template every sample would fail
            chosen = make_sampling(engine, sampling)
            engine.model.encode("?")  # a model without a chat template can't be asked anything
            self.guard = load_guard(guard, engine.model, chosen) if guard else None
        except (ModelError, TypeError, ValueError) as error:
            message = str(error)
            raise ProviderError(message if model_name in message else f"midward/{model_name}: {message}") from error
        self._engine: Engine | None = engine
        self.batch_size = batch_size or (32 if engine.model.device.type == "cpu" else 64)
        # Inspect's cache of generations knows a model by its name and this, so it holds what else changes an answer.
        self.base_url = "midward:" + key_of(
            fingerprint=engine.fingerprint,
            dtype=str(engine.model.dtype),
            sampling=sampling,
            masks=masks,
            **({"guard": self.guard.digest} if self.guard else {}),
        )

    @property
    def engine(self) -> Engine:
        """The loaded model and its queue; loaded again after `close`."""
        if self._engine is None:
            self._engine = shared(*self._where)
        return self._engine

    @property
    def model(self) -> LanguageModel:
        """The loaded model."""
        return self.engine.model

    @property
    def length(self) -> int:
        """Positions of a response, with the model arguments as they are."""
        return make_sampling(self.engine, self._sampling).length

    @property
    def capabilities(self) -> frozenset[str]:
        """What may be asked of it, by the names of `midward.attacks.Capability`."""
        found = {"CHAT", "HIST", "N", "POS", "BAN", "SLP", "GRAD"}
        cached = make_sampling(self.engine, self._sampling).cache  # which masks in prompts can't follow
        if self.model.family.kind == "diffusion" and self.masks == "allow" and cached is None:
            found.add("PMASK")
        if self.engine.takes_system_turns:
            found.add("SYS")
        return frozenset(found)

    def close(self) -> None:
        """Let go of the model; its memory is free once no other provider holds it."""
        self._engine = None

    def max_connections(self) -> int:
        """Enough to fill two batches. The queue does the rest, whatever Inspect makes of this."""
        return max(100, 2 * self.batch_size)

    def connection_key(self) -> str:
        """One pool of connections a loaded model."""
        return repr(self._where)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation; see the class. Raises InputError for a request that can't be followed."""
        extra = ExtraBody.read(config.extra_body)
        self._check(tools, config)
        engine = self.engine
        messages = read_messages(input)
        masks = extra.masks or self.masks
        token = mask_token(engine)
        sent = sum(message["content"].count(token) for message in messages) if token else 0
        about = {"fingerprint": engine.fingerprint, "masks": masks, "prompt_masks": sent}
        if token and sent and masks == "refuse":
            return _refusal(self.model_name, about, config.num_choices or 1)
        if token and masks == "strip":
            messages = strip_masks(token, messages)

        prompt_ids = engine.encode(messages)
        settings = {**self._settings(engine, prompt_ids, config), **extra.sampling}
        plan = make_plan(engine, prompt_ids, settings, extra, config.num_choices or 1)
        found = await engine.sample(
            plan.requests, plan.sampling, batch_size=self.batch_size, trace=extra.trace, guard=self.guard
        )
        for response, _ in found:
            response.checked()  # an error of this sample, never an answer
        drawn = plan.sampling.temperature > 0 or plan.sampling.order in ("random", "annealed") or self.guard is not None
        choices, details = [], []
        for seed, (response, commit_step) in zip(plan.seeds, found, strict=True):
            if response.verdict is not None and response.verdict.flagged:
                choice, detail = _stub(response, self.model_name)
            else:
                choice, detail = _choice(engine, plan, response, messages, self.model_name)
            if response.verdict is not None:
                detail["guard"] = response.verdict.record()
            if commit_step is not None:
                detail["commit_quarters"] = _quarters(commit_step.tolist())
            choices.append(choice)
            details.append({"seed": seed, "drawn": drawn, **detail})
        tokens = sum(detail["authored_tokens"] for detail in details)
        return ModelOutput(
            model=self.model_name,
            choices=choices,
            usage=ModelUsage(
                input_tokens=len(plan.prompt_ids), output_tokens=tokens, total_tokens=len(plan.prompt_ids) + tokens
            ),
            metadata={
                **about,
                "sampling": asdict(replace(plan.sampling, seed=plan.seeds[0])),
                "forced": [
                    {"position": span.position, "ids": list(span.ids), "text": decode(engine, span.ids)}
                    for span in plan.forced
                ],
                "nfe": sum(response.nfe for response, _ in found),
                "choices": details,
            },
        )

    async def score(
        self, spans: Sequence[Span], *, mode: str, length: int, samples: int = 32, seed: int = 0
    ) -> list[SpanScore]:
        """Return the spans' log-probabilities; see `midward.sampling.likelihood.span_log_probs`."""
        return await self.engine.score(
            spans, mode=mode, length=length, samples=samples, seed=seed, batch_size=self.batch_size
        )

    async def gradient(
        self, span: Span, slots: Sequence[int], *, length: int, drafts: Sequence[tuple[Forced, ...]] = ((),)
    ) -> torch.Tensor:
        """Return the gradient at prompt slots; see `midward.sampling.likelihood.span_gradient`."""
        return await self.engine.gradient(span, slots, length=length, drafts=drafts, batch_size=self.batch_size)

    def _check(self, tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
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
                self._warn(name, f"{name} has no effect on midward/{self.model_name}.")

    def _warn(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning(message)

    def _settings(self, engine: Engine, prompt_ids: list[int], config: GenerateConfig) -> dict[str, Any]:
        """The sampling settings given by model arguments and GenerateConfig."""
        given = dict(self._sampling)
        if config.temperature is not None:
            given["temperature"] = config.temperature
        if config.seed is not None:
            given["seed"] = config.seed
        if config.max_tokens is not None:
            room = engine.model.max_positions - len(prompt_ids)
            given["length"] = max(1, min(config.max_tokens, room))
            if config.max_tokens > room:
                self._warn(
                    "max_tokens",
                    f"max_tokens={config.max_tokens} is more than midward/{self.model_name} has room for behind a "
                    f"prompt of {len(prompt_ids)} tokens; responses get the positions that are left.",
                )
        return given


def _check_arguments(batch_size: Any, masks: Any, sampling: Mapping[str, Any]) -> None:
    for name in sampling:
        if name not in _SETTINGS:
            known = (*_OWN_ARGS, *_SETTINGS)
            raise TypeError(
                f"unknown model argument {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}."
            )
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be an integer, 1 or more; received {batch_size!r}.")
    one_of("masks policy", masks, get_args(Masks))


def _choice(
    engine: Engine, plan: Plan, response: Response, messages: list[Message], model: str
) -> tuple[ChatCompletionChoice, dict[str, Any]]:
    """One choice and its part of the metadata."""
    mask_id = engine.model.family.mask_id
    prompt_ids = response.prompt_ids + (response.raw_ids if plan.fill_only else [])
    detail: dict[str, Any] = {"nfe": response.nfe, "steps": response.steps, "ended": response.ended}
    if mask_id is not None and mask_id in plan.prompt_ids:
        detail["filled"] = fill_messages(engine, plan.prompt_ids, prompt_ids, messages)
        fills = [now for was, now in zip(plan.prompt_ids, prompt_ids, strict=True) if was == mask_id]
        detail["fills"] = decode(engine, fills)
    if plan.fill_only:
        token = mask_token(engine) or ""
        last = max(i for i, message in enumerate(messages) if token in message["content"])
        text, ended, written = detail["filled"][last]["content"], True, fills
    else:
        text, ended = response.text, response.ended
        given = {span.position + i for span in plan.forced for i in range(len(span.ids))}
        written = [token for position, token in enumerate(response.ids) if position not in given]
        detail["forced_at"] = [
            [len(decode(engine, response.ids[:end])) for end in (span.position, span.position + len(span.ids))]
            if span.position + len(span.ids) <= len(response.ids)
            else None
            for span in plan.forced
        ]
    detail |= {"authored": decode(engine, written), "authored_tokens": len(written)}
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=text, model=model, source="generate"),
        stop_reason="stop" if ended else "max_tokens",
    )
    return choice, detail


def _stub(response: Response, model: str) -> tuple[ChatCompletionChoice, dict[str, Any]]:
    """The choice that a guard's stub is, and its part of the metadata."""
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=response.text, model=model, source="generate"),
        stop_reason="content_filter",
    )
    authored = {"authored": response.text, "authored_tokens": len(response.ids)}
    return choice, {"nfe": response.nfe, "steps": response.steps, "ended": True, **authored}


def _quarters(commit_step: list[int]) -> list[float | None]:
    """Mean response position of what was committed in each quarter of the steps, None where nothing was."""
    last = max(commit_step)
    quarters: list[list[int]] = [[], [], [], []]
    for position, step in enumerate(commit_step):
        if step >= 0:
            quarters[4 * step // (last + 1)].append(position)
    return [sum(positions) / len(positions) if positions else None for positions in quarters]


def _refusal(model: str, about: dict[str, Any], count: int) -> ModelOutput:
    output = ModelOutput.from_content(model, STUB, stop_reason="content_filter")
    output.choices = output.choices * count
    detail = {"nfe": 0, "steps": 0, "ended": True, "authored": STUB, "authored_tokens": 0}
    output.metadata = {**about, "nfe": 0, "choices": [detail] * count}
    return output
