"""`Turn`: a conversation on its way through an engine, whoever asks: what the sampler is asked, and what is said of
what came out of it. Inspect's provider and the server both speak through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from midward.guards import Guard
from midward.sampling import Forced, Request, Response, Sampling
from midward.serving.engine import Engine
from midward.serving.plan import fill_messages, make_requests, mask_token, strip_masks
from midward.serving.wire import Choice, Details, ExtraBody, Masks, Message

Stop = Literal["stop", "max_tokens", "content_filter"]


@dataclass(frozen=True)
class Answer:
    """One choice: its text, why it ends there, and what our runtime says of it."""

    text: str
    stop: Stop
    about: Choice


class Turn:
    """One conversation, to be answered once or several times.

    prompt_ids: of the whole conversation, once it is planned. requests, sampling: what the sampler is asked; the seeds
    are in the requests, so that those with different ones can share a batch.

    Args:
        engine: answers.
        messages: the conversation.
        extra: what is asked beside it.
        masks: what mask tokens in the messages lead to.
        guard: stands in front of the engine.
        shadow: the guard only says what it would have done.
    """

    requests: list[Request]
    sampling: Sampling

    def __init__(
        self,
        engine: Engine,
        messages: list[Message],
        extra: ExtraBody,
        masks: Masks,
        guard: Guard | None = None,
        shadow: bool = False,
    ) -> None:
        token = mask_token(engine)
        self.engine, self.extra, self.guard, self.shadow = engine, extra, guard, shadow
        self.details = Details(
            fingerprint=engine.fingerprint,
            masks=masks,
            prompt_masks=sum(message["content"].count(token) for message in messages) if token else 0,
            choices=[],
        )
        self.messages = strip_masks(token, messages) if token and masks == "strip" else messages
        self.prompt_ids: list[int] = []

    @property
    def refused(self) -> bool:
        """Whether it holds mask tokens that it mustn't."""
        return self.details.masks == "refuse" and self.details.prompt_masks > 0

    def encode(self) -> list[int]:
        """The conversation's ids. Raises InputError for one that the chat template can't follow."""
        self.prompt_ids = self.engine.encode(self.messages)
        return self.prompt_ids

    def plan(self, settings: Mapping[str, Any], count: int) -> None:
        """Make `count` requests with these settings; see `make_requests`, also for what is raised."""
        self.requests, asked = make_requests(self.engine, self.prompt_ids, settings, self.extra, count)
        self.seed, self.sampling = asked.seed, replace(asked, seed=0)
        self.details.sampling = asdict(asked)
        if self.guard is not None and self.guard.bound:
            self.details.uncalibrated = self.guard.elsewhere(asked)
        self.details.forced = [
            {"position": span.position, "ids": list(span.ids), "text": self.engine.model.text(span.ids)}
            for span in self._given(self.requests[0])
        ]

    def answer(self, responses: Sequence[Response]) -> list[Answer]:
        """What is answered, and noted in `details`. Raises ModelError where a response is an error instead."""
        answers = [self.read(i, response) for i, response in enumerate(responses)]
        self.details.choices = [answer.about for answer in answers]
        self.details.nfe = sum(response.nfe for response in responses)
        return answers

    def read(self, index: int, response: Response) -> Answer:
        """The choice of a response to the request of this index. Raises as `answer` does."""
        response.checked()
        drawn = self.sampling.temperature > 0 or self.sampling.order in ("random", "annealed") or self.guard is not None
        about: dict[str, Any] = {"seed": self.seed + index, "drawn": drawn}
        about |= {"nfe": response.nfe, "steps": response.steps}
        verdict = response.verdict
        if verdict is not None:
            about["guard"] = verdict.record()
        if verdict is not None and verdict.flagged and not self.shadow:  # it is the guard's stub
            about |= {"ended": True, "authored": response.text, "authored_tokens": len(response.ids)}
            return Answer(response.text, "content_filter", Choice(**about))
        if self.extra.trace:
            about["trace"] = response.commit_step
        text, ended, record = self._response(self.requests[index], response)
        return Answer(text, "stop" if ended else "max_tokens", Choice(**about, **record))

    def _response(self, request: Request, response: Response) -> tuple[str, bool, dict[str, Any]]:
        """Its text, whether it came to its end, and who wrote what of it."""
        model = self.engine.model
        record: dict[str, Any] = {"ended": response.ended}
        if response.edits:
            record["edits"] = [asdict(edited) for edited in response.edits]
        fills: list[int] = []
        mask_id = model.family.mask_id
        if mask_id is not None and mask_id in self.prompt_ids:
            now = response.prompt_ids + (response.raw_ids if self._fills_only(request) else [])
            fills = [token for before, token in zip(self.prompt_ids, now, strict=True) if before == mask_id]
            filled = fill_messages(self.engine, fills, self.messages)
            record |= {"filled": filled, "fills": model.text(fills)}
        if self._fills_only(request):
            last = max(i for i, message in enumerate(self.messages) if mask_token(self.engine) in message["content"])
            text, ended, written = record["filled"][last]["content"], True, fills
        else:
            forced = self._given(request)
            text, ended = response.text, response.ended
            taken = response.written.union(span.position + i for span in forced for i in range(len(span.ids)))
            written = [token for position, token in enumerate(response.ids) if position not in taken]
            ends = [(span.position, span.position + len(span.ids)) for span in forced]
            record["forced_at"] = [
                (len(model.text(response.ids[:start])), len(model.text(response.ids[:stop])))
                if stop <= len(response.ids)
                else None
                for start, stop in ends
            ]
        return text, ended, record | {"authored": model.text(written), "authored_tokens": len(written)}

    def _fills_only(self, request: Request) -> bool:
        """Whether the request's response is the conversation's own end."""
        return len(request.prompt) < len(self.prompt_ids)

    def _given(self, request: Request) -> tuple[Forced, ...]:
        """The spans that the caller forced."""
        return () if self._fills_only(request) else request.forced
