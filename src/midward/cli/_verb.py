"""A verb made of a function: flags derived from what its parameters are, and `--config`.

A parameter is a flag of its own (`Annotated[int, Flag(min=1)] = 100`) or a config dataclass of a room: each of its
fields that carry a `Flag` becomes one. What they are stands in the docstring's `Args:` (see `midward._flags`).
`Given[Config]` are those of its flags that were given, for what is filled up later (by the model's own defaults, by a
recipe's).
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from midward._flags import Flag, flags_of, summary
from midward._hints import did_you_mean, near_path
from midward.errors import InputError

Config = TypeVar("Config")


class Given(Generic[Config]):
    """The settings of a config that were given; a name that wasn't is None."""

    #: Settings whose default holds for every model.
    always: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "values":
            raise AttributeError(name)
        return self.values.get(name)


def names(text: str) -> list[str]:
    """What a flag names, by comma, as given; blanks and empty places are nothing.

    A path that is there is one name, commas and all; so is what ends in one (prefill:PATH, sri:anchors=PATH), and a
    list in brackets (cascade:members=[sri-blocks, energy]).
    """

    def is_path(run: str) -> bool:
        return any("," in path and os.path.exists(path) for path in (run, re.split("[:=]", run)[-1]))

    parts, named = text.split(","), []
    while parts:
        runs = {size: ",".join(parts[:size]).strip() for size in range(len(parts), 0, -1)}
        closed = [size for size, run in runs.items() if run.count("[") == run.count("]")]
        size = next((size for size, run in runs.items() if is_path(run)), min(closed, default=1))
        named.append(runs[size])
        del parts[:size]
    return [name for name in named if name]


@dataclass(frozen=True)
class Option:
    """One flag of a verb.

    Args:
        name: of the parameter, or of the config's field.
        kind: its type; None among its types means that it needn't be given.
        default: what it is where it isn't given, MISSING where it must be.
        flag: what is said of it.
        panel: the heading of --help that it stands under.
        null: whether null, in a file, would be a value other than the default.
    """

    name: str
    kind: Any
    default: Any
    flag: Flag
    panel: str | None = None
    null: bool = False

    @property
    def spellings(self) -> tuple[str, ...]:
        """As it is written, the one that messages use first."""
        return tuple(self.flag.name.split()) or (f"--{self.name.rstrip('_').replace('_', '-')}",)

    @property
    def base(self) -> Any:
        """Its type, None apart."""
        union = get_origin(self.kind) in (Union, UnionType)
        return next(kind for kind in (get_args(self.kind) if union else (self.kind,)) if kind is not NoneType)

    @property
    def read(self) -> Callable[[str], Any] | None:
        """From a text to the value, where the flag takes a text and the config something else."""
        return self.flag.read or (self._by_comma if get_origin(self.base) is tuple else None)

    def _by_comma(self, text: str) -> tuple[Any, ...]:
        from pydantic import TypeAdapter, ValidationError

        given = tuple(dict.fromkeys(names(text)))
        if not given:
            raise InputError(f"{self.spellings[0]} names nothing; received {text!r}.")
        try:
            return TypeAdapter(self.base).validate_python(given)
        except ValidationError as error:
            wrong = error.errors()[0]
            message = f"{self.spellings[0]}, by comma: {_lower(wrong['msg'])}; received {wrong['input']!r}."
            raise InputError(message) from None

    def parameter(self) -> inspect.Parameter:
        """As typer takes it."""
        flag, default = self.flag, self.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default)) or None
        kind = self.base if not self.read else list[str] if get_origin(self.base) is list else str
        if default is None or NoneType in get_args(self.kind):
            kind |= None
        about: dict[str, Any] = {"help": escape(flag.help), "metavar": flag.metavar, "rich_help_panel": self.panel}
        if self.base in (int, float):
            about |= {"min": flag.min, "max": flag.max}
        if flag.argument:
            option: Any = typer.Argument(**about)
        else:  # a truth that is false unless given needs no --no-...
            option = typer.Option(*(self.spellings if flag.name or default is False else ()), **about)
        return _parameter(self.name, kind, option, inspect.Parameter.empty if default is MISSING else default)


#: The verb that runs and its flags: parameter -> (the option, its value).
running: ContextVar[tuple[str, dict[str, tuple[Option, Any]]]] = ContextVar("running")


