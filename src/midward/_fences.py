"""Texts between fences that they can't close themselves: for prompts that carry what a stranger wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def fence(name: str, texts: Mapping[str, str]) -> tuple[str, str]:
    """Return (number, material): each text under its title between fences that carry the number.

    The number is made from the name and the texts themselves, so that a text can't close its fence: it would have to
    hold its own hash. And the same texts give the same prompt, which a cache needs.
    """
    number = hashlib.sha256(json.dumps([name, *texts.values()]).encode()).hexdigest()[:16]
    material = "".join(f"\n<<<{title} {number}>>>\n{text}\n<<<END {title} {number}>>>" for title, text in texts.items())
    return number, material
