"""Settings given by name, checked against the record that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from midward._hints import did_you_mean
from midward.errors import InputError


def read_settings(kind: type[Any], given: Mapping[str, Any], what: str) -> Any:
    """An instance of a pydantic dataclass.

    Args:
        what: whose settings they are, for the error.

    Raises:
        InputError: an unknown setting, with the nearest known one, or a value, with what it should be.
    """
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise InputError(
                f"{what} has no setting {name!r}.{did_you_mean(name, known)} Available: {', '.join(known) or 'none'}."
            )
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        raise InputError(f"{what}: {wrong_in(error)}") from None


def wrong_in(error: ValidationError) -> str:
    """The first thing that pydantic found wrong: where, what, and what was received there; of several parts together
    what alone."""
    first = error.errors()[0]
    place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}; received {first['input']!r:.80}" if place else message


def read_value(kind: type[Any], name: str, text: str, what: str) -> Any:
    """The value of the setting `name` of a dataclass, from `text` on a command line: read as YAML.

    Where the setting is a text it stands as it is, unless it is in quotes, or the word null for none.

    Args:
        what: where it was given, for the error.

    Raises:
        InputError: it is no YAML.
    """
    hint = get_type_hints(kind).get(name)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    is_text = str in kinds
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if is_text:
            return text
        raise InputError(f"{what}: {text!r} is no value.") from None
    quoted = isinstance(value, str) and text.strip()[:1] in ("'", '"')
    none = value is None and text.strip() and NoneType in kinds
    return text if is_text and not (quoted or none) else value
