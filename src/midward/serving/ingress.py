"""What stands in front of several replicas of a server: a request goes to one of them, and once more to another where
that one dies before anything of its answer was sent. Light: no model is loaded here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray.exceptions import RayActorError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from midward.serving.openai import Refused, error_response, event

#: What of a request's scope a replica is told.
_SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
#: Headers that Ray Serve's proxy writes, or the whole body decides.
_THEIRS = (b"content-length", b"x-request-id")
#: Seconds for all replicas to say how they are.
_ROUND = 10.0
Page = tuple[int, bytes]


class Ingress:
    """The deployment that clients reach.

    Args:
        replicas: Ray Serve's handle of `midward.serving.replicas.Replica`.
        max_body: bytes of a request that are read: a replica refuses one with more.
    """

    def __init__(self, replicas: Any, max_body: int) -> None:
        self.replicas, self.max_body = replicas, max_body
        self.answers = replicas.options(stream=True).answer

    async def __call__(self, request: Request) -> Response:
        """Answer a request as a replica does."""
        scope = {name: request.scope[name] for name in _SCOPE if name in request.scope}
        if request.method == "GET" and request.url.path in ("/health", "/metrics"):
            pages = await self.replicas.broadcast("page", scope).results_async(timeout_s=_ROUND, return_exceptions=True)
            pages = [page for page in pages if not isinstance(page, BaseException)]  # of one that has just died
            return health(pages) if request.url.path == "/health" else metrics(pages)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > self.max_body:
                break
        for _ in range(2):
            messages = self.answers.remote(scope, body)
            try:
                return await _response(messages)
            except RayActorError:
                continue
        return error_response(_lost())


async def _response(messages: AsyncIterator[Mapping[str, Any]]) -> Response:
    """The response of ASGI's messages: whole, or a stream once its first part is there."""
    start, first = await anext(messages), await anext(messages)
    headers = [(name, value) for name, value in start["headers"] if name not in _THEIRS]
    kind = dict(headers).get(b"content-type", b"")
    if kind.startswith(b"text/event-stream"):
        response: Response = StreamingResponse(_parts(first["body"], messages), start["status"])
    else:
        rest = [message["body"] async for message in messages]
        response = Response(b"".join([first["body"], *rest]), start["status"])
        headers.append((b"content-length", str(len(response.body)).encode()))
    response.raw_headers = headers
    return response


async def _parts(first: bytes, messages: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    """The parts of a stream; where its replica dies, OpenAI's error event is the last."""
    yield first
    try:
        async for message in messages:
            yield message["body"]
    except RayActorError:
        yield event(_lost().body)


def _lost() -> Refused:
    return Refused(503, "the replica that answered is gone; ask again.", code="replica_lost", after=2)


def health(pages: Sequence[Page]) -> JSONResponse:
    """How the replicas are: as the worst of them, with what each says."""
    bodies = [json.loads(body) for _, body in pages]
    if not bodies:
        return JSONResponse({"status": "starting", "replicas": []}, 503)
    status = max(status for status, _ in pages)
    worst = next(body for body, (each, _) in zip(bodies, pages) if each == status)
    return JSONResponse({**worst, "replicas": bodies}, status)


class _All(Collector):
    """The metrics of all replicas, each with a label `replica`."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self.pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for number, (_, body) in enumerate(self.pages):
            for family in text_string_to_metric_families(body.decode()):
                all_of = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                own = {"replica": str(number)}
                all_of.samples += [sample._replace(labels={**sample.labels, **own}) for sample in family.samples]
        yield from families.values()


def metrics(pages: Sequence[Page]) -> Response:
    """The replicas' metrics as one page; where one refuses, as it does without the key, its refusal."""
    if refusal := next((page for page in pages if page[0] != 200), None):
        return Response(refusal[1], refusal[0], media_type="application/json")
    registry = CollectorRegistry()
    registry.register(_All(pages))
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})
