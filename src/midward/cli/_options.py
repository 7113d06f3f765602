"""Flags that several verbs share, and what they stand for."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from midward._flags import BatchSize, Flag
from midward.cli._verb import Given, names
from midward.errors import InputError
from midward.guards.config import guard_file
from midward.models.names import adapter_name, model_name
from midward.runs.workers import workers_of
from midward.sampling import Sampling
from midward.world.world import MODELS

if TYPE_CHECKING:
    from midward.chat import Chat
    from midward.models import LanguageModel

__all__ = ["BatchSize", "Given", "names"]  # a verb finds all that it needs here


def _workers(text: str) -> int | str:
    """As `workers_of`; what several take before the first response is told."""
    from midward.cli._show import say

    if (workers := workers_of(text)) != 1:
        say(f"workers   {workers}: they start, each with a copy of the model, and answer after half a minute or so")
    return workers


def judge_name(name: str) -> str:
    """The name as it is, once a judge of attack success has it; a wrong one is told before torch is imported."""
    from midward.judges.bench import usable

    return usable(name).name


JudgeName = Annotated[
    str | None,
    Flag("The judge; the oracle on the sandbox, else harmfulness.", name="--judges", read=judge_name, grows=True),
]
JudgeModel = Annotated[
    str | None, Flag("The Inspect model that a judge by rubric asks; on the sandbox its scripted assistant.")
]
SharedBy = Annotated[
    int | str,
    Flag(
        "Processes that share the responses, over Ray: a number, or ray for the cluster at RAY_ADDRESS.",
        name="--workers",
        read=_workers,
        free=True,
    ),
]
Overwrite = Annotated[bool, Flag("Start anew where --out holds something already.", free=True)]
Compare = Annotated[
    list[Path] | None,
    Flag("Folder of another model's run, to be compared by goal (or sample); may be given several times.", free=True),
]


@dataclass(frozen=True)
class Placement:
    """Where a model runs, and how exactly.

    Args:
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto, float32, bfloat16 or float16.
        quantize: Quantise the linear layers (needs bitsandbytes).
        device_map: auto: spread the layers over all GPUs, instead of --device.
    """

    device: Annotated[str, Flag(free=True)] = "auto"
    dtype: Annotated[str, Flag()] = "auto"
    quantize: Annotated[Literal["8bit", "4bit"] | None, Flag()] = None
    device_map: Annotated[Literal["auto"] | None, Flag(free=True)] = None


@dataclass(frozen=True)
class ModelOptions(Placement):
    """Which model, and where it runs.

    Args:
        model: sandbox, sandbox-ar, sandbox-block, a checkpoint folder, or a Hub id.
        adapter: Folder of a PEFT adapter made for the model.
    """

    model: Annotated[str, Flag(read=model_name)] = "sandbox"
    adapter: Annotated[str | None, Flag(read=adapter_name)] = None

    @property
    def at_home(self) -> bool:
        """Whether it is one of the models in the package, for which the sandbox's data are the default."""
        return self.model in MODELS

    def load(self, **use: Any) -> Chat:
        """Load it, and say on stderr what was resolved.

        use: what it is for, as `midward.models.memory.estimate` takes it (batch, length, training ...). Raises
        ModelError before anything is read where it can't fit.
        """
        from transformers.utils import logging

        import midward
        from midward.cli._show import say
        from midward.models.threads import spare_threads

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        loaded = midward.load(self.model, **given, use=use, tell=say)
        spare_threads(loaded)
        return loaded


