"""What the tests of probes share."""

import json

import pytest

from midward import goals
from midward.judges.bench import bench
from midward.probes.configs import Attacking
from midward.probes.probe import Ready, run
from midward.probes.registry import find
from midward.sampling import Sampling
from midward.store import RowFile

SAMPLING = Sampling(length=24, steps=6, block=12)


@pytest.fixture(scope="module")
def harmful():
    return goals.load("sandbox", count=5)


@pytest.fixture
def silent(lively, monkeypatch):
    """A model that must not be run."""
    monkeypatch.setattr(lively, "hidden", lambda *args, **more: pytest.fail("the model ran"))
    return lively


@pytest.fixture
def phrases_file(tmp_path):
    """Two phrases a kind, of a few tokens of the tiny vocabulary each."""
    path = tmp_path / "phrases.csv"
    kinds = ("affirmative", "procedural", "neutral", "refusal")
    lines = [f"{kind},t{30 + n} t{40 + n}\n{kind},t{50 + n} t{60 + n} t{70 + n}\n" for n, kind in enumerate(kinds)]
    path.write_text("kind,text\n" + "".join(lines))
    return path


@pytest.fixture
def measured(tmp_path):
    """name, model, goals, config -> the cases, the rows and the summary of a probe."""

    def measure(name, model, some, config, sampling=SAMPLING, folder="run", **how):
        from midward.runs.run import ROWS

        probe = find(name)
        cases = probe.cases(model, some, config, sampling)
        asked = Ready(some, bench(some) if issubclass(probe.config, Attacking) else None, {})
        summary = run(probe, model, config, tmp_path / folder, sampling=sampling, asked=asked, cases=cases, **how)
        return cases, list(RowFile(tmp_path / folder / ROWS).rows.values()), summary

    return measure


@pytest.fixture
def summary_of():
    """A folder's summary.json."""
    return lambda folder: json.loads((folder / "summary.json").read_text())
