"""Ways of asking for the same responses at once: clients of the engine in this process, and of a server in another."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

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
