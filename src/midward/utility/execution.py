"""Programs that a model wrote, run in a process of their own behind limits.

What is meant to hold: an end in time, little memory, no file written outside a folder that is thrown away, no network,
an empty environment. `protections` says what of it the platform holds. It is a fence around careless code, not a prison
for clever code: programs may read what the user may read. Who must run hostile code does it in a virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("_fenced.py")


@dataclass(frozen=True)
class Limits:
    """seconds: of the clock, and of the processor. memory: bytes of address space. file_bytes: of a file it writes."""

    seconds: float = 10.0
    memory: int = 1 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True)
class Ran:
    """error: None where the program came to its end, else what stopped it. held: the fences that were up."""

    error: str | None
    held: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.error is None


def run_program(source: str, limits: Limits = Limits()) -> Ran:
    """Run Python source to its end. Raises OSError where the platform has no such limits (Windows)."""
    if os.name != "posix":
        raise OSError("programs are run with the limits of Linux or macOS; this platform has none.")
    token = secrets.token_hex(16)  # tells the verdict from what the program may write to the same place
    told = json.dumps({"source": source, "token": token, **asdict(limits)})
    with (
        tempfile.TemporaryDirectory(prefix="midward-program-", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-I", "-B", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        ) as process,
    ):
        late = False
        try:
            said, _ = process.communicate(told.encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired as expired:
            late, said = True, expired.output or b""
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it may have left behind
    lines = [_read(line) for line in said.splitlines()] or [{}]
    held = tuple(lines[0].get("held", ()))
    if late:
        return Ran(f"no end after {limits.seconds:g} seconds", held)
    if lines[-1].get("token") != token:
        return Ran(f"the process died (status {process.returncode})", held)
    return Ran(lines[-1]["error"], held)


def _read(line: bytes) -> dict[str, Any]:
    """An object of JSON; empty for anything else, which only the program itself can have written."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def protections() -> tuple[str, ...]:
    """The fences that hold on this machine, found by running a program of nothing."""
    return run_program("").held
