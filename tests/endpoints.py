"""An OpenAI-compatible server that behaves as a test says."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tenacity import wait_fixed

from midward import _asking
from midward.attacks import roles
from midward.judges import asking

FIRST = "Reply with the word OK."  # what every endpoint is asked before a run


@contextmanager
def endpoint(behave, monkeypatch, first=(200, "OK")):
    """An OpenAI-compatible server, `openai-api/rough/x` and `openai/x`, without /v1/responses.

    behave: (last message, how often it came) -> (status, body). A body that is a text becomes a completion; None hangs
    until the client gives up. first: status and body for the first call before a run, which isn't counted.
    """
    seen, lock, over = Counter(), threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.path.endswith("/chat/completions"):
                self.answer(404, b'{"error": {"message": "there is no such path"}}')
                return
            text = request["messages"][-1]["content"]
            text = text if isinstance(text, str) else text[0]["text"]
            with lock:
                if text == FIRST:
                    status, body = first
                else:
                    seen[text] += 1
                    status, body = behave(text, seen[text])
            if body is None:
                over.wait(30)
                return
            if isinstance(body, str):
                message = {"role": "assistant", "content": body}
                body = json.dumps(
                    {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 1,
                        "model": "x",
                        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                    }
                ).encode()
            self.answer(status, body)

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("ROUGH", "OPENAI"):
        monkeypatch.setenv(f"{name}_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv(f"{name}_API_KEY", "none")
    for name, value in {"max_retries": 1, "attempt_timeout": 3, "timeout": 12}.items():
        monkeypatch.setattr(_asking.LIMITS, name, value)
        for module in (roles, asking):
            monkeypatch.setattr(module.SETTINGS, name, value)
    # Inspect waits seconds before it tries again: what is tested is that it does.
    monkeypatch.setattr("inspect_ai.model._retry.wait_exponential_jitter", lambda **_: wait_fixed(0.05))
    try:
        yield seen
    finally:
        over.set()
        server.shutdown()
        server.server_close()
