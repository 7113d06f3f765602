"""The settings of `midward serve`; its flags are derived from them, and nothing here needs torch."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from midward._flags import Flag, check
from midward._hints import near_path
from midward.errors import InputError, MissingFile

#: Bytes of a key file; anything larger is no list of keys.
_LARGEST_KEYS = 1 << 20


@dataclass(frozen=True)
class ServeConfig:
    """How a model is served.

    Args:
        host: The address to bind to; any but loopback needs --api-key-file.
        port: The port; 0 takes a free one.
        name: What clients call the model; by default the last part of --model.
        api_key_file: A file of keys, one a line; each request must bring one of them.
        max_batch: Rows of a forward.
        max_waiting: Rows that may wait; more are answered 429.
        max_tokens: The longest response that may be asked for.
        max_body: Bytes of a request's body; more are answered 413.
        max_messages: Turns of a conversation.
        max_cost: The most that a request may cost: choices x (prompt + response tokens) x forwards.
        masks: Mask and control tokens that a user types: answered 400, taken out, or (with --research) obeyed.
        allow_prefill: A last message of the assistant is the beginning of its answer; else it is refused.
        shadow: The guard says what it would have done, and does nothing.
        research: Forced spans, bans, edits, masks, scores and gradients over the wire, on loopback alone; attacks need
            them.
        log_text: Prompts and responses in the log.
        self_test: A file with prompts and a column `harmful`, for a guard that can't be proved armed without.
        drain_timeout: Seconds that running requests have to end after SIGTERM.
    """

    host: Annotated[str, Flag()] = "127.0.0.1"
    port: Annotated[int, Flag(min=0, max=65535)] = 8000
    name: Annotated[str | None, Flag()] = None
    api_key_file: Annotated[Path | None, Flag()] = None
    max_batch: Annotated[int, Flag(min=1)] = 16
    max_waiting: Annotated[int, Flag(min=0)] = 256
    max_tokens: Annotated[int, Flag(min=1)] = 1024
    max_body: Annotated[int, Flag(min=1)] = 1 << 20
    max_messages: Annotated[int, Flag(min=1)] = 256
    max_cost: Annotated[int, Flag(min=1)] = 1 << 22
    masks: Annotated[Literal["refuse", "strip", "allow"], Flag()] = "refuse"
    allow_prefill: Annotated[bool, Flag()] = False
    shadow: Annotated[bool, Flag()] = False
    research: Annotated[bool, Flag()] = False
    log_text: Annotated[bool, Flag()] = False
    self_test: Annotated[Path | None, Flag()] = None
    drain_timeout: Annotated[float, Flag(min=0)] = 30.0

    def __post_init__(self) -> None:
        check(self)
        if not self.loopback and self.api_key_file is None:
            raise InputError(
                f"--host {self.host} is open to others, and nobody would need a key; give --api-key-file FILE, or bind "
                "to 127.0.0.1."
            )
        if not self.loopback and self.research:
            raise InputError(
                f"--research gives attack capabilities away, so it is for 127.0.0.1 alone; received --host {self.host}."
            )
        if self.masks == "allow" and not self.research:
            raise InputError("--masks allow lets users write the model's own tokens; it is for --research alone.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def read_keys(self) -> tuple[str, ...]:
        """The keys of the file; none where there is no file. Raises as `keys_in` does."""
        return () if self.api_key_file is None else keys_in(self.api_key_file)


def keys_in(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; lines that begin with # are none.

    Raises:
        MissingFile: there is no such file. InputError: it holds no key.
    """
    if not path.is_file():
        raise MissingFile(f"there is no file of keys at {path}.{near_path(path, folder=False)}")
    lines = path.read_text(encoding="utf-8", errors="replace")[:_LARGEST_KEYS].splitlines()
    keys = tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))
    if not keys or not all(key.isascii() and key.isprintable() for key in keys):
        raise InputError(f"{path} holds no key of ASCII characters; write one a line.")
    return keys
