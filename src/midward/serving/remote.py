"""The Inspect provider `midward/<model>` with a base URL: a model on a server of ours, with all that it grants.

Inspect has a place for a server's address and key, `base_url` and `api_key` (`--model-base-url`, `MIDWARD_API_KEY`), as
for `vllm/<model>`; so a model has one name wherever it runs, and so have the rows of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from inspect_ai.model import ChatMessage, GenerateConfig, ModelOutput, ModelUsage
from inspect_ai.tool import ToolChoice, ToolInfo

from midward.errors import InputError
from midward.models import LanguageModel
from midward.models.family import Family
from midward.runs.run import Measured
from midward.sampling import Sampling
from midward.sampling.likelihood import Span, SpanScore
from midward.serving.card import Card, capabilities_of
from midward.serving.client import KEY, Client, ServerError
from midward.serving.plan import read_messages
from midward.serving.provider import ProviderError, Runtime, check_arguments, identity
from midward.serving.spans import GradientBody, GradientRecord, ScoreBody, ScoreRecord, SpanBody
from midward.serving.turn import Stop
from midward.serving.wire import Details, ExtraBody, Masks

#: Spans of one request.
_SPANS = 64
_STOPS: Mapping[str, Stop] = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter"}


class RemoteModel(LanguageModel):
    """What is known here of a model that a server runs: its family and its tokenizer, and no network.

    Args:
        card: what the server says of it.
        tokenizer: its own; None where the server grants none.
    """

    def __init__(self, card: Card, tokenizer: Any) -> None:
        record = {name: tuple(value) if isinstance(value, list) else value for name, value in card.family.items()}
        super().__init__(card.name, Family(**record), tokenizer, None, card.adapter)  # type: ignore[arg-type]
        self.card = card

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, family={self.family.name!r})"

    @property
    def fingerprint(self) -> str:
        """As the server says."""
        return self.card.fingerprint

    @property
    def max_positions(self) -> int:
        """As the server says."""
        return self.card.max_positions


class RemoteAPI(Runtime):
    """A model on a server of ours behind Inspect's interface.

    Equal requests get the answers that `MidwardAPI` gives, with the same `Details`. What may be asked beside chat is
    what the server grants: with `--research` all that our runtime can do, else nothing.

    Args:
        model_name: what the server calls its model.
        base_url: the server's address.
        api_key: one of its keys; that of the environment's `MIDWARD_API_KEY` unless given.
        config: Inspect's settings of generation.
        masks: as in `MidwardAPI`, where the server grants it.
        sampling: fields of `Sampling`.

    Raises:
        ProviderError: there is no such server, it serves another model, or an argument is wrong.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's signature)
        *,
        masks: Masks = "allow",
        **sampling: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [KEY], config)
        self.masks = masks
        try:
            check_arguments(masks, sampling, ("masks",))
            self.client = Client(base_url, self.api_key)
            self.card = card = self.client.card()
            if card.name != model_name:
                raise InputError(f"{self.client.url} serves {card.name!r}; ask for midward/{card.name}.")
            self.open = card.research
            record = self.client.tokenizer() if card.research else None
            self._model = RemoteModel(card, record.tokenizer() if record else None)
            if record:
                record.check(self._model)
            given = dict(card.given)
            if {"steps", "order"} & sampling.keys():  # a threshold gives way to them, see `Sampling.changed`
                given.pop("threshold", None)
            self.arguments = {**given, **sampling}
            _ = self.sampling
        except (ServerError, TypeError, ValueError) as error:
            raise ProviderError(str(error)) from error
        # The same as in the process that serves it: where it runs changes no answer.
        digest = None if card.guard is None or card.shadow else card.guard["digest"]
        policy = masks if card.research else "refuse"
        self.base_url = identity(card.fingerprint, f"torch.{card.dtype}", self.arguments, policy, digest)

    @property
    def model(self) -> RemoteModel:
        """Family and, where the server grants it, tokenizer."""
        return self._model

    @property
    def sampling(self) -> Sampling:
        """As `Runtime` has it."""
        return self._sampling(self.arguments)

    def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
        try:
            return Sampling.for_model(self._model, **settings)
        except TypeError as error:
            raise InputError(str(error)) from None

    @property
    def capabilities(self) -> frozenset[str]:
        """What the server grants, under these settings."""
        granted = frozenset(self.card.capabilities)
        if not self.open:
            return granted
        return capabilities_of(self._model.family.kind, self.sampling, self.masks, "SYS" in granted)

    def measured(self, label: str = "", guard: str | None = None) -> Measured:
        """As the server says; of a guard its name instead of a file."""
        card = self.card
        return Measured(
            name=card.name,
            label=label,
            endpoint=self.client.url,
            fingerprint=card.fingerprint,
            family=card.family["name"],
            adapter=card.adapter,
            dtype=card.dtype,
            device=card.device,
            guard=card.guard["name"] if card.guard else None,
            guard_digest=card.guard["digest"] if card.guard else None,
        )

    def max_connections(self) -> int:
        """The client bounds what is in flight, whatever Inspect makes of this."""
        return 1000

    def connection_key(self) -> str:
        """One pool of connections a server."""
        return self.client.url

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation, as `MidwardAPI` does. Raises InputError for a request that can't be followed, and
        ServerError where there is no answer."""
        extra, messages = ExtraBody.read(config.extra_body), read_messages(input)
        self.check(tools, config)
        room = self._model.max_positions - len(self._model.encode(messages)) if self.open else None
        wanted = extra.model_dump(mode="json", exclude_unset=True)
        wanted["sampling"] = settings = {**self.settings(config, room), **extra.sampling}
        if self.open:  # all of it is said, so that nothing of the server's own comes in
            wanted.setdefault("masks", self.masks)
            wanted["sampling"] = asdict(self._sampling(settings))
        body: dict[str, Any] = {"model": self.card.name, "messages": messages, "midward": wanted}
        if config.num_choices:
            body["n"] = config.num_choices
        answer = await self.client.post("/v1/chat/completions", body)
        try:
            return self._output(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self.client.url} answered what can't be read ({error!r}).") from error

    def _output(self, answer: Any) -> ModelOutput:
        details = Details.model_validate(answer["midward"])
        self._same(details.fingerprint)
        choices = [self.choice(each["message"]["content"], _STOPS[each["finish_reason"]]) for each in answer["choices"]]
        for choice, said in zip(choices, details.choices, strict=True):
            if "authored" not in said.model_fields_set:  # where nothing can be forced, it isn't said
                said.authored = choice.message.text
        usage = None
        if (counted := answer.get("usage")) is not None:
            asked, written = counted["prompt_tokens"], counted["completion_tokens"]
            usage = ModelUsage(input_tokens=asked, output_tokens=written, total_tokens=asked + written)
        return ModelOutput(model=self.model_name, choices=choices, usage=usage, metadata=details.metadata())

    async def score(self, spans: Sequence[Span], *, mode: str, length: int) -> list[SpanScore]:
        """As `Runtime` has it."""
        scores = []
        for start in range(0, len(spans), _SPANS):
            bodies = [SpanBody.of(span) for span in spans[start : start + _SPANS]]
            body = ScoreBody(spans=bodies, mode=mode, length=length)  # type: ignore[arg-type]
            answer = await self.client.post("/midward/score", body.model_dump(mode="json"))
            scores += [ScoreRecord.model_validate(each).score() for each in answer["scores"]]
        return scores

    async def gradient(self, span: Span, slots: Sequence[int], *, length: int) -> torch.Tensor:
        """As `Runtime` has it."""
        body = GradientBody(span=SpanBody.of(span), slots=list(slots), length=length)
        answer = await self.client.post("/midward/gradient", body.model_dump(mode="json"))
        return GradientRecord.model_validate(answer).tensor()

    def _same(self, fingerprint: str) -> None:
        """Raise ServerError where another model answers than the one that was asked for first."""
        if fingerprint != self.card.fingerprint:
            raise ServerError(
                f"{self.client.url} serves another model now ({fingerprint}, it was {self.card.fingerprint}): rows of "
                "two models don't belong together. Serve the first one again, or give another --out."
            )
