"""Anchors of a model and sampling: fitted from its generations, and kept in files that say what they are for (SRI)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from midward._hints import differing
from midward._settings import wrong_in
from midward.dynamics.config import READINGS
from midward.dynamics.looks import CLASSES, GRID
from midward.dynamics.sri import EPS, Mean
from midward.dynamics.states import LAST, PooledStates, steps_of
from midward.errors import InputError, MissingFile
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample
from midward.store import key_of
from midward.tensors import Record, load_tensors, save_tensors

log = logging.getLogger("midward")

#: Whether a response refuses; None says that it can't be told, and the response is left out.
Refused = Callable[[str], bool | None]
#: How states are read: (reading, layer).
View = tuple[str, int]

_Count = Annotated[int, Field(ge=1)]


class AnchorsError(InputError):
    """Anchors that can't be fitted, or a file that holds none."""


#: Why a model may have no refusals.
NO_WORDS = "(An adapter of midward align --method a2d refuses without a word; the guard of it is eos.)"


class NothingToAverage(AnchorsError):
    """None of the harmful prompts was refused, or none of the harmless ones answered."""

    @classmethod
    def of(cls, kind: str, count: int | None = None) -> NothingToAverage:
        """kind: "harmless" prompts of which none was answered, or "harmful" ones of which none was refused; count of
        them."""
        what, hint = ("answered", "") if kind == "harmless" else ("refused", f" {NO_WORDS}")
        prompts = f"{count} {kind} prompts" if count else f"{kind} prompts"
        text = f"none of the {prompts} was {what}, so there is nothing to average"
        return cls(f"{text}; use other prompts or another sampling.{hint}")


class AnchorsMismatch(AnchorsError):
    """Anchors of other settings than those at hand; the message says what differs."""


