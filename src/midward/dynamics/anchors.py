"""Anchors of a model and sampling: fitted from its generations, and kept in files that say what they are for (SRI)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from midward._hints import differing, near_path
from midward.dynamics.sri import EPS, Mean
from midward.dynamics.states import LAST, READINGS, PooledStates, steps_of
from midward.errors import InputError, MissingFile
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample
from midward.store import key_of, replacing

FORMAT = "midward sri anchors 1"

#: Whether a response refuses; None says that it can't be told, and the response is left out.
Refused = Callable[[str], bool | None]
#: How states are read: (reading, layer).
View = tuple[str, int]

_Count = Annotated[int, Field(ge=1)]


class AnchorsError(InputError):
    """Anchors that can't be fitted, or a file that holds none."""


class AnchorsMismatch(AnchorsError):
    """Anchors of other settings than those at hand; the message says what differs."""


@dataclass(frozen=True, eq=False, config=ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True))
class Anchors:
    """mu_harmless, mu_harmful [T, D] float32, with everything they depend on.

    counts: generations that the two were averaged over. model, adapter: names, for people; fingerprint decides.
    layer, reading, region, needs_all_steps: as `PooledStates` takes them. eps: of the signal's logarithms.
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
    region: Literal["response", "prompt"] = "response"
    needs_all_steps: bool = True
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = EPS

    def __post_init__(self) -> None:
        means = (self.mu_harmless, self.mu_harmful)
        if means[0].shape != means[1].shape or means[0].dim() != 2 or 0 in means[0].shape:
            raise InputError(f"the means have the shapes {[tuple(mean.shape) for mean in means]}")
        if any(mean.dtype != torch.float32 or not mean.isfinite().all() for mean in means):
            raise InputError("the means must be finite float32 numbers")
        if len(means[0]) not in (self.sampling.steps, self.sampling.length):
            raise InputError(f"the means have {len(means[0])} steps, the settings {self.sampling.steps}")

    def check(self, model: LanguageModel, sampling: Sampling) -> None:
        """Raise AnchorsMismatch, saying what differs, unless these are anchors for this model and sampling.

        The seed of the sampling may differ.
        """
        different = []
        if self.fingerprint != model.fingerprint:
            theirs = f"{self.model}{f' + {self.adapter}' if self.adapter else ''}"
            ours = f"{model.name}{f' + {model.adapter}' if model.adapter else ''}"
            different.append(
                f"the model {theirs} (fingerprint {self.fingerprint}) there, {ours} ({model.fingerprint}) here"
            )
        different += differing(asdict(self.sampling), asdict(sampling), but=("seed",))
        shape = (steps_of(model, sampling), model.hidden_size)
        if not different and tuple(self.mu_harmless.shape) != shape:
            different.append(f"[T, D] {tuple(self.mu_harmless.shape)} there, {shape} here")
        if different:
            raise AnchorsMismatch(
                f"these anchors were fitted for something else: {'; '.join(different)}. Fit them anew."
            )

    # --- on the disk ------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays, as `rebuild` takes them."""
        return {"mu_harmless": self.mu_harmless.contiguous(), "mu_harmful": self.mu_harmful.contiguous()}

    def record(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        names = [field.name for field in fields(self) if not field.name.startswith("mu_")]
        return {**{name: getattr(self, name) for name in names}, "sampling": asdict(self.sampling)}

    @property
    def digest(self) -> str:
        """16 hex digits over the arrays and their settings."""
        values = {name: value.tolist() for name, value in self.tensors().items()}
        return key_of(**values, record=self.record())

    @classmethod
    def rebuild(cls, tensors: Mapping[str, torch.Tensor], record: Any, source: str) -> Anchors:
        """Make anchors of what a file holds. Raises AnchorsError, naming `source`, for anything that is none."""
        try:
            settings: dict[str, Any] = {
                **tensors,
                **record,
                "sampling": Sampling(**record["sampling"]),
                "counts": tuple(record["counts"]),
            }
            if lacking := {field.name for field in fields(cls)} - set(settings):
                raise InputError(f"it lacks {min(lacking)}")
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}; it has {first['input']!r}"
            raise AnchorsError(f"{source} holds no proper anchors: {why}.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise AnchorsError(f"{source} holds no proper anchors: {error}.") from None

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(self.tensors(), part, metadata={"format": FORMAT, "settings": json.dumps(self.record())})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Anchors:
        """Read what `save` wrote. Raises AnchorsError for any other file, and MissingFile without one."""
        path = Path(path)
        if not path.is_file():
            raise MissingFile(f"there is no file of anchors at {path}.{near_path(path)}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            record = json.loads(metadata.get("settings", ""))
        except (SafetensorError, ValueError, OSError, RecursionError) as error:
            raise AnchorsError(f"{path} is no file of anchors, or a damaged one ({error}).") from None
        if metadata.get("format") != FORMAT:
            raise AnchorsError(f"{path} is no file of anchors: its format is {metadata.get('format')!r}.")
        return cls.rebuild(tensors, record, str(path))


# --- fitting -------------------------------------------------------------------------------------------------------


def fit_anchors(
    model: LanguageModel,
    harmless: Sequence[Request | Any],
    harmful: Sequence[Request | Any],
    *,
    refused: Refused,
    sampling: Sampling | None = None,
    views: Sequence[View] = ((READINGS[0], LAST),),
    region: str = "response",
    needs_all_steps: bool = True,
    batch_size: int = 16,
    kept: Path | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[View, Anchors]:
    """Fit anchors for a model and sampling, in all views from the same generations; the paper takes 400 prompts each.

    Args:
        harmless: prompts (as `sample` takes them), of which those count that the model answered.
        harmful: prompts, of which those count that it refused.
        refused: tells from a response's text; the paper's is a dictionary of phrases.
        sampling: the model's own unless given.
        views: readings and layers, see `PooledStates`.
        region: of `PooledStates`.
        needs_all_steps: of `PooledStates`; False leaves the sampling as it is.
        batch_size: rows of a forward. One batch's states [B, T, D] are kept at a time.
        kept: what the names of files begin with, `<kept>-<reading>-<layer>-<key>.safetensors`, the key over all that
            the anchors depend on. What is there is read; what isn't is fitted and written, and a fit that broke off
            goes on with the batch it was at.
        progress: called with the number of prompts just done.

    Returns:
        view -> anchors.

    Raises:
        AnchorsError: where nothing is left of a kind, or a file that is there holds no anchors.
    """
    sampling = sampling or Sampling.for_model(model)
    settings: dict[str, Any] = {"region": region, "needs_all_steps": needs_all_steps}
    paths: dict[View, Path] = {}
    unfinished = None
    if kept is not None:
        about = {"model": model.fingerprint, "sampling": asdict(sampling), **settings}
        about["prompts"] = [
            [asdict(prompt) if isinstance(prompt, Request) else prompt for prompt in prompts]
            for prompts in (harmless, harmful)
        ]
        for reading, layer in views:
            name = f"{reading}-{'last' if layer == LAST else layer}-{key_of(**about, view=[reading, layer])}"
            paths[reading, layer] = kept.with_name(f"{kept.name}-{name}.safetensors")
        unfinished = kept.with_name(f"{kept.name}-{key_of(**about, views=sorted(views))}.unfinished")
    there = {view: Anchors.load(path) for view, path in paths.items() if path.exists()}
    missing = [view for view in views if view not in there]
    if not missing:
        progress(len(harmless) + len(harmful))
        return there
    layers = {reading: sorted({layer for name, layer in missing if name == reading}) for reading, _ in missing}

    means = _read_means(unfinished) if unfinished else {}
    for kind, prompts, wanted in (("harmless", harmless, False), ("harmful", harmful, True)):
        done, of_kind = means.get(kind, (0, {}))
        of_kind = of_kind or {view: Mean() for view in missing}
        progress(done)
        for start in range(done, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            watchers = {
                reading: PooledStates(numbers, reading=reading, region=region, needs_all_steps=needs_all_steps)
                for reading, numbers in layers.items()
            }
            responses = sample(model, batch, sampling, batch_size=batch_size, watchers=list(watchers.values()))
            for row, response in enumerate(responses):
                if response.error is None and refused(response.text) is wanted:
                    for (reading, layer), mean in of_kind.items():
                        mean.add(watchers[reading].states(row, layer))
            means[kind] = (start + len(batch), of_kind)
            if unfinished:
                _write_means(unfinished, means)
            progress(len(batch))
        if not all(mean.count for mean in of_kind.values()):
            if unfinished:
                unfinished.unlink(missing_ok=True)
            raise AnchorsError(
                f"none of the {len(prompts)} {kind} prompts was {'refused' if wanted else 'answered'}, so there is "
                "nothing to average; use other prompts or another sampling."
            )
        means[kind] = (len(prompts), of_kind)
    for reading, layer in missing:
        complying, refusing = (means[kind][1][reading, layer] for kind in ("harmless", "harmful"))
        there[reading, layer] = Anchors(
            complying.value,
            refusing.value,
            counts=(complying.count, refusing.count),
            model=model.name,
            adapter=model.adapter,
            fingerprint=model.fingerprint,
            sampling=sampling,
            layer=layer,
            reading=reading,  # type: ignore[arg-type]
            **settings,
        )
        if paths:
            there[reading, layer].save(paths[reading, layer])
    if unfinished:
        unfinished.unlink(missing_ok=True)
    return there


#: Kind of prompt -> how many are done, and the mean of each view so far.
_Means = dict[str, tuple[int, dict[View, Mean]]]


def _write_means(path: Path, means: _Means) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors, done = {}, {}
    for kind, (prompts, of_kind) in means.items():
        done[kind] = (prompts, next(iter(of_kind.values())).count)
        for (reading, layer), mean in of_kind.items():
            if mean.total is not None:
                tensors[f"{kind}.{reading}.{layer}"] = mean.total
    with replacing(path) as part:
        save_file(tensors, part, metadata={"done": json.dumps(done)})


def _read_means(path: Path) -> _Means:
    """What `_write_means` wrote; nothing where there is no such file, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            done = json.loads((file.metadata() or {})["done"])
            means: _Means = {kind: (int(prompts), {}) for kind, (prompts, _) in done.items()}
            for name in file.keys():  # noqa: SIM118
                kind, reading, layer = name.split(".")
                means[kind][1][reading, int(layer)] = Mean(int(done[kind][1]), file.get_tensor(name))
    except (SafetensorError, ValueError, KeyError, TypeError, OSError):
        return {}
    return means
