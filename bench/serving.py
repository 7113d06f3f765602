"""The rows of serving: clients of the engine in this process, and of a server in another, against one call of the
library, dlmserve's loop, and the official loop one by one."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from frame import Row, Runs
from peers import StepBatches, official
from rows import Bench, Setting, raw, same

import midward
from midward.sampling import Request, Sampling, sample
from midward.serving.engine import Engine

TICK = os.sysconf("SC_CLK_TCK")


def by_clients(count, clients, ask):
    """What `ask` gives for each of `count` places, asked by as many clients at once, each anew once it is answered."""
    answers, places, lock = [None] * count, iter(range(count)), threading.Lock()

    def client():
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            answers[place] = ask(place)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return answers


def spent(root):
    """CPU seconds of a process and all below it (Linux)."""
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
    """`midward serve` in a process of its own. seconds: of CPU that it and its children took, a call each."""

    def __init__(self, model, port, *flags):
        import httpx

        command = [sys.executable, "-m", "midward", "serve", "--model", model, "--dtype", "float32"]
        self.process = subprocess.Popen([*command, "--port", str(port), "--quiet", *flags])
        self.url, self.seconds = f"http://127.0.0.1:{port}", []
        try:
            for _ in range(1200):
                try:
                    httpx.get(f"{self.url}/health", timeout=10).raise_for_status()
                    break
                except httpx.HTTPError:
                    if self.process.poll() is not None:
                        raise RuntimeError("the server ended; its message is above") from None
                    time.sleep(0.1)
            self.name = httpx.get(f"{self.url}/v1/models").json()["data"][0]["id"]
        except BaseException:
            self.process.terminate()
            raise

    def run(self, texts, clients):
        """The answers' texts."""
        before = spent(self.process.pid)
        answers = asyncio.run(self._ask(texts, clients))
        self.seconds.append(spent(self.process.pid) - before)
        return answers

    async def _ask(self, texts, clients):
        import httpx

        answers, waiting = [None] * len(texts), iter(enumerate(texts))
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as http:

            async def client():
                for i, text in waiting:
                    body = {"model": self.name, "messages": [{"role": "user", "content": text}]}
                    answer = await http.post("/v1/chat/completions", json=body)
                    answers[i] = answer.raise_for_status().json()["choices"][0]["message"]["content"]

            await asyncio.gather(*(client() for _ in range(clients)))
        return answers


def served(bench: Bench, setting: Setting, *, clients: int, requests: int, least: float | None = None) -> Iterator[Row]:
    """Clients of the engine in this process, against one call of the library, dlmserve's loop and one by one."""
    ids, sampling, batch = bench.prompts(setting, requests), setting.sampling(), setting.batch
    rows = [Request(each, seed=0) for each in ids.tolist()]
    engine, plain = Engine(bench.model), setting.plain()

    def step_batches() -> torch.Tensor:
        loop = StepBatches(bench.model, **plain, most=batch)
        asked = [loop.submit(each) for each in ids.tolist()]
        loop.run()
        return torch.stack([each.canvas[-setting.length :] for each in asked])

    def ask(place: int) -> Any:
        return engine.submit(rows[place], sampling, batch_size=batch).result()

    def alone() -> torch.Tensor:  # one request's, for all: each costs the same
        return official(bench.model, ids[:1], **setting.plain(dtype=torch.float64))

    jobs = {
        "library": lambda: raw(sample(bench.model, rows, sampling, batch_size=batch)),
        "engine": lambda: raw(by_clients(requests, clients, ask)),
        "step batches": step_batches,
        "official": alone,
    }
    runs = bench.watch.interleaved(jobs, bench.rounds, warm=jobs["library"])
    words = bench.words(f"{requests} requests, batches of {setting}")
    tokens = {name: same(runs["library"].result[: len(each.result)], each.result) for name, each in runs.items()}
    note = f"tokens: {tokens['engine']}"
    ratio = [100 * each for each in runs["library"].over(runs["engine"])]
    yield Row(f"engine, {clients} clients / library", words, ratio, "{:.1f} %", least=least, note=note)
    for name in ("library", "engine"):
        note = f"tokens: {tokens['step batches']}"
        figure = f"{name} / dlmserve's loop, restated"
        yield Row(figure, words, runs["step batches"].over(runs[name]), note=note)
    ratio = runs["official"].over(runs["step batches"], requests)
    yield Row("dlmserve's loop, restated / official loop one by one", words, ratio, note=tokens["official"])


def http(bench: Bench, *, clients: int, requests: int, guard: str | None, replicas: int | None) -> Iterator[Row]:
    """A server in a process of its own against one call of the library, on the sandbox, in CPU time of each."""
    from midward.attacks.cases import mixed

    model = midward.load("sandbox", dtype="float32")
    sampling = Sampling.for_model(model)
    texts = [case.request.prompt for case in mixed(("benign", "benign-wrapped"), requests, split="tuning")]
    rows, batch = [Request(model.encode(text), seed=0) for text in texts], ["--max-batch", "16"]
    flags = {"HTTP": batch}
    if guard:
        flags["HTTP, behind the guard"] = ["--guard", guard, "--shadow", *batch]
    if replicas:
        flags[f"{replicas} replicas over Ray"] = ["--replicas", str(replicas), *batch]
    servers = {name: Served("sandbox", 8765 + i, *each) for i, (name, each) in enumerate(flags.items())}
    jobs = {"library": lambda: [each.text for each in sample(model, rows, sampling, batch_size=16)]}
    jobs |= {name: lambda it=server: it.run(texts, clients) for name, server in servers.items()}
    try:
        runs = bench.watch.interleaved(jobs, bench.rounds, warm=lambda: [job() for job in jobs.values()])
    finally:
        for server in servers.values():
            server.process.terminate()
    for name, server in servers.items():
        seconds = server.seconds[1 : 1 + len(runs[name].seconds)]
        ratio = [100 * each for each in runs["library"].over(Runs(seconds))]
        equal = sum(a == b for a, b in zip(runs["library"].result, runs[name].result, strict=True))
        words = f"sandbox, {requests} requests, {clients} clients, batches of 16"
        yield Row(f"{name} / library", words, ratio, "{:.1f} %", note=f"{equal} of {requests} texts equal")
