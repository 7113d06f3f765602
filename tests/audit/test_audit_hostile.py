"""Whatever a server sends, the audit ends, says what it found, and passes nothing on to a terminal."""

import json
import socketserver
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stub import SGLANG, Chatty, Sglang

from midward.audit.audit import audit
from midward.audit.config import AuditConfig
from midward.reports import render
from midward.reports.builders.audit import WORDS, blocks
from midward.serving.client import Client, ServerError

EVIL = "\x1b]0;gone\x07\x1b[2J\x9b31m\u202e<script>alert(1)</script>\r\x00"
#: What answers are made of, in any nesting.
NAMES = [
    *("choices", "message", "content", "text", "usage", "prompt_tokens", "completion_tokens", "finish_reason", "error"),
    *("midward", "logprobs", "logprob", "meta_info", "input_token_logprobs", "output_token_logprobs", "output_ids"),
    *("hidden_states", "scores", "tokens", "gradient", "shape", "files", "sampling", "length", "data", "id", "edits"),
]
VALUES = [None, True, -1, 0, 5, 2**70, 1e308, float("nan"), "", EVIL, "Alpha x Omega", "day", "Wednes", "zebra", "AAAA"]
JSON = st.recursive(
    st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


def shown(summary):
    """What a person and a program see."""
    return render.terminal(blocks(summary)) + json.dumps(summary, ensure_ascii=False)


def is_tame(text):
    return all(letter.isprintable() or letter == "\n" for letter in text)


@settings(max_examples=15, suppress_health_check=[*HealthCheck])
@given(st.data())
def test_answers_of_any_shape_are_verdicts(audited, data):
    good = data.draw(st.sampled_from([Sglang, Chatty]))(SGLANG)
    bodies = data.draw(st.lists(JSON, min_size=1, max_size=6))
    status = data.draw(st.sampled_from([200, 200, 200, 400, 302, 500]))
    mended = data.draw(st.lists(st.booleans(), min_size=7, max_size=7))
    asked = count()

    def answers(request):
        at = next(asked)
        if at < 4 or mended[at % len(mended)]:
            return good(request)
        return httpx.Response(status, text=json.dumps(bodies[at % len(bodies)]), headers={"location": "/"})

    summary = audited(answers)
    assert {record["verdict"] for record in summary["checks"]} <= WORDS.keys()
    assert is_tame(shown(summary))


@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize("body", [EVIL, f"<html>{EVIL}</html>", json.dumps({"error": {"message": EVIL}}), "[" * 9999])
def test_hostile_words_stay_data(audited, status, body):
    good = Chatty(SGLANG)

    def answers(request):
        plain = b'"Say hello."' in request.content and b"ignore_eos" not in request.content
        return good(request) if plain else httpx.Response(status, text=body)

    summary = audited(answers)
    assert summary["checks"] and is_tame(shown(summary))


@pytest.mark.parametrize("after", ["nan", "inf", "-5", "1e999", "soon", ""])
def test_a_wait_that_is_no_number_is_none(audited, after, monkeypatch):
    waits = []
    monkeypatch.setattr("midward.audit.wire.time.sleep", waits.append)
    good = Chatty()

    def answers(request):
        busy = httpx.Response(503, headers={"retry-after": after}, json={})
        return busy if b"logit_bias" in request.content else good(request)

    assert {record["check"]: record["verdict"] for record in audited(answers)["checks"]}["logit-bias"] == "unclear"
    assert all(0 <= wait <= 10 for wait in waits)


# --- over a socket ------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def forever(piece, pause=0.01):
    while True:
        yield piece
        time.sleep(pause)


def one(*pieces):
    return lambda: iter(pieces)


SENT = {
    "a stream without end": lambda: iter_of(HEAD + b"\r\n", forever(b"data: {}\n\n")),
    "a head without end": lambda: iter_of(HEAD, forever(b"X: y\r\n")),
    "a head that drips": lambda: iter_of(b"HTTP/1.1 2", forever(b"0", 0.1)),
    "more than can be kept": lambda: iter_of(HEAD + b"\r\n", forever(b"[" * (1 << 16), 0)),
    "nothing": one(),
    "no HTTP": one(EVIL.encode() * 40),
    "a body that is cut off": one(HEAD + b"Content-Length: 999\r\n\r\n{"),
    "a body that unpacks to much": one(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"),
    "a wrong length": one(HEAD + b"Content-Length: -1\r\n\r\n{}"),
}


def iter_of(head, rest):
    yield head
    yield from rest


@contextmanager
def sending(pieces):
    """A server that sends these to whoever comes."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with suppress(OSError):
                self.request.recv(1 << 16)
                for piece in pieces():
                    self.request.sendall(piece)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("what", SENT)
def test_bytes_of_any_kind_end_in_one_line(what):
    begun = time.monotonic()
    with sending(SENT[what]) as url, pytest.raises(ServerError) as raised:
        audit(url, AuditConfig(rate=1e6, timeout=0.15))
    assert time.monotonic() - begun < 5 and is_tame(str(raised.value))


def test_no_proxy_of_the_environment_gets_the_requests(monkeypatch):
    answer = one(HEAD + b"Content-Length: 2\r\n\r\n{}")
    with sending(answer) as proxy, sending(one(b"HTTP/1.1 418 no\r\nContent-Length: 2\r\n\r\n{}")) as url:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(ServerError, match="418"):
            audit(url, AuditConfig(rate=1e6))
        with pytest.raises(ServerError, match="418"):
            Client(url).card()


# --- the verb -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stub, status", [(Chatty(), 0), (Sglang(SGLANG), 10), (Chatty(refuses=False), 11), (Chatty(key="x"), 2)]
)
def test_the_verb_ends_by_its_verdict(midward, answering, stub, status):
    with answering(stub):
        done = midward("audit", "http://stub/v1", "--rate", 100000, "--json", "-q")
    assert done.exit_code == status and is_tame(done.stdout)
    if status != 2:
        summary = json.loads(done.stdout)
        assert summary["verdict"] == {0: "closed", 10: "open", 11: "unclear"}[status]
        assert summary["url"] == "http://stub"


def test_the_table_names_each_hole_and_what_it_makes_possible(midward, answering):
    with answering(Sglang(SGLANG)):
        done = midward("audit", "http://stub", "--rate", 100000)
    for word in ("raw-ids", "OPEN", "refused", "pal", "could not tell", "SLP"):
        assert word in done.stdout


def test_bad_flags_are_told(midward):
    for flags in (["--rate", "0"], ["--skip", "nothing"], ["--api", "grpc"], ["--api-key-file", "nowhere"]):
        assert midward("audit", "http://127.0.0.1:9", *flags).exit_code == 2
    assert midward("audit", "nowhere").exit_code == 2
    for flags in (["audit"], ["attack", "--goals", "sandbox", "--endpoint"]):
        for url in ("http://user:hunter2@127.0.0.1:9", "http://user:hun/hunter2@127.0.0.1", "user:hunter2@127.0.0.1:9"):
            done = midward(*flags, url)
            assert done.exit_code == 2 and "--api-key-file" in done.stderr and "hunter2" not in done.output
    assert midward("audit", "http://127.0.0.1:9").exit_code == 2
