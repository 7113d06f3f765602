"""The settings of `midward audit`; its flags are derived from them, and nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from midward._flags import Flag, check, prompt_of


@dataclass(frozen=True)
class AuditConfig:
    """What is asked of an endpoint, and how politely.

    Args:
        api: What it speaks; auto asks for OpenAI's chat completions and for SGLang's own /generate.
        model: What the endpoint calls its model; by default the first that it lists.
        plain: A harmless question that the endpoint answers; a guard may stop what it doesn't know.
        mask: How the model's mask token is written, where it is none of the usual spellings.
        api_key_file: A file whose first line is the endpoint's key; else MIDWARD_API_KEY.
        skip: Checks that aren't made, by comma.
        budget: Requests at most.
        rate: Requests a second at most, one at a time.
        timeout: Seconds that an answer may take.
    """

    api: Annotated[Literal["auto", "openai", "sglang"], Flag()] = "auto"
    model: Annotated[str | None, Flag()] = None
    plain: Annotated[str, Flag(read=prompt_of)] = "Say hello."
    mask: Annotated[str | None, Flag()] = None
    api_key_file: Annotated[Path | None, Flag()] = None
    skip: Annotated[tuple[str, ...], Flag()] = ()
    budget: Annotated[int, Flag(min=1)] = 140
    rate: Annotated[float, Flag(min=0.01)] = 2.0
    timeout: Annotated[float, Flag(min=0.1)] = 60.0

    def __post_init__(self) -> None:
        check(self)
