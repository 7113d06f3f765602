"""kill -9 while any measuring verb writes, and the same command again: the rows are those of an undisturbed run."""

import json
import os
import signal

import pytest
from holding import in_a_fork

from midward.probes import recovery
from midward.store import RowFile

FEW = ["--limit", 4, "--batch-size", 1]
#: A model that refuses some of what it is asked.
SANDBOX = ["--model", "sandbox", "--length", 32, "--steps", 8, "--samplers", "native"]

#: verb -> its arguments; each writes rows to its --out through the one loop.
VERBS = {
    "generate": ["--prompts", "PROMPTS", "--batch-size", 1],
    "probe prefill": [*FEW, "--goals", "sandbox", "--positions", "0,4", "--phrases", "procedural"],
    "probe mirror": [*FEW, "--goals", "sandbox", "--attack", "wrapper", "--starts", "0,1", "--width", 2, "--tokens", 1],
    "probe ask": [*FEW, "--goals", "sandbox", "--words", "0,2"],
    "probe order": [*FEW, "--sets", "sums"],
    "probe gcg": [*FEW, "--goals", "sandbox", "--positions", "0", "--iterations", 1, "--width", 2, "--tokens", 3],
    "dynamics": [*FEW, *SANDBOX, "--fit", 3, "--train", 3, "--attacked", "plain", "--harmless", "benign"],
    "guard score": ["--guard", "GUARD", "--prompts", "PROMPTS", "--batch-size", 1],
    "guard eval": ["--guard", "GUARD", "--sets", "plain,benign", *FEW],
    "utility": [*FEW, "--tasks", "sums,benign"],
}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt\n" + "".join(f"t{30 + n} t40\n" for n in range(6)))
    return path


@pytest.fixture(scope="module")
def guard(llada_folder, tmp_path_factory):
    """A file of a guard for the tiny model."""
    from typer.testing import CliRunner

    from midward.cli import app

    folder = tmp_path_factory.mktemp("guard")
    flags = ["--length", "12", "--steps", "6", "--held-out", "20", "--alpha", "0.2", "--harmless", "benign"]
    flags += ["--out", str(folder)]
    result = CliRunner().invoke(
        app, ["guard", "fit", "--model", str(llada_folder), "--device", "cpu", "--guards", "masks", *flags]
    )
    assert result.exit_code == 0, result.output
    return folder / "masks.safetensors"


def die_at_the_second_write(monkeypatch):
    whole, writes = RowFile.append, []

    def append(self, *rows):
        if not rows or not writes:
            writes.extend(rows)
            return whole(self, *rows)
        with self.path.open("ab") as file:
            file.write(b'{"key": "0123456789abcdef", "response": "to')
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(RowFile, "append", append)


def rows(folder):
    """file -> its rows in order, but for the time they took."""
    return {
        path.name: [
            {name: value for name, value in json.loads(line).items() if "seconds" not in name}
            for line in path.read_text().splitlines()
        ]
        for path in sorted(folder.rglob("*.jsonl"))
    }


@pytest.mark.parametrize("verb", VERBS)
def test_kill_9_and_again(midward, monkeypatch, tiny, prompts, guard, tmp_path, verb):
    monkeypatch.setattr(recovery, "SEEDS", range(1))  # of what dynamics trains on its rows
    named = {"PROMPTS": prompts, "GUARD": guard}
    arguments = [*verb.split(), *tiny, *(named.get(argument, argument) for argument in VERBS[verb])]

    def run(folder):
        return midward(*arguments, "--out", folder / "rows.jsonl" if verb in ("generate", "guard score") else folder)

    with monkeypatch.context() as patch:
        die_at_the_second_write(patch)
        last_words = tmp_path / "last_words.txt"
        status = in_a_fork(lambda: run(tmp_path / "killed").output, last_words)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, last_words.read_text()
    left = [line for path in (tmp_path / "killed").rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(left) > 1  # a chunk, and the torn line
    assert run(tmp_path / "killed").exit_code == 0
    assert run(tmp_path / "whole").exit_code == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
