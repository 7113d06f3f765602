"""Options that several verbs share, defined once, and `--recipe`.

A verb takes whole groups as parameters (`model: ModelOptions`); `verb` spreads their fields out as flags.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from midward._hints import did_you_mean
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.chat import Chat
    from midward.models import LanguageModel
    from midward.sampling import Sampling


Quantize = Annotated[
    Literal["8bit", "4bit"] | None, typer.Option(help="Quantise the linear layers (needs bitsandbytes).")
]
DeviceMap = Annotated[
    Literal["auto"] | None, typer.Option(help="auto: spread the layers over all GPUs, instead of --device.")
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: Annotated[str, typer.Option(help="sandbox, sandbox-ar, a checkpoint folder, or a Hub id.")] = "sandbox"
    adapter: Annotated[str | None, typer.Option(help="Folder of a PEFT adapter made for the model.")] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    quantize: Quantize = None
    device_map: DeviceMap = None

    @property
    def at_home(self) -> bool:
        """Whether it is one of the models in the package, for which the sandbox's data are the default."""
        return self.model in ("sandbox", "sandbox-ar")

    def load(self, **use: Any) -> Chat:
        """Load it, and say on stderr what was resolved.

        use: what it is for, as `midward.models.memory.estimate` takes it (batch, length, training ...). Raises
        ModelError before anything is read where it can't fit.
        """
        from transformers.utils import logging

        import midward
        from midward.cli._show import say

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        return midward.load(self.model, **given, use=use, tell=say)


