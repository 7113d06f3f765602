"""The adapter folder's README.md: what the adapter is, what it was trained on, how to use it; no path of a machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from midward.alignment.methods import METHODS


def base_of(name: str) -> str:
    """What to call a model that was loaded by this name: a Hub id as it is, a folder by its own name alone."""
    return Path(name).resolve().name if Path(name).exists() or Path(name).is_absolute() else name


def card(record: Mapping[str, Any]) -> str:
    """The text of the card, card.md.j2 filled in from a run's record (align.json)."""
    template = Environment(  # Markdown, so nothing is escaped
        loader=PackageLoader("midward.alignment", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("card.md.j2")
    method = METHODS[record["config"]["method"]]
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", record["model"]) is not None
    return template.render(record, title=method.title, what=method.what, on_hub=on_hub)
