"""`TraceConfig`: what `midward trace` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from midward._flags import Flag, prompt_of
from midward.dynamics.samplers import SAMPLERS
from midward.errors import InputError
from midward.guards.config import guard_file


@dataclass(frozen=True)
class TraceConfig:
    """A generation to be made, with what watches it and what stands beside it; or recorded traces.

    Args:
        prompt: What is asked, - for standard input; also as --prompt.
        named: The same as PROMPT.
        forced: A text that stands at a response token from the start; repeatable.
        against: What stands beside it: another adapter's folder, base (no adapter), or another sampler of the same
            weights: ar, left-to-right, random ... (see midward dynamics).
        guard: A fitted guard; repeatable: each generation is watched by the one fitted for it.
        anchors: Anchors (guard fit writes them): the SRI signal without a guard; repeatable.
        load: A recorded trace instead of a prompt; twice for two side by side.
        row: Which request of recorded traces.
        page: The page to write; the traces go beside it as .safetensors.
        out: Or a folder of this trace alone: the page and all that midward report needs to show it.
        redact: Leave out what was said, for sharing; no trace is kept.

    Raises:
        InputError: the settings don't go together, or --forced can't be read.
    """

    prompt: Annotated[str | None, Flag(argument=True, read=prompt_of)] = None
    named: Annotated[str | None, Flag(name="--prompt", read=prompt_of)] = None
    forced: Annotated[list[str] | None, Flag(metavar="POSITION:TEXT")] = None
    against: Annotated[str | None, Flag()] = None
    guard: Annotated[list[Path] | None, Flag(read=guard_file)] = None
    anchors: Annotated[list[Path] | None, Flag()] = None
    load: Annotated[list[Path] | None, Flag()] = None
    row: Annotated[int, Flag(min=0)] = 0
    page: Annotated[Path | None, Flag(name="--html")] = None
    out: Annotated[Path | None, Flag(free=True)] = None
    redact: Annotated[bool, Flag()] = False

    def __post_init__(self) -> None:
        if [self.prompt, self.named, self.load].count(None) != 2:
            raise InputError(
                'give a prompt (midward trace "..."; - reads standard input) or a recorded trace (--load FILE), one of '
                "them."
            )
        if (self.page is None) == (self.out is None):
            raise InputError("give --html PAGE or --out FOLDER, one of them.")
        if self.file.suffix not in (".html", ".htm") or self.file.is_dir():
            raise InputError(f"--html takes a file that ends in .html; received {self.file}.")
        for name in ("forced", "against", "guard", "anchors") if self.load else ():
            if getattr(self, name):
                raise InputError(f"--{name} goes with a prompt; a recorded trace is shown as it is.")
        assert self.spans is not None  # it raises

    def beside(self, adapter: str | None) -> tuple[str | None, str]:
        """What `against` names: other weights, or another sampler of the same.

        Args:
            adapter: of the generation itself.

        Returns:
            The other's adapter, and the name of its sampler (empty: the same).

        Raises:
            InputError: it is no adapter's folder, not base and no sampler, or base beside base.
        """
        against = self.against or ""
        if (name := against.replace("_", "-")) in SAMPLERS:
            return adapter, name
        if against == "base":
            if adapter is None:
                raise InputError("--against base needs --adapter: without one the model is its own base.")
            return None, ""
        if not (Path(against) / "adapter_config.json").is_file():
            raise InputError(
                f"--against {against}: no adapter's folder (with an adapter_config.json), not base, and no sampler; "
                f"there are {', '.join(SAMPLERS)}."
            )
        return against, ""

    @property
    def asked(self) -> str:
        """The prompt."""
        return self.prompt or self.named or ""

    def recorded(self, redacted: Callable[[str], str]) -> dict[str, Any]:
        """What was asked, for the record of the run. redacted: of a text, what stands for it with `redact`."""
        words = redacted if self.redact else str
        asked = words(self.asked) if self.asked else None
        return {"prompt": None, "named": asked, "forced": self.forced and list(map(words, self.forced))}

    @property
    def file(self) -> Path:
        """The page."""
        return self.page or Path(self.out or "") / "index.html"

    @property
    def spans(self) -> list[tuple[int, str]]:
        """Response token and text of everything that is forced."""
        spans = []
        for text in self.forced or ():
            at, _, words = text.partition(":")
            if not at.strip().isdecimal() or not words:
                raise InputError(f'--forced is POSITION:TEXT, e.g. "0:Sure, here is"; received {text!r}.')
            spans.append((int(at), words))
        return spans
