"""Anchors: the mean pooled states, step by step, of generations that answered and of generations that refused (SRI)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from midward._hints import differing
from midward.dynamics.states import LAST, READINGS, REGIONS, PooledStates, steps_of
from midward.errors import InputError, MissingFile
from midward.models import LanguageModel
from midward.sampling import Request, Sampling, sample
from midward.store import replacing

FORMAT = "midward sri anchors 1"
EPS = 1e-8  # the paper's

#: Whether a response refuses; None says that it can't be told, and the response is left out.
Refused = Callable[[str], bool | None]


#: How states are read: (reading, layer).
View = tuple[str, int]


class AnchorsError(InputError):
    """Anchors that can't be fitted, or a file that holds none."""


class AnchorsMismatch(AnchorsError):
    """Anchors of other settings than those at hand; the message says what differs."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """mu_harmless, mu_harmful [T, D] float32, with everything they depend on.

    counts: generations that the two were averaged over. model, adapter: names, for people; fingerprint decides.
    layer, reading, region, needs_all_steps: as `PooledStates` takes them. eps: of the signal's logarithms.
    """

    mu_harmless: torch.Tensor
    mu_harmful: torch.Tensor
    counts: tuple[int, int]
    model: str
    adapter: str | None
    fingerprint: str
    sampling: Sampling
    layer: int = LAST
    reading: str = "response"
    region: str = "response"
    needs_all_steps: bool = True
    eps: float = EPS

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

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays, as `rebuild` takes them."""
        return {"mu_harmless": self.mu_harmless.contiguous(), "mu_harmful": self.mu_harmful.contiguous()}

    def record(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        names = [field.name for field in dataclasses.fields(self) if not field.name.startswith("mu_")]
        return {**{name: getattr(self, name) for name in names}, "sampling": asdict(self.sampling)}

    @classmethod
    def rebuild(cls, tensors: Mapping[str, torch.Tensor], record: Any, where: str) -> Anchors:
        """Make anchors of what a file holds. Raises AnchorsError, naming `where`, for anything that is none."""
        try:
            return cls._rebuild(tensors, record)
        except (KeyError, TypeError, ValueError) as error:
            raise AnchorsError(f"{where} holds no proper anchors: {error}.") from None

    @classmethod
    def _rebuild(cls, tensors: Mapping[str, torch.Tensor], record: Any) -> Anchors:
        names = {field.name for field in dataclasses.fields(cls)} - {"mu_harmless", "mu_harmful"}
        if not isinstance(record, dict) or set(record) != names:
            raise InputError(f"its settings must be {', '.join(sorted(names))}")
        sampling = Sampling(**record["sampling"])
        means = [tensors[name] for name in ("mu_harmless", "mu_harmful")]
        if means[0].shape != means[1].shape or means[0].dim() != 2 or 0 in means[0].shape:
            raise InputError(f"the means have the shapes {[tuple(mean.shape) for mean in means]}")
        if any(mean.dtype != torch.float32 or not mean.isfinite().all() for mean in means):
            raise InputError("the means must be finite float32 numbers")
        if len(means[0]) not in (sampling.steps, sampling.length):
            raise InputError(f"the means have {len(means[0])} steps, the settings {sampling.steps}")
        counts = record["counts"]
        if (
            not isinstance(counts, list | tuple)
            or len(counts) != 2
            or not all(type(n) is int and n > 0 for n in counts)
        ):
            raise InputError(f"counts are two numbers above 0; it has {counts!r}")
        eps = record["eps"]
        if not isinstance(eps, float) or not (math.isfinite(eps) and eps > 0):
            raise InputError(f"eps is a number above 0; it has {eps!r}")
        for name, known in (("reading", READINGS), ("region", REGIONS), ("needs_all_steps", (True, False))):
            if record[name] not in known:
                raise InputError(f"{name} is one of {', '.join(map(str, known))}; it has {record[name]!r}")
        if type(record["layer"]) is not int or record["layer"] < LAST:
            raise InputError(f"layer is a number from -1 on; it has {record['layer']!r}")
        for name in ("model", "fingerprint"):
            if not isinstance(record[name], str):
                raise InputError(f"{name} is a text; it has {record[name]!r}")
        if not isinstance(record["adapter"], str | None):
            raise InputError(f"adapter is a text or nothing; it has {record['adapter']!r}")
        settings = {**record, "sampling": sampling, "counts": tuple(counts)}
        return cls(mu_harmless=means[0], mu_harmful=means[1], **settings)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(self.tensors(), part, metadata={"format": FORMAT, "settings": json.dumps(self.record())})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Anchors:
        """Read what `save` wrote. Raises AnchorsError for any other file, and FileNotFoundError without one."""
        path = Path(path)
        if not path.is_file():
            raise MissingFile(f"there is no file of anchors at {path}.")
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


def fit_anchors(
    model: LanguageModel,
    harmless: Sequence[Request | Any],
    harmful: Sequence[Request | Any],
    *,
    refused: Refused,
    sampling: Sampling | None = None,
    layer: int = LAST,
    reading: str = "response",
    region: str = "response",
    needs_all_steps: bool = True,
    batch_size: int = 16,
    unfinished: Path | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Anchors:
    """Fit anchors for a model and sampling; see `fit_layers`, which this is for one layer and reading."""
    return fit_layers(
        model,
        harmless,
        harmful,
        refused=refused,
        sampling=sampling,
        layers=(layer,),
        readings=(reading,),
        region=region,
        needs_all_steps=needs_all_steps,
        batch_size=batch_size,
        unfinished=unfinished,
        progress=progress,
    )[reading, layer]


def fit_layers(
    model: LanguageModel,
    harmless: Sequence[Request | Any],
    harmful: Sequence[Request | Any],
    *,
    refused: Refused,
    sampling: Sampling | None = None,
    layers: Sequence[int] = (LAST,),
    readings: Sequence[str] = READINGS[:1],
    region: str = "response",
    needs_all_steps: bool = True,
    batch_size: int = 16,
    unfinished: Path | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[View, Anchors]:
    """Fit anchors in several readings and at several layers from the same generations: (reading, layer) -> anchors.

    harmless, harmful: prompts (as `sample` takes them). Of the harmless ones those are averaged that the model
    answered, of the harmful ones those that it refused; `refused` tells from the response's text. The paper takes 400
    each and a dictionary of phrases. One batch's states [B, T, D] are kept at a time. unfinished: a file, named by all
    that the fit depends on, which keeps the sums after every batch: called again, the fit goes on; it is gone at the
    end. `progress` is called with the number of prompts just done.
    Raises AnchorsError where nothing is left of a kind.
    """
    sampling = sampling or Sampling.for_model(model)
    views = [(reading, layer) for reading in readings for layer in layers]
    means: dict[str, dict[View, torch.Tensor]] = {}
    counts = []
    kept = _read_sums(unfinished) if unfinished else {}
    for kind, prompts, wanted in (("harmless", harmless, False), ("harmful", harmful, True)):
        done, count, sums = kept.get(kind, (0, 0, {}))
        progress(done)
        for start in range(done, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            watchers = {
                reading: PooledStates(layers, reading=reading, region=region, needs_all_steps=needs_all_steps)
                for reading in readings
            }
            responses = sample(model, batch, sampling, batch_size=batch_size, watchers=list(watchers.values()))
            for row, response in enumerate(responses):
                if response.error is None and refused(response.text) is wanted:
                    count += 1
                    for view in views:
                        states = watchers[view[0]].states(row, view[1]).double()
                        sums[view] = sums[view] + states if view in sums else states
            kept[kind] = (start + len(batch), count, sums)
            if unfinished:
                _write_sums(unfinished, kept)
            progress(len(batch))
        if not count:
            if unfinished:
                unfinished.unlink(missing_ok=True)
            what = "refused" if wanted else "answered"
            raise AnchorsError(
                f"none of the {len(prompts)} {kind} prompts was {what}, so there is nothing to average; use other "
                "prompts or another sampling."
            )
        means[kind] = {view: (total / count).float() for view, total in sums.items()}
        counts.append(count)
    if unfinished:
        unfinished.unlink(missing_ok=True)
    return {
        (reading, layer): Anchors(
            means["harmless"][reading, layer],
            means["harmful"][reading, layer],
            counts=(counts[0], counts[1]),
            model=model.name,
            adapter=model.adapter,
            fingerprint=model.fingerprint,
            sampling=sampling,
            layer=layer,
            reading=reading,
            region=region,
            needs_all_steps=needs_all_steps,
        )
        for reading, layer in views
    }


#: Kind of prompt -> how many are done, how many of them count, view -> the sum of their states [T, D] float64.
_Sums = dict[str, tuple[int, int, dict[View, torch.Tensor]]]


def _write_sums(path: Path, sums: _Sums) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{kind}.{reading}.{layer}": total
        for kind, (_, _, some) in sums.items()
        for (reading, layer), total in some.items()
    }
    done = {kind: (prompts, count) for kind, (prompts, count, _) in sums.items()}
    with replacing(path) as part:
        save_file(tensors, part, metadata={"done": json.dumps(done)})


def _read_sums(path: Path) -> _Sums:
    """What `_write_sums` wrote; nothing where there is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            done = json.loads((file.metadata() or {})["done"])
            found: _Sums = {kind: (int(prompts), int(count), {}) for kind, (prompts, count) in done.items()}
            for name in file.keys():  # noqa: SIM118
                about, reading, layer = name.split(".")
                found[about][2][reading, int(layer)] = file.get_tensor(name)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError):
        return {}
    return found