class SamplingOptions(Given[Sampling]):
    """How responses are sampled; what isn't given is the model's own default."""

    always = ("seed",)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        # What hangs on no model is refused before one is loaded.
        Sampling(**{name: self.values[name] for name in ("threshold", "order") if name in self.values})

    @property
    def seed(self) -> int:
        """Of every random draw."""
        return int(self.values.get("seed", Sampling.seed))

    def settings(self, model: LanguageModel, defaults: Mapping[str, Any] | None = None) -> Sampling:
        """The full settings for `model`; what isn't given is as in `defaults`, else the model's own."""
        try:
            return Sampling.for_model(model, defaults, **self.values)
        except TypeError as error:  # of the checkpoint's own generation_config.json
            raise InputError(f"{model.name}: {error}") from None

    def exact(self) -> SamplingOptions:
        """The same without what makes the tokens approximate."""
        return SamplingOptions(**{k: v for k, v in self.values.items() if k not in ("cache", "threshold")})

    def resolve(self, model: LanguageModel, guards: Collection[Path] = (), **defaults: Any) -> Sampling:
        """The full settings for `model`, told on stderr; what isn't given is as `defaults`, or the first of the guards'
        files that is bound to a sampling, has it."""
        from midward.cli._show import say

        fitted_for: dict[str, Any] = {}
        if guards:
            from midward.guards import sampling_of

            fitted_for = next(filter(None, map(sampling_of, guards)), {})
        chosen = self.settings(model, {**defaults, **fitted_for})
        say(
            f"sampling  {chosen.words(model.family.kind)}"
            + (" (what isn't given is as the guard was fitted)" if fitted_for else "")
        )
        return chosen


GuardFile = Annotated[
    Path | None, Flag("A fitted guard's file or folder; flagged responses become a stub.", read=guard_file)
]


def load_behind(model: ModelOptions, sampling: SamplingOptions, guard: Path | None) -> tuple[Chat, Sampling]:
    """The model behind a guard, if one is given, and its settings; those that aren't given are the guard's."""
    from midward.cli._show import say

    if guard is not None:
        from midward import guards

        guards.describe(guard)  # a wrong file is told before the model is loaded
    loaded = model.load()
    chosen = sampling.resolve(loaded, [guard] if guard else [])
    if guard is not None:
        loaded.guard = guards.load(guard, loaded, chosen)
        say(f"guard     {loaded.guard.name} (threshold {loaded.guard.threshold:.4g})")
    return loaded, chosen


def answer(loaded: Chat, chosen: Sampling, rows: list[dict[str, Any]], out: Path, **how: Any) -> list[dict[str, Any]]:
    """A response for every row of a table, as `midward.runs.generate` writes it, with its progress shown."""
    from midward.cli._run import command_line
    from midward.cli._show import StepBar, bar
    from midward.runs.generate import generate as run

    with bar() as progress:
        task = progress.add_task("rows", total=None)
        how |= {"progress": lambda done, total: progress.update(task, completed=done, total=total)}
        how |= {"command": command_line()}
        return run(loaded, rows, out, sampling=chosen, guard=loaded.guard, watchers=[StepBar(progress)], **how)


def pairs(flag: str, texts: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE -> its value, read as YAML. flag: for the error. Raises InputError."""
    import yaml

    values = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"{flag} takes KEY=VALUE; received {text!r}.")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{flag} {name}: {value!r} is no value.") from None
    return values


def labelled(flag: str, texts: Sequence[str] | None, check: Callable[[str], Any]) -> list[tuple[str, str]]:
    """(label, path) of each LABEL=PATH, and ("", path) without a label. A path that is there is one, equals signs and
    all.

    Args:
        flag: for the error.
        texts: as they were given.
        check: raises over a path that isn't there.

    Raises:
        InputError: a label or its path is empty.
    """
    pairs = []
    for text in texts or ():
        label, equals, path = text.partition("=")
        if not equals or os.path.exists(text):
            label, path = "", text
        elif not (label and path):
            raise InputError(f"{flag} takes a path, or LABEL=PATH; received {text!r}.")
        check(path)
        pairs.append((label, path))
    return pairs


def say_harm(names: Sequence[str], column: str | None = None) -> None:
    """Tell of each file of goals that doesn't say which of them are harmful: they all count as it."""
    from midward import goals
    from midward.cli._show import say

    for name in names:
        if not goals.says_harm(name, column):
            say(
                f"note      {name} has no column `harmful`: all of it counts as harmful. Harmless requests belong to "
                "--harmless, or into rows with harmful=false."
            )
