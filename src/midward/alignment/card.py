"""The adapter folder's README.md, a model card as the Hub reads it: what the adapter is, by which method, on which data
and how to use it; no path of a machine. What was measured of it stands in a region that `midward report --card` fills.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from midward._hints import markdown_text
from midward.alignment.config import AlignError, resolve

if TYPE_CHECKING:
    from midward.alignment.methods import Method

#: The file's name, and the comments around the region of what was measured.
CARD = "README.md"
REGION = ("<!-- midward: measured -->", "<!-- /midward: measured -->")
#: What the Hub shows of an adapter without a licence.
UNKNOWN = "unknown"
#: Settings of the machine, which change nothing about the method.
_MACHINE = {"seed", "micro_batch", "gradient_checkpointing", "log_steps", "save_steps"}


def base_of(name: str) -> str:
    """What to call a model that was loaded by this name: a Hub id as it is, a folder by its own name alone."""
    return Path(name).resolve().name if Path(name).exists() or Path(name).is_absolute() else name


def check_license(name: str) -> str:
    """A licence's name. Raises AlignError where it isn't as the Hub names licences."""
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name):
        raise AlignError(
            f"the licence {name!r} isn't named as the Hub names them; give an identifier like apache-2.0 or other."
        )
    return name


def card(record: Mapping[str, Any], method: Method, license: str = UNKNOWN) -> str:
    """The text of the card.

    Args:
        record: of a run (align.json).
        method: that it was aligned by.
        license: of the adapter, as the Hub names it.
    """
    config, on_hub = record["config"], re.fullmatch(r"[\w.-]+/[\w.-]+", record["model"]) is not None
    names = {"data": "harmful prompts", "benign": "benign prompts", "sentences": "sentences"}
    metadata = ModelCardData(
        library_name="peft",
        base_model=record["model"] if on_hub else None,
        license=license,
        tags=["midward", "lora", "safety", "diffusion-language-model", config["method"]],
        # `datasets` takes ids of the Hub alone, so what is known by its hash has a name of its own.
        training_data=[{"name": words, **record[name]} for name, words in names.items() if record[name]],
        training_method="as published" if _as_published(config, method) else "ours",
    )
    body = _template().render(
        record, title=method.title, what=method.what, method=_method(config, method), region=REGION
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def _set_apart(config: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Settings that aren't as in the method's recipe `paper`, which has a value for them -> that value."""
    paper = resolve({"method": config["method"], "recipe": "paper"}).to_dict()
    kept = {"recipe", *_MACHINE, *method.open}
    return {name: value for name, value in paper.items() if name not in kept and config[name] != value}


def _as_published(config: Mapping[str, Any], method: Method) -> bool:
    return not method.ours and not _set_apart(config, method)


def _method(config: Mapping[str, Any], method: Method) -> str:
    """Whether the paper may stand for it, in sentences."""
    apart = _set_apart(config, method)
    sentences = ["**as published**." if _as_published(config, method) else "**ours**, not as published."]
    if method.ours:
        sentences.append(f"Of the method itself ours is: {method.ours}.")
    if apart:
        differing = ", ".join(f"{name} {_word(config[name])} ({_word(value)} there)" for name, value in apart.items())
        sentences.append(f"Settings that differ from the recipe `paper`: {differing}.")
    if method.open:
        values = ", ".join(f"{name} {_word(config[name])}" for name in method.open)
        sentences.append(f"What the paper leaves open was set here: {values}.")
    return " ".join(sentences)


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("midward.alignment", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Markdown, so nothing is escaped by itself. A literal stands in a block of code, which no backquote of it may end.
    environment.filters |= {"text": markdown_text, "literal": lambda text: json.dumps(text).replace("`", "\\u0060")}
    return environment.get_template("card.md.j2")