def verb(function: Callable[..., Any], name: str) -> Callable[..., None]:
    """Make the verb `name` of a function: its configs spread out as flags, what every verb has beside them, and what it
    returns shown."""
    options: dict[str, Option] = {}
    configs: dict[str, Any] = {}
    hints = get_type_hints(function, include_extras=True)
    result, flags = hints.pop("return") is not NoneType, flags_of(function)
    for parameter in inspect.signature(function).parameters.values():
        kind, default = hints[parameter.name], parameter.default
        if _config_of(kind) is None:
            flag, default = flags[parameter.name], MISSING if default is inspect.Parameter.empty else default
            options[parameter.name] = Option(parameter.name, kind.__origin__, default, flag, flag.panel)
            continue
        configs[parameter.name] = kind
        for option in _options_of(kind, f"{parameter.name.capitalize()} options"):
            first = options.setdefault(option.name, option)  # one flag fills every field of its name
            if first.base != option.base and not _config_of(kind).__module__.startswith("midward."):
                raise InputError(f"has a flag {option.spellings[0]} of {option.base}; there is one of {first.base}.")
    known = {
        spelling.lstrip("-").replace("-", "_"): option for option in options.values() for spelling in option.spellings
    }

    def read(context: typer.Context, path: Path | None) -> None:
        if path is not None and not context.resilient_parsing:
            # The file's entries become the verb's defaults: flags override them.
            context.default_map = {**(context.default_map or {}), **_read_config(path, known)}

    config = typer.Option(
        "--config",
        is_eager=True,  # before the flags, whose defaults it sets
        callback=read,
        help="YAML file of this verb's options; flags override it.",
    )
    shown = {
        "config_": (Path | None, None, config),
        "quiet": (bool, False, typer.Option("--quiet", "-q", help="No notes and no progress on stderr.")),
        "verbose": (bool, False, typer.Option("--verbose", "-v", help="Also what the libraries log.")),
        "json_": (bool, False, typer.Option("--json", help="The result as JSON on stdout, and nothing else there.")),
    }
    if not result:
        del shown["json_"]
    parameters = [option.parameter() for option in options.values()]
    parameters += [_parameter(key, kind, told, default) for key, (kind, default, told) in shown.items()]

    @functools.wraps(function)
    def run(**given: Any) -> None:
        from midward.cli import _show

        _show.begin(quiet=given["quiet"], verbose=given["verbose"])
        running.set((name, {option.name: (option, given[option.name]) for option in options.values()}))
        for option in options.values():
            value = given[option.name]
            if option.read and isinstance(value, str | list):
                given[option.name] = option.read(value) if isinstance(value, str) else list(map(option.read, value))
        values = {parameter: _build(kind, given) for parameter, kind in configs.items()}
        returned = function(**{key: values[key] if key in values else given[key] for key in hints})
        if returned is not None:
            _show.result(returned, as_json=given["json_"])

    run.__doc__ = summary(function)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _config_of(kind: Any) -> Any:
    """The config dataclass that a parameter of this type is filled from; None where it is a flag of its own."""
    if is_dataclass(kind):
        return kind
    origin = get_origin(kind) or kind
    if not (isinstance(origin, type) and issubclass(origin, Given)):
        return None
    [base] = get_args(kind) or get_args(origin.__orig_bases__[0])  # type: ignore[attr-defined]
    return base


def _options_of(kind: Any, panel: str) -> Iterator[Option]:
    """The fields of a config that are flags; of `Given` none has a default."""
    config = _config_of(kind)
    flags, plain = flags_of(config), get_type_hints(config)
    for field in fields(config):
        if field.name not in flags:
            continue
        flag, own, null = flags[field.name], plain[field.name], False
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if kind is not config and field.name not in kind.always:
            null = NoneType in get_args(own) and default is not None
            own, default = own | None, None
        yield Option(field.name, own, default, flag, flag.panel or panel, null)


def _build(kind: Any, given: Mapping[str, Any]) -> Any:
    """A config of what was given, or `Given` of it."""
    config = _config_of(kind)
    values = {field.name: given[field.name] for field in fields(config) if field.name in given}
    if kind is not config:
        return kind(**values)
    values = {name: value for name, value in values.items() if value is not None}  # the config's own default
    if hasattr(kind, "__pydantic_config__"):
        from midward._settings import read_settings

        return read_settings(kind, values, "the flags")
    return kind(**values)


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    annotation: Any = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# --- --config ------------------------------------------------------------------------------------------------------


def _read_config(path: Path, known: Mapping[str, Option]) -> dict[str, Any]:
    """Parameter name -> value, checked. Raises BadParameter for what no flag of the verb would take."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise typer.BadParameter(f"there is no file {path}.{near_path(path, folder=False)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{path} is no YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise typer.BadParameter(f"{path} must hold options as `name: value`; received {content!r}.")
    defaults = {}
    for name, value in content.items():
        option = known.get(str(name).replace("-", "_"))
        if option is None:
            hint = did_you_mean(str(name).replace("-", "_"), known)
            raise typer.BadParameter(f"{path}: no option {name!r}.{hint} Available: {', '.join(known)}.")
        if value is None and option.null:
            raise typer.BadParameter(f"{path}: {name}: null is not given; set: {{{option.name}: null}} says none.")
        if value is not None:
            try:
                defaults[option.name] = _value(value, option)
            except ValueError as error:
                raise typer.BadParameter(f"{path}: {name}: {error}; received {value!r}.") from None
    return defaults


def _value(value: Any, option: Option) -> Any:
    """A value of the option's type. Strictly: the flag's own parser would quietly take 3.7 for 3, or "no" for yes."""
    from pydantic import TypeAdapter, ValidationError

    kind: Any = option.base
    if kind is float and isinstance(value, str):
        return float(value)  # YAML reads 1e-3 as a text
    if isinstance(value, Mapping):  # of --set KEY=VALUE
        value = [f"{key}={_yaml(item)}" for key, item in value.items()]
    if option.read and kind is not str and type(value) is int:  # `positions: 40` is one of them
        value = str(value)
    if (option.read or kind is str) and isinstance(value, list) and get_origin(kind) is not list:
        value = ",".join(map(str, value))
    kind = list[str] if kind == list[Path] else str if option.read or kind is Path else kind
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise InputError(_lower(error.errors()[0]["msg"])) from None


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]


def _yaml(value: Any) -> str:
    """As it would stand behind --set KEY=: a text in quotes, that it stays one."""
    import yaml

    quotes = '"' if isinstance(value, str) else None
    return str(yaml.safe_dump(value, default_flow_style=True, default_style=quotes)).strip().removesuffix("\n...")
