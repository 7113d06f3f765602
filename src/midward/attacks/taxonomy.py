"""Where an attack stands in public taxonomies: entries by id and name, as the attack's own record lists them.

Which entries fit is our reading: no taxonomy names the attacks themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from midward.errors import InputError

#: The taxonomies, by the version that the entries are of.
VERSIONS = {
    "OWASP": "OWASP Top 10 for LLM Applications 2025",
    "ATLAS": "MITRE ATLAS 5.6.1",
    "AVID": "AVID taxonomy 0.2",
}
_IDS = {"OWASP": r"LLM\d\d:\d{4}(?= \S)", "ATLAS": r"AML\.T\d{4}(\.\d{3})?(?= \S)", "AVID": r"[SEP]\d{4}(?=: \S)"}

PROMPT_INJECTION = "LLM01:2025 Prompt Injection"  # which jailbreaks are a form of, by its own text
DIRECT_INJECTION = "AML.T0051.000 LLM Prompt Injection: Direct"
JAILBREAK = "AML.T0054 LLM Jailbreak"
#: The prompt hides what it asks for; a search reads the target's answers; a search reads another model's.
OBFUSCATION = "AML.T0068 LLM Prompt Obfuscation"
SEARCH = "AML.T0043.001 Craft Adversarial Data: Black-Box Optimization"
TRANSFER = "AML.T0043.002 Craft Adversarial Data: Black-Box Transfer"
BYPASS = "S0400: Model Bypass"
ADVERSARIAL_EXAMPLE = "S0403: Adversarial Example"

#: A jailbreak by what stands in the prompt, and one by what stands in the response or is kept out of it.
IN_PROMPT = (PROMPT_INJECTION, JAILBREAK, ADVERSARIAL_EXAMPLE)
IN_RESPONSE = (PROMPT_INJECTION, JAILBREAK, BYPASS)


def by_taxonomy(entries: Iterable[str]) -> dict[str, list[str]]:
    """Taxonomy -> those of the entries that are its own.

    Raises:
        InputError: an entry has the form of none.
    """
    sorted_out: dict[str, list[str]] = {name: [] for name in _IDS}
    for entry in entries:
        of = next((name for name, pattern in _IDS.items() if re.match(pattern, entry)), None)
        if of is None:
            raise InputError(
                f"has the taxonomy entry {entry!r}; give an id and its name, like {PROMPT_INJECTION!r}, {JAILBREAK!r} "
                f"or {BYPASS!r}."
            )
        sorted_out[of].append(entry)
    return sorted_out


def ids(entries: Iterable[str]) -> list[str]:
    """The ids of entries, without their names."""
    return [entry.split()[0].removesuffix(":") for entry in entries]
