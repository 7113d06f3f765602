"""What crosses Inspect's interface beside chat: `ExtraBody` on the way to our runtime, `Details` on the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from inspect_ai.model import ModelOutput
from pydantic import BaseModel, ConfigDict, ValidationError

from midward._hints import did_you_mean
from midward._settings import wrong_in
from midward.errors import InputError

#: What a message's mask tokens lead to: they are filled, they are taken out, or the request is refused.
Masks = Literal["allow", "strip", "refuse"]
Message = dict[str, str]


class Strict(BaseModel):
    """What crosses the wire and has no fields but its own, of no types but theirs."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Tokens(Strict):
    """Tokens at a response position: `text` (without special tokens added) or `ids`, one of them."""

    position: int = 0
    text: str | None = None
    ids: tuple[int, ...] | None = None


class Change(Strict):
    """An edit of the canvas, see `midward.sampling.Edit`; `remask` is the name of a selector or response positions."""

    step: int
    write: tuple[Tokens, ...] = ()
    remask: str | tuple[int, ...] = "none"
    freeze: bool = True


class ExtraBody(Strict):
    """What `GenerateConfig(extra_body=...)` may hold for this provider.

    Attributes:
        forced: [{"position": int, "text": str} or {"position": int, "ids": [int]}]: tokens that stand there from the
            start.
        bans: the same form; a sequence that must not stand there. A position that isn't given is 0.
        edits: [{"step": int, "write": [as forced], "remask": str | [int], "freeze": bool}]: changes of the canvas
            after a step, as far as the model's kind takes them (see `midward.sampling.Edit`). remask: "all", "refusal"
            (tokens that phrases of refusal are made of), "none" unless given, or response positions.
        masks: overrides the model argument `masks`.
        prompt_masks: "fill_then_answer": mask tokens in the messages are filled with the response's first block (see
            `Sampling.prompt_masks`); "fill_only": there is no response, the denoiser fills the prompt as one block, and
            the completion is the last message that held masks, filled (as the published DIJA code does on LLaDA).
        sampling: `Sampling` fields for this request alone.
        trace: each choice says when its tokens were committed.
    """

    forced: tuple[Tokens, ...] = ()
    bans: tuple[Tokens, ...] = ()
    edits: tuple[Change, ...] = ()
    masks: Masks | None = None
    prompt_masks: Literal["fill_then_answer", "fill_only"] = "fill_then_answer"
    sampling: dict[str, Any] = {}
    trace: bool = False

    @classmethod
    def read(cls, body: Mapping[str, Any] | None) -> ExtraBody:
        """Check what was given. Raises InputError, naming the key."""
        try:
            return cls.model_validate_json(json.dumps(body or {}))
        except TypeError as error:
            raise InputError(f"extra_body must be JSON: {error}.") from None
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden":
                parts = {1: cls, 3: Change if first["loc"][0] == "edits" else Tokens}
                known = parts.get(len(first["loc"]), Tokens).model_fields
                hint = did_you_mean(str(first["loc"][-1]), known)
                place = ".".join(map(str, first["loc"]))
                raise InputError(f"extra_body: unknown key {place!r}.{hint} Available: {', '.join(known)}.") from None
            raise InputError(f"extra_body: {wrong_in(error)}") from None

    def over(self, body: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """As JSON, over what `body` says; None where both say nothing."""
        own = self.model_dump(mode="json", exclude_unset=True)
        return {**(body or {}), **own} if own else None


class Choice(BaseModel):
    """What our runtime says of one choice of an output beside its text.

    Attributes:
        seed: of its draws, None where nobody says. drawn: whether the seed had a say in it.
        nfe: forward passes. steps: denoising steps. ended: whether it came to its end within the length.
        authored: the text of the tokens that the model wrote: the completion without forced and written ones.
        authored_tokens: their number; the usage's output.
        forced_at: for each forced span the characters of the completion from and up to which it stands; None where the
            response ended before it.
        edits: for each edit its step, and the response positions that it wrote to (`written`) and masked again
            (`remasked`).
        filled: where masks were filled, the messages as they stand then. fills: the text of what was put there.
        guard: with a guard, its verdict (see `midward.guards.Verdict`).
        trace: where it was asked for, the step (from 0) that committed each response position: -1 where none did, -2
            where a forced span or an edit wrote. Of a flagged answer there is none.
    """

    seed: int | None = None
    drawn: bool = True
    nfe: int = 0
    steps: int = 0
    ended: bool = True
    authored: str = ""
    authored_tokens: int = 0
    forced_at: list[tuple[int, int] | None] = []
    edits: list[dict[str, Any]] = []
    filled: list[Message] = []
    fills: str = ""
    guard: dict[str, Any] | None = None
    trace: list[int] | None = None


class Details(BaseModel):
    """The metadata of an output of our runtime.

    Attributes:
        fingerprint: of model and adapter.
        sampling: all settings. forced: the spans, as position, ids and text.
        masks: the policy. prompt_masks: mask tokens that were sent.
        nfe: forward passes, all choices together.
        uncalibrated: with a guard, what of these settings is otherwise than it was calibrated under: its false-positive
            rate isn't known here. Empty where nothing is.
        choices: one record a choice.
    """

    fingerprint: str = ""
    masks: Masks = "allow"
    prompt_masks: int = 0
    sampling: dict[str, Any] = {}
    forced: list[dict[str, Any]] = []
    nfe: int = 0
    uncalibrated: list[str] = []
    choices: list[Choice]

    @classmethod
    def of(cls, output: ModelOutput) -> Details:
        """What an output says of itself; of another provider's only the texts are known."""
        if output.metadata and "choices" in output.metadata:
            return cls.model_validate(output.metadata)
        return cls(choices=[Choice(authored=choice.message.text) for choice in output.choices])

    def metadata(self) -> dict[str, Any]:
        """As JSON for `ModelOutput.metadata`, without what wasn't set."""
        return self.model_dump(mode="json", exclude_unset=True)
