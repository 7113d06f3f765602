"""Settings given by name, checked against the record that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from midward._hints import did_you_mean


def read_settings(kind: type[Any], given: Mapping[str, Any], what: str) -> Any:
    """An instance of a pydantic dataclass. what: whose settings they are, for the error.

    Raises ValueError, naming the setting and the nearest known one, or the value and what it should be.
    """
    known = [one.name for one in fields(kind)]
    for name in given:
        if name not in known:
            raise ValueError(
                f"{what} has no setting {name!r}.{did_you_mean(name, known)} "
                f"Available: {', '.join(known) or 'none'}."
            )
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"{what}: {where}: {message[0].lower()}{message[1:]}; received {first['input']!r}."
        ) from None
