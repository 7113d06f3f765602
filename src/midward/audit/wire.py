"""`Wire`: HTTP to an endpoint that nobody vouches for. What is sent is counted and paced, and what comes back is
bounded in bytes and seconds, whatever the server does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic_core import from_json

from midward._hints import printable
from midward.audit.config import AuditConfig
from midward.serving.client import KEY, address, after_of, direct, message_of
from midward.serving.config import keys_in

#: Bytes of an answer; the rest isn't read.
LARGEST = 1 << 22
#: Times that a busy server is asked again, and the longest wait that it may ask for, in seconds.
_AGAIN, _LONGEST = 2, 10.0
#: Requests in a row that nothing answers, after which the server counts as gone.
_GONE = 3


def quote(text: str, most: int = 60) -> str:
    """A server's words as a short line in quotes that no terminal obeys."""
    line = printable(" ".join(text[: 8 * most].split()), kept="")
    return f'"{line[:most]}..."' if len(line) > most else f'"{line}"'


@dataclass(frozen=True)
class Raw:
    """What came back.

    Attributes:
        status: of the answer; None where there is none.
        body: its JSON; None where it is none.
        trouble: what is wrong in words; empty for a good answer.
        after: seconds after which a busy server wants to be asked again.
        lost: whether there is no answer because nobody asked, or nobody waited longer; the server may be well.
    """

    status: int | None
    body: Any = None
    trouble: str = ""
    after: float | None = None
    lost: bool = False

    def at(self, *path: str | int) -> Any:
        """What stands at a place of a good answer's JSON; None where nothing does, whatever the answer is."""
        value: Any = None if self.trouble else self.body
        for step in path:
            if isinstance(value, dict):
                value = value.get(step)
            else:
                within = isinstance(value, list) and isinstance(step, int) and step < len(value)
                value = value[step] if within else None
        return value

    @property
    def refused(self) -> bool:
        """Whether the server said that it won't; that it is busy isn't that, nor that it takes too long."""
        status = self.status
        return status is not None and (status == 501 or (400 <= status < 500 and status not in (408, 429)))

    @property
    def broke(self) -> bool:
        """Whether the server failed over it: an error of its own, or a connection that broke off."""
        return not self.lost and (self.status is None or (self.status >= 500 and self.status not in (501, 503)))


class Wire(AbstractContextManager["Wire"]):
    """An endpoint, while the context lasts.

    sent: requests so far. key: what it is asked with. broke: path and trouble of the requests that it failed over.

    Args:
        url: its address.
        config: key, budget, rate and timeout.

    Raises:
        InputError: `url` is none of http or https, or the file holds no key.
    """

    def __init__(self, url: str, config: AuditConfig) -> None:
        self.url, self.config = address(url), config
        self.key = keys_in(config.api_key_file)[0] if config.api_key_file else os.environ.get(KEY)
        self.sent, self._silent, self._last = 0, 0, 0.0
        self.broke: list[tuple[str, str]] = []
        # identity: a small body that unpacks to a large one is taken for what it is, no JSON
        self._http = httpx.AsyncClient(timeout=config.timeout, headers={"Accept-Encoding": "identity"}, **direct())
        self._loop = start_blocking_portal()  # so that an answer, its head too, has one deadline

    def __enter__(self) -> Wire:
        self._portal: BlockingPortal = self._loop.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._portal.call(self._http.aclose)
        self._loop.__exit__(*error)

    def get(self, path: str) -> Raw:
        """What is at a path."""
        return self._patiently("GET", path, None, self.key)

    def post(self, path: str, body: Mapping[str, Any] | bytes, *, key: bool = True) -> Raw:
        """The answer to a body. key: whether it is asked with the key."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._patiently("POST", path, content, self.key if key else None)

    def _patiently(self, method: str, path: str, content: bytes | None, key: str | None) -> Raw:
        raw = self._once(method, path, content, key)
        for _ in range(_AGAIN):
            if raw.after is None:
                break
            time.sleep(min(raw.after, _LONGEST))
            raw = self._once(method, path, content, key)
        return raw

    def _once(self, method: str, path: str, content: bytes | None, key: str | None) -> Raw:
        if self._silent >= _GONE:
            return Raw(None, trouble="the server doesn't answer any more", lost=True)
        if self.sent >= self.config.budget:
            return Raw(None, trouble=f"the budget of {self.config.budget} requests is spent", lost=True)
        time.sleep(max(0.0, self._last + 1 / self.config.rate - time.monotonic()))
        self._last = time.monotonic()
        self.sent += 1
        raw = self._portal.call(self._read, method, path, content, key)
        self._silent = self._silent + 1 if raw.status is None else 0
        if raw.broke:
            self.broke.append((path, raw.trouble))
        return raw

    async def _read(self, method: str, path: str, content: bytes | None, key: str | None) -> Raw:
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        received, status, after = bytearray(), None, None
        try:
            with anyio.fail_after(self.config.timeout):
                async with self._http.stream(method, self.url + path, content=content, headers=headers) as response:
                    status, after = response.status_code, after_of(response)
                    async for piece in response.aiter_raw():
                        received += piece
                        if len(received) > LARGEST:
                            return Raw(status, trouble=f"{status}, with more than {LARGEST} bytes")
        except TimeoutError:
            if status is not None:
                return Raw(status, trouble=f"{status}, and no end within {self.config.timeout:g} s")
            return Raw(None, trouble=f"no answer within {self.config.timeout:g} s", lost=True)
        except httpx.TimeoutException as error:
            return Raw(None, trouble=f"no answer ({type(error).__name__})", lost=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Raw(None, trouble=f"no answer ({type(error).__name__})")
        try:
            body = from_json(bytes(received))
        except ValueError:
            said = received[:400].decode("utf-8", "replace")
            return Raw(status, trouble=f"{status}, and no JSON: {quote(said)}", after=after)
        good = 200 <= status < 300
        return Raw(status, body, "" if good else f"{status}: {quote(message_of(body) or 'no word')}", after)
