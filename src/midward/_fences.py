"""Texts between fences that they can't close themselves: for prompts that carry what a stranger wrote."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

_HEAD = re.compile(r"\[(?P<name>[\w./-]+)\] ")
_FIELD = re.compile(
    r"<<<(?P<title>[A-Z][A-Z0-9 ]*) (?P<number>\w{16})>>>\n(?P<text>.*?)\n<<<END (?P=title) (?P=number)>>>", re.S
)


def fence(name: str, texts: Mapping[str, str]) -> tuple[str, str]:
    """Put each text under its title between fences that carry a number.

    The number is made from the name and the texts themselves, so that a text can't close its fence: it would have to
    hold its own hash. And the same texts give the same prompt, which a cache needs.

    Args:
        name: What the prompt is called.
        texts: Title, in capitals -> text.

    Returns:
        The number, 16 hex digits, and the fenced texts as one.
    """
    number = hashlib.sha256(json.dumps([name, *texts.values()]).encode()).hexdigest()[:16]
    material = "".join(f"\n<<<{title} {number}>>>\n{text}\n<<<END {title} {number}>>>" for title, text in texts.items())
    return number, material


def unfence(prompt: str) -> dict[str, str]:
    """The fenced texts of a prompt: title -> text."""
    return {match["title"]: match["text"] for match in _FIELD.finditer(prompt)}


def fields_of(prompt: str) -> tuple[str, dict[str, str]] | None:
    """A role's prompt read back, as `(name, fields)`; None for a text without a `[name]` in front."""
    head = _HEAD.match(prompt)
    return None if head is None else (head["name"], unfence(prompt))
