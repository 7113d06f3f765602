"""An audit of an endpoint that is a function."""

from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from midward.audit import wire
from midward.audit.audit import audit
from midward.audit.config import AuditConfig

CLIENT = httpx.AsyncClient


@pytest.fixture(scope="session")
def answering():
    """While it lasts every endpoint of an audit is a function from a request to a response."""

    @contextmanager
    def patched(answers):
        def streamed(request):
            answer = answers(request)
            return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire.httpx, "AsyncClient", partial(CLIENT, transport=httpx.MockTransport(streamed)))
            patch.delenv("MIDWARD_API_KEY", raising=False)
            yield

    return patched


@pytest.fixture(scope="session")
def audited(answering):
    """The summary of an audit of such a function."""

    def run(answers, **config):
        with answering(answers):
            return audit("http://stub", AuditConfig(**{"rate": 1e6, **config}))

    return run
