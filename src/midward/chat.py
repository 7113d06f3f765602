"""`Chat`: what `midward.load` gives, a model that answers, with a guard in front of it or without.

The rooms below know the `LanguageModel` alone; that a text comes out of one is put together here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from midward import models
from midward.judges.phrases import refusals
from midward.models import LanguageModel
from midward.models.language_model import Message
from midward.sampling import SELECTORS, Response, Sampling, Watcher, sample

if TYPE_CHECKING:
    from midward.guards import Guard

#: An `Edit` can mask again what a response refuses with.
SELECTORS["refusal"] = refusals


class Chat(LanguageModel):
    """A `LanguageModel` that generates.

    guard: the fitted guard that stands in front of `generate`, or None. `midward.sample` is the bare sampler with
    either.
    """

    def __init__(self, model: LanguageModel, guard: Guard | None = None) -> None:
        vars(self).update(vars(model))
        self.guard = guard

    def generate(
        self, prompts: Any, *, batch_size: int = 8, watchers: Sequence[Watcher] = (), **overrides: Any
    ) -> list[Response]:
        """Sample one response per prompt, behind the guard if there is one.

        Args:
            prompts: `Request`s, texts, conversations or lists of token ids; a single text or conversation is one
                prompt.
            batch_size: Rows a forward, 1 or more.
            watchers: See every denoising step.
            overrides: Fields of `Sampling`; the others are the guard's, which is fitted for one sampling, or the
                family's defaults.

        Returns:
            The responses, in the prompts' order. With a guard each carries its verdict, and a flagged one is a stub.

        Raises:
            TypeError: For an unknown setting, or what is no prompt.
            InputError: For a setting or a prompt that can't be followed; GuardError, which is one, for a sampling that
                the guard wasn't fitted for.
        """
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Mapping)):
            prompts = [prompts]
        fitted_for = {} if self.guard is None else self.guard.sampling
        sampling = Sampling.for_model(self, fitted_for, **overrides)
        return self.answer(prompts, sampling, batch_size=batch_size, watchers=watchers)

    def answer(
        self, requests: Sequence[Any], sampling: Sampling, *, batch_size: int = 8, watchers: Sequence[Watcher] = ()
    ) -> list[Response]:
        """`midward.sample` behind the guard, if there is one."""
        run = sample if self.guard is None else self.guard.sample
        return run(self, requests, sampling, batch_size=batch_size, watchers=watchers)


class Conversation:
    """A talk with a model, turn by turn.

    Args:
        model: Answers, behind its guard if it has one.
        sampling: The settings of every turn.
    """

    def __init__(self, model: Chat, sampling: Sampling) -> None:
        self.model = model
        self.sampling = sampling
        self.turns: list[Message] = []

    def say(self, text: str, watchers: Sequence[Watcher] = ()) -> Response:
        """The answer to `text`. A turn that can't be answered (InputError, ModelError) is no part of the talk."""
        asked: list[Message] = [*self.turns, {"role": "user", "content": text}]
        [response] = self.model.answer([asked], self.sampling, watchers=watchers)
        self.turns = [*asked, {"role": "assistant", "content": response.checked().text}]
        return response


def load(
    name: str | Path,
    adapter: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    guard: str | Path | None = None,
    quantize: Literal["8bit", "4bit"] | None = None,
    device_map: Literal["auto"] | dict[str, Any] | None = None,
    **how: Any,
) -> Chat:
    """Load a checkpoint, and what stands in front of it.

    Args:
        name: "sandbox", "sandbox-ar", "sandbox-block", a folder, or a Hub id.
        adapter: Folder or Hub id of a PEFT adapter that was made for the model.
        device: "auto" (a CUDA device where there is one) or any torch device.
        dtype: "auto" (bfloat16 on CUDA, float32 elsewhere), "float32", "bfloat16", "float16" or a torch dtype.
        guard: A fitted guard, a file or folder of `midward guard fit`.
        quantize: "8bit" or "4bit" linear layers, by bitsandbytes.
        device_map: "auto" (layers over all CUDA devices) or module names with their devices; instead of `device`.
        how: What `midward.models.load` takes besides.

    Raises:
        ModelError: Where the checkpoint or the adapter can't be used, see `midward.models.load`.
        GuardError: Where the guard can't be read, or was fitted for another model or adapter.
    """
    model = models.load(name, adapter, device, dtype, quantize, device_map, **how)
    if guard is None:
        return Chat(model)
    from midward import guards  # brings scikit-learn, which a model without a guard has no use for

    return Chat(model, guards.load(guard, model))
