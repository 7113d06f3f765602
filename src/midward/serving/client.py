"""`Client`: HTTP to a server of ours: one pool of connections an event loop, patience where it is busy, and every error
in words."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
from anyio.lowlevel import current_token

from midward.errors import InputError, MidwardError
from midward.serving.card import Card
from midward.serving.spans import TokenizerRecord

#: Where a server's key is looked for.
KEY = "MIDWARD_API_KEY"
#: Requests in flight: enough to fill the batches of a few replicas.
SEATS = 128
#: Seconds that a request is put again for where the server says that it is busy, and the longest wait between two.
PATIENCE, LONGEST = 300.0, 30.0
#: Seconds until there is a connection, and until there is an answer: behind many others it may have to wait.
_CONNECT, _ANSWER = 60.0, 1800.0
#: Seconds that an idle connection is kept; below the server's own, or a request could meet one that is being closed.
_IDLE = 3.0
#: Statuses of a server that may answer later.
BUSY = (429, 503)


class ServerError(MidwardError):
    """A server that can't be asked, or that fails to answer."""


class Client:
    """A server.

    Args:
        url: its address, with or without /v1.
        key: one of its keys; that of the environment's `MIDWARD_API_KEY` unless given.

    Raises:
        InputError: `url` is none of http or https.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = address(url)
        key = key or os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(_ANSWER, connect=_CONNECT, pool=None)
        self._settings: dict[str, Any] = {"base_url": self.url, "headers": headers, "timeout": timeout, **direct()}
        # An event loop's connections are its own.
        self._pools: weakref.WeakKeyDictionary[Any, tuple[httpx.AsyncClient, anyio.Semaphore]]
        self._pools = weakref.WeakKeyDictionary()

    def card(self) -> Card:
        """What it says of its model. Raises ServerError for what is no server of ours."""
        with httpx.Client(**self._settings) as client:
            answer = self._get(client, "/midward/model")
            if answer is None:  # it grants chat alone
                served = (self._get(client, "/v1/models") or {}).get("data") or [{}]
                answer = served[0].get("midward")
        try:
            return Card.model_validate(answer)
        except ValueError:
            raise ServerError(
                f"{self.url} is no server of midward's; ask another one as openai-api/NAME/MODEL."
            ) from None

    def tokenizer(self) -> TokenizerRecord:
        """Its tokenizer. Raises ServerError."""
        with httpx.Client(**self._settings) as client:
            return TokenizerRecord.model_validate(self._get(client, "/midward/tokenizer"))

    def _get(self, client: httpx.Client, path: str) -> Any:
        """The answer's JSON; None where there is no such path."""
        try:
            response = client.get(path)
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        return None if response.status_code == 404 else self._read(response)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer's JSON. A server that says when it is less busy is asked again then, for `PATIENCE` seconds.

        Raises:
            InputError: what was asked can't be followed. ServerError: there is no answer.
        """
        client, seats = self._pool()
        over = time.monotonic() + PATIENCE
        while True:
            async with seats:
                try:
                    response = await client.post(path, json=body)
                except httpx.HTTPError as error:
                    raise self._gone(error) from None
            wait = after_of(response)
            if wait is None or time.monotonic() + wait > over:
                return self._read(response)
            await anyio.sleep(wait)

    async def aclose(self) -> None:
        """Close the connections of this event loop; they are made again when it is asked."""
        client, _ = self._pools.pop(_loop(), (None, None))
        if client is not None:
            await client.aclose()

    def _pool(self) -> tuple[httpx.AsyncClient, anyio.Semaphore]:
        pool = self._pools.get(_loop())
        if pool is None:
            limits = httpx.Limits(max_connections=SEATS, max_keepalive_connections=SEATS, keepalive_expiry=_IDLE)
            pool = httpx.AsyncClient(limits=limits, **self._settings), anyio.Semaphore(SEATS)
            self._pools[_loop()] = pool
        return pool

    def _read(self, response: httpx.Response) -> Any:
        """The JSON of an answer. Raises InputError and ServerError as `post` does."""
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.is_success and body is not None:
            return body
        status, message = response.status_code, message_of(body) or response.text[:200]
        if status in (401, 403):
            raise ServerError(f"{self.url} doesn't take the key ({status}): give --api-key-file, or MIDWARD_API_KEY.")
        if status in (400, 413, 422):
            raise InputError(f"{self.url}: {message}")
        raise ServerError(f"{self.url} answers {status} to {response.request.url.path}: {message or 'no JSON'}")

    def _gone(self, error: httpx.HTTPError) -> ServerError:
        words = f"{type(error).__name__}: {error}".rstrip(": ")
        return ServerError(f"{self.url} doesn't answer ({words}). Is it running there? Then run the same again.")


def address(url: str) -> str:
    """A server's address without /v1. Raises InputError for one that is none of http or https, or holds a password."""
    place = url  # where a name and a password may stand; anywhere in what is no address
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        place = parts.netloc if good else url
    except ValueError:  # brackets of no IPv6 address, a port that is no number
        good = False
    if "@" in place:  # not repeated: it would be shown and recorded, and sent instead of the key
        raise InputError("a server's address holds no name and no password; give the key by --api-key-file.")
    if not good:
        raise InputError(f"a server's address is like http://127.0.0.1:8000; received {url!r}.")
    return url.rstrip("/").removesuffix("/v1")


def direct() -> dict[str, Any]:
    """httpx's settings by which no proxy of the environment's gets the requests, nor the key in them. Its certificates
    are still trusted."""
    return {"trust_env": False, "verify": httpx.create_ssl_context()}


def _loop() -> Any:
    return current_token().native_token


def after_of(response: httpx.Response) -> float | None:
    """The seconds after which a busy server wants to be asked again; None where it isn't busy, or doesn't say."""
    try:
        seconds = float(response.headers["Retry-After"]) if response.status_code in BUSY else None
    except (KeyError, ValueError):
        return None
    return None if seconds is None else min(seconds, LONGEST) if seconds > 0 else 0.0  # also what is no number


def message_of(body: Any) -> str | None:
    """What an error says: OpenAI's, or FastAPI's own."""
    error = body.get("error", body.get("detail")) if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return None if message is None else str(message)
