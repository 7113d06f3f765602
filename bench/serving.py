"""What serving costs: the same requests through the library, the engine and HTTP, behind a guard, and one by one.

    python bench/serving.py                               # the sandbox, on the CPU
    python bench/serving.py --guard FOLDER                # and behind a fitted guard, flagged answers as others
    python bench/serving.py --replicas 2                  # and as a Ray Serve application
    python bench/serving.py --quick                       # fewer requests and rounds

`library` is one call of `midward.sample` with all requests; `engine` the same requests by as many clients at once, each
asking anew as soon as it is answered, in this process; `http` the same over a server in a process of its own; `guarded`
that server with --shadow, so that as much is sampled. CPU seconds of the process that holds the model (all of a
server's children), which other load on the machine hardly moves, interleaved; the median over rounds of each round's
ratio to the library's, and the least and largest. Texts must be the same.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import torch

import midward
from midward.attacks.cases import mixed
from midward.sampling import Request, Sampling, sample
from midward.serving.engine import Engine

TICK = os.sysconf("SC_CLK_TCK")


def spent(root):
    """CPU seconds of a process and all below it."""
    parents, own = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(values[1])
        own[int(folder.name)] = sum(map(int, values[11:15])) / TICK  # with those of children that have ended
    total, level = 0.0, {root}
    while level:
        total += sum(own.get(pid, 0.0) for pid in level)
        level = {pid for pid, parent in parents.items() if parent in level}
    return total


class Served:
    """A server in a process of its own."""

    def __init__(self, model, dtype, port, *flags):
        command = [sys.executable, "-m", "midward", "serve", "--model", model, "--dtype", dtype, "--port", str(port)]
        self.process = subprocess.Popen([*command, "--quiet", *flags])
        self.url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            try:
                httpx.get(f"{self.url}/health", timeout=10).raise_for_status()
                break
            except httpx.HTTPError:
                if self.process.poll() is not None:
                    raise SystemExit("the server ended; its message is above.") from None
                time.sleep(0.1)
        self.name = httpx.get(f"{self.url}/v1/models").json()["data"][0]["id"]

    def run(self, texts, clients):
        """The answers' texts, and the CPU seconds of the server."""
        before = spent(self.process.pid)
        answers = asyncio.run(self._ask(texts, clients))
        return answers, spent(self.process.pid) - before

    async def _ask(self, texts, clients):
        answers, waiting = [None] * len(texts), iter(enumerate(texts))
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as http:

            async def client():
                for i, text in waiting:
                    body = {"model": self.name, "messages": [{"role": "user", "content": text}]}
                    answer = await http.post("/v1/chat/completions", json=body)
                    answers[i] = answer.raise_for_status().json()["choices"][0]["message"]["content"]

            await asyncio.gather(*(client() for _ in range(clients)))
        return answers


def by_clients(engine, texts, sampling, batch, clients):
    """The answers of as many clients at once, in this process."""
    answers, waiting, lock = [None] * len(texts), iter(enumerate(texts)), threading.Lock()

    def client():
        while True:
            with lock:
                place, text = next(waiting, (None, None))
            if place is None:
                return
            request = Request(engine.encode(text), seed=0)
            answers[place] = engine.submit(request, sampling, batch_size=batch).result().text

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return answers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="sandbox")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--guard")
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.requests, given.clients, given.rounds = 24, 16, 2
    torch.set_num_threads(1)
    model = midward.load(given.model, dtype=given.dtype)
    sampling, engine = Sampling.for_model(model), Engine(model)
    cases = mixed(("benign", "benign-wrapped"), given.requests, split="tuning")
    texts = [case.request.prompt for case in cases]
    requests = [Request(model.encode(text), seed=0) for text in texts]

    def timed(run):
        started = time.process_time()
        answers = run()
        return answers, time.process_time() - started

    batch = ["--max-batch", str(given.batch)]
    servers = {"http": Served(given.model, given.dtype, given.port, *batch)}
    if given.guard:
        flags = ["--guard", given.guard, "--shadow", *batch]
        servers["guarded"] = Served(given.model, given.dtype, given.port + 1, *flags)
    if given.replicas:
        flags = ["--replicas", str(given.replicas), *batch]
        servers["ray"] = Served(given.model, given.dtype, given.port + 2, *flags)

    def library(rows):
        return timed(lambda: [each.text for each in sample(model, requests, sampling, batch_size=rows)])

    ways = {
        "library": lambda: library(given.batch),
        "engine": lambda: timed(lambda: by_clients(engine, texts, sampling, given.batch, given.clients)),
        **{name: lambda server=server: server.run(texts, given.clients) for name, server in servers.items()},
        "one by one": lambda: library(1),
    }
    seconds, texts_of = {name: [] for name in ways}, {}
    try:
        for number in range(given.rounds + 1):
            for name, run in ways.items():
                answers, spent_now = run()
                texts_of[name] = answers
                if number:  # the first round warms up
                    seconds[name].append(spent_now)
    finally:
        for server in servers.values():
            server.process.terminate()
    print(f"{given.requests} requests, {given.clients} clients, batches of {given.batch}, {given.model} {given.dtype}")
    print(f"{'':12} {'CPU s a request':>16} {'throughput to the library':>28} {'same texts':>11}")
    for name, own in seconds.items():
        ratios = sorted(base / each for base, each in zip(seconds["library"], own, strict=True))
        same = sum(a == b for a, b in zip(texts_of["library"], texts_of[name], strict=True))
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{name:12} {statistics.median(own) / given.requests:16.4f} {spread:>28} {same:>7}/{given.requests}")


if __name__ == "__main__":
    main()