@dataclass(frozen=True)
class SamplingOptions:
    """How responses are sampled; what isn't given is the model's own default."""

    length: Annotated[int | None, typer.Option(min=1, help="Response tokens.")] = None
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None
    block: Annotated[int | None, typer.Option(min=1, help="Tokens of a semi-autoregressive block.")] = None
    order: Annotated[
        Literal["low_confidence", "random", "left_to_right", "entropy", "margin", "annealed"] | None,
        typer.Option(help="Which positions are committed first."),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Commit all tokens at least this probable, instead of by schedule."),
    ] = None
    temperature: Annotated[float | None, typer.Option(min=0, help="0 takes the most probable token.")] = None
    guidance: Annotated[float | None, typer.Option(min=0, help="Classifier-free guidance; 0 is off.")] = None
    end: Annotated[Literal["stop", "keep", "forbid"] | None, typer.Option(help="What an end token does.")] = None
    schedule: Annotated[
        Literal["even", "published"] | None,
        typer.Option(help="How many tokens a step commits: evenly many, or as Dream was published."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0
    cache: Annotated[
        Literal["prefix", "dual"] | None,
        typer.Option(help="Approximate: compute a block and what is behind it, or the block alone."),
    ] = None

    def settings(self, model: LanguageModel, defaults: Mapping[str, Any] | None = None) -> Sampling:
        """The full settings for `model`; what isn't given is as in `defaults`, else the model's own."""
        from midward.sampling import Sampling

        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return Sampling.for_model(model, **{**(defaults or {}), **given})
        except TypeError as error:  # of the checkpoint's own generation_config.json
            raise InputError(f"{model.name}: {error}") from None

    def resolve(self, model: LanguageModel, guards: Collection[Path] = (), **defaults: Any) -> Sampling:
        """The full settings for `model`, told on stderr; what isn't given is as `defaults`, or the first of the guards'
        files that is bound to a sampling, has it."""
        from midward.cli._show import say

        fitted_for: dict[str, Any] = {}
        if guards:
            from midward.guards import sampling_of

            fitted_for = next(filter(None, map(sampling_of, guards)), {})
        chosen = self.settings(model, {**defaults, **fitted_for})
        settings = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
        say(
            f"sampling  {', '.join(f'{name} {value}' for name, value in settings.items() if value is not None)}"
            + (f" (approximate: {chosen.approximate})" if chosen.approximate else "")
            + (" (what isn't given is as the guard was fitted)" if fitted_for else "")
        )
        return chosen


JudgeName = Annotated[
    str | None, typer.Option("--judges", help="The judge; the oracle on the sandbox, else harmfulness.")
]
JudgeModel = Annotated[
    str | None,
    typer.Option(help="The Inspect model that a judge by rubric asks; on the sandbox its scripted assistant."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew where --out holds something already.")]


def names(text: str) -> list[str]:
    """What a flag names, by comma, as given; blanks and empty places are nothing.

    A path that is there is one name, commas and all; so is what ends in one (prefill:PATH, sri:anchors=PATH).
    """

    def is_path(run: str) -> bool:
        return any("," in path and os.path.exists(path) for path in (run, re.split("[:=]", run)[-1]))

    parts, found = text.split(","), []
    while parts:
        runs = {size: ",".join(parts[:size]).strip() for size in range(len(parts), 0, -1)}
        size = next((size for size, run in runs.items() if is_path(run)), 1)
        found.append(runs[size])
        del parts[:size]
    return [name for name in found if name]


def labelled(flag: str, text: str, what: str) -> tuple[str, str]:
    """(label, path) of LABEL=PATH, and ("", path) without a label. A path that is there is one, equals signs and all.

    flag, what: for the error, as in "--adapter takes a folder, or LABEL=FOLDER". Raises InputError.
    """
    if "=" not in text or os.path.exists(text):
        return "", text
    label, _, path = text.partition("=")
    if not (label and path):
        raise InputError(f"{flag} takes {what}; received {text!r}.")
    return label, path


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


Compare = Annotated[
    list[Path] | None,
    typer.Option(help="Folder of another model's run, to be compared by goal (or sample); may be given several times."),
]


#: The verb that runs and its flags: parameter -> (the flag as it is written, its value).
running: ContextVar[tuple[str, dict[str, tuple[str, Any]]]] = ContextVar("running")


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Make a verb of a function: its option groups spread out as flags, and --recipe."""
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(_flag(name, kind, parameter.default))
            continue
        groups[name] = kind
        members = get_type_hints(kind, include_extras=True)
        for member in fields(kind):
            members[member.name].__metadata__[0].rich_help_panel = f"{name.capitalize()} options"
            parameters.append(_flag(member.name, members[member.name], member.default))
    spelled = {parameter.name: _flag_names(parameter) for parameter in parameters}
    known = {flag: parameter for parameter in parameters for flag in spelled[parameter.name]}

    def read(context: typer.Context, path: Path | None) -> None:
        if path is not None and not context.resilient_parsing:
            # The file's entries become the verb's defaults: flags override them.
            context.default_map = {**(context.default_map or {}), **_read_recipe(path, known)}

    option = typer.Option(
        is_eager=True,  # before the flags, whose defaults it sets
        callback=read,
        help="YAML file of this verb's options; flags override it.",
    )
    parameters.append(_flag("recipe", Annotated[Path | None, option], None))

    @functools.wraps(function)
    def run(**given: Any) -> None:
        given.pop("recipe")
        written = {name: "--" + flags[0].replace("_", "-") for name, flags in spelled.items()}
        running.set((function.__name__, {name: (written[name], value) for name, value in given.items()}))
        for name, kind in groups.items():
            given[name] = kind(**{member.name: given.pop(member.name) for member in fields(kind)})
        function(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _flag(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag_names(parameter: inspect.Parameter) -> list[str]:
    """As it may stand in a recipe: --batch-size is batch_size."""
    option = parameter.annotation.__metadata__[0]
    declared = [option.default, *(option.param_decls or ())] if isinstance(option.default, str) else []
    return [name.lstrip("-").replace("-", "_") for name in declared] or [parameter.name]


def _read_recipe(path: Path, known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Parameter name -> value, checked. Raises BadParameter for what no flag of the verb would take."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{path} is no YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise typer.BadParameter(f"{path} must hold options as `name: value`; received {content!r}.")
    defaults = {}
    for name, value in content.items():
        option = str(name).replace("-", "_")
        if option not in known:
            hint = did_you_mean(option, known)
            raise typer.BadParameter(f"{path}: no option {name!r}.{hint} Available: {', '.join(known)}.")
        if value is not None:
            try:
                defaults[known[option].name] = _value(value, known[option].annotation)
            except ValueError as error:
                raise typer.BadParameter(f"{path}: {name}: {error}; received {value!r}.") from None
    return defaults


def _value(value: Any, annotation: Any) -> Any:
    """A value of the annotated type. Strictly: the flag's own parser would quietly take 3.7 for 3, or "no" for yes."""
    from pydantic import TypeAdapter, ValidationError

    kind = annotation.__origin__
    kinds = get_args(kind) or (kind,)
    if Path in kinds:
        kind = str
    elif list[Path] in kinds:
        kind = list[str]
    elif float in kinds and isinstance(value, str):
        return float(value)  # YAML reads 1e-3 as a text
    elif str in kinds and isinstance(value, list):
        value = ",".join(map(str, value))
    elif isinstance(value, Mapping):  # of --set KEY=VALUE
        value = [f"{key}={_yaml(item)}" for key, item in value.items()]
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise InputError(message[0].lower() + message[1:]) from None


def _yaml(value: Any) -> str:
    """As it would stand behind --set KEY=: a text in quotes, that it stays one."""
    import yaml

    quotes = '"' if isinstance(value, str) else None
    return str(yaml.safe_dump(value, default_flow_style=True, default_style=quotes)).strip()