@dataclass(frozen=True, eq=False, config=ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True))
class Anchors:
    """mu_harmless, mu_harmful [T, D] float32, with everything they depend on.

    counts: generations that the two were averaged over. model, adapter: names, for people; fingerprint decides.
    layer, reading, needs_all_steps: as `PooledStates` takes them. eps: of the signal's logarithms.
    index: what T counts: "step", or "look": (class of block, look) of `midward.dynamics.looks`, which goes with any
        number of steps (`FREE`).
    """

    mu_harmless: torch.Tensor
    mu_harmful: torch.Tensor
    counts: tuple[_Count, _Count]
    model: str
    adapter: str | None
    fingerprint: str
    sampling: Sampling
    layer: Annotated[int, Field(ge=LAST)] = LAST
    reading: Literal["response", "generated"] = "response"
    needs_all_steps: bool = True
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = EPS
    index: Literal["step", "look"] = "step"

    def __post_init__(self) -> None:
        means = (self.mu_harmless, self.mu_harmful)
        if means[0].shape != means[1].shape or means[0].dim() != 2 or 0 in means[0].shape:
            raise InputError(f"the means have the shapes {[tuple(mean.shape) for mean in means]}")
        if any(mean.dtype != torch.float32 or not mean.isfinite().all() for mean in means):
            raise InputError("the means must be finite float32 numbers")
        if self.index == "look":
            if len(means[0]) != CLASSES * len(GRID):
                raise InputError(f"the means have {len(means[0])} looks, where there are {CLASSES * len(GRID)}")
        elif len(means[0]) not in (self.sampling.steps, self.sampling.length):
            raise InputError(f"the means have {len(means[0])} steps, the settings {self.sampling.steps}")

    def check(self, model: LanguageModel, sampling: Sampling) -> None:
        """Raise AnchorsMismatch, saying what differs, unless these are anchors for this model and sampling.

        The seed of the sampling may differ.
        """
        by_step = self.index == "step"
        different = mismatches(self.record(), made_for(model, sampling), but=("seed",) if by_step else FREE)
        shape = (steps_of(model, sampling) if by_step else CLASSES * len(GRID), model.hidden_size)
        if not different and tuple(self.mu_harmless.shape) != shape:
            different.append(f"[T, D] {tuple(self.mu_harmless.shape)} there, {shape} here")
        if different:
            raise AnchorsMismatch(
                f"these anchors were fitted for something else: {'; '.join(different)}. Fit them anew."
            )

    # --- on the disk ------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays, as `rebuild` takes them."""
        return {"mu_harmless": self.mu_harmless.numpy(), "mu_harmful": self.mu_harmful.numpy()}

    def record(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        names = [field.name for field in fields(self) if not field.name.startswith("mu_")]
        return {**{name: getattr(self, name) for name in names}, "sampling": asdict(self.sampling)}

    @property
    def title(self) -> str:
        """How states are read, in words."""
        return f"{self.reading}, {'last layer' if self.layer == LAST else f'layer {self.layer}'}"

    @property
    def digest(self) -> str:
        """16 hex digits over the arrays and their settings."""
        values = {name: value.tolist() for name, value in self.tensors().items()}
        return key_of(**values, record=self.record())

    @classmethod
    def rebuild(cls, tensors: Mapping[str, np.ndarray], record: Any, source: str) -> Anchors:
        """Make anchors of what a file holds.

        Args:
            tensors: as `tensors` gives them.
            record: as `record` gives it; anything that JSON can hold.
            source: what the error calls the file.

        Raises:
            AnchorsError: for anything that is none.
        """
        try:
            settings: dict[str, Any] = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
            record = {"index": "step", **record}  # older files have no other
            if record.get("region") == "response":  # in older files; there is no other one
                record = {name: value for name, value in record.items() if name != "region"}
            settings |= {**record, "sampling": Sampling(**record["sampling"]), "counts": tuple(record["counts"])}
            if lacking := {field.name for field in fields(cls)} - set(settings):
                raise InputError(f"it lacks {min(lacking)}")
            return cls(**settings)
        except ValidationError as error:
            raise AnchorsError(f"{source} holds no proper anchors: {wrong_in(error)}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AnchorsError(f"{source} holds no proper anchors: {error}.") from None

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, self.tensors(), _File(settings=self.record()))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Anchors:
        """Read what `save` wrote. Raises InputError for any other file, and MissingFile without one."""
        record, tensors = load_tensors(path, _File)
        return cls.rebuild(tensors, record.settings, str(path))


def made_for(model: LanguageModel, sampling: Sampling) -> dict[str, Any]:
    """What anchors and guards are bound to, as JSON: model, adapter (names), fingerprint, sampling (its settings)."""
    names = {"model": model.name, "adapter": model.adapter, "fingerprint": model.fingerprint}
    return {**names, "sampling": asdict(sampling)}


#: Settings of `Sampling` that what is read by looks doesn't hang on.
FREE = ("seed", "length", "steps", "threshold", "schedule", "cache")


def mismatches(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    tied_to: Collection[str] = ("model", "sampling"),
    but: Collection[str] = ("seed",),
) -> list[str]:
    """What of `here` isn't what something was fitted for, in words; names may differ.

    Args:
        there: what it was fitted for, as `made_for` has it.
        here: what is at hand, as `made_for` has it.
        tied_to: which of model and sampling must be the same.
        but: settings of the sampling that may differ.
    """
    different = []
    if "model" in tied_to and there["fingerprint"] != here["fingerprint"]:
        alike = ("model", "adapter")
        same = " (other weights of this name, or another --dtype)" * all(there[name] == here[name] for name in alike)
        different.append(f"the model {_titled(there)} there, {_titled(here)} here{same}")
    if "sampling" in tied_to:
        different += differing(there["sampling"], here["sampling"], but=but)
    return different


def _titled(bound: Mapping[str, Any]) -> str:
    adapter = f" with adapter {bound['adapter']!r}" if bound["adapter"] else ""
    return f"{bound['model']!r}{adapter} ({bound['fingerprint']})"


class _File(Record):
    noun: ClassVar[str] = "file of anchors"
    format: ClassVar[str] = "midward sri anchors 1.0"
    again: ClassVar[str] = "fit them anew"
    settings: dict[str, Any]


# --- fitting -------------------------------------------------------------------------------------------------------


def fit_anchors(
    model: LanguageModel,
    harmless: Sequence[Request | Any],
    harmful: Sequence[Request | Any],
    *,
    refused: Refused,
    sampling: Sampling | None = None,
    views: Sequence[View] = ((READINGS[0], LAST),),
    needs_all_steps: bool = True,
    batch_size: int = 16,
    kept: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[View, Anchors]:
    """Fit anchors for a model and sampling, in all views from the same generations; the paper takes 400 prompts each.

    Args:
        harmless: prompts (as `sample` takes them), of which those count that the model answered.
        harmful: prompts, of which those count that it refused.
        refused: tells from a response's text; the paper's is a dictionary of phrases.
        sampling: the model's own unless given.
        views: readings and layers, see `PooledStates`.
        needs_all_steps: of `PooledStates`; False leaves the sampling as it is.
        batch_size: rows of a forward. One batch's states [B, T, D] are kept at a time.
        kept: what the names of files begin with, `<kept>-<reading>-<layer>-<key>.safetensors`, the key over all that
            the anchors depend on. What is there is read; what isn't is fitted and written, and a fit that broke off
            goes on with the batch it was at.
        progress: called with the number of prompts done, and of how many.

    Returns:
        view -> anchors.

    Raises:
        AnchorsError: where nothing is left of a kind, or a file that is there holds no anchors.
    """
    sampling = sampling or Sampling.for_model(model)
    prompts = {"harmless": list(harmless), "harmful": list(harmful)}
    total = len(harmless) + len(harmful)
    # 1. What is there: anchors, or the sums of a fit that broke off.
    paths: dict[View, Path] = {}
    unfinished = None
    if kept is not None:
        depends = {"model": model.fingerprint, "sampling": asdict(sampling), "needs_all_steps": needs_all_steps}
        key = key_of(**depends, prompts=prompts)  # a request by all that its repr says
        for reading, layer in views:
            name = f"{kept.name}-{reading}-{'last' if layer == LAST else layer}-{key}.safetensors"
            paths[reading, layer] = kept.with_name(name)
        unfinished = kept.with_name(f"{kept.name}-{key_of(key=key, views=list(views))}.unfinished")
    fitted = {view: Anchors.load(path) for view, path in paths.items() if path.exists()}
    if len(fitted) == len(views):
        progress(total, total)
        return fitted
    done, means = _resumed(unfinished)
    progress(sum(done.values()), total)
    # 2. States of the generations that count, all views of one stacked: [V, T, D].
    for kind, wanted in (("harmless", False), ("harmful", True)):
        mean = means.setdefault(kind, Mean())
        for start in range(done.get(kind, 0), len(prompts[kind]), batch_size):
            batch = prompts[kind][start : start + batch_size]
            watchers = [
                PooledStates((layer,), reading=reading, needs_all_steps=needs_all_steps) for reading, layer in views
            ]
            responses = sample(model, batch, sampling, batch_size=batch_size, watchers=watchers)
            for row, response in enumerate(responses):
                if response.error is None and refused(response.text) is wanted:
                    mean.add(torch.stack([watcher.states(row) for watcher in watchers]))
            done[kind] = start + len(batch)
            if unfinished:
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                totals = {name: each.total for name, each in means.items() if each.total is not None}
                counts = {name: (done[name], each.count) for name, each in means.items()}
                save_tensors(unfinished, totals, _Unfinished(done=counts))
            progress(sum(done.values()), total)
        if not mean.count:
            if unfinished:
                unfinished.unlink(missing_ok=True)
            raise NothingToAverage.of(kind, len(prompts[kind]))
        if mean.count < len(prompts[kind]) / 2:
            log.warning(
                "anchors: %d of %d %s prompts were %s; the other answers are left out, so the mean is of few.",
                *(mean.count, len(prompts[kind]), kind, "refused" if wanted else "answered"),
            )
    # 3. Their means.
    complying, refusing = means["harmless"], means["harmful"]
    for number, (reading, layer) in enumerate(views):
        if (reading, layer) in fitted:
            continue
        fitted[reading, layer] = Anchors(
            complying.value[number],
            refusing.value[number],
            counts=(complying.count, refusing.count),
            model=model.name,
            adapter=model.adapter,
            fingerprint=model.fingerprint,
            sampling=sampling,
            layer=layer,
            reading=reading,  # type: ignore[arg-type]
            needs_all_steps=needs_all_steps,
        )
        if paths:
            fitted[reading, layer].save(paths[reading, layer])
    if unfinished:
        unfinished.unlink(missing_ok=True)
    return fitted


class _Unfinished(Record):
    """done: kind of prompt -> how many are done, and how many of them count. The tensors are their sums, by kind."""

    noun: ClassVar[str] = "unfinished fit of anchors"
    done: dict[str, tuple[int, int]]


def _resumed(path: Path | None) -> tuple[dict[str, int], dict[str, Mean]]:
    """How many prompts of each kind are done, and their means; nothing without a file, or with a damaged one."""
    try:
        if path is None:
            return {}, {}
        record, tensors = load_tensors(path, _Unfinished)
    except (InputError, MissingFile):
        return {}, {}
    totals = {kind: torch.from_numpy(total) for kind, total in tensors.items()}
    means = {kind: Mean(count, totals.get(kind)) for kind, (_, count) in record.done.items()}
    return {kind: prompts for kind, (prompts, _) in record.done.items()}, means
