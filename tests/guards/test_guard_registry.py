"""Guards of other packages, by entry point."""

from guard_world import fit, prompts
from packages import install

from midward.guards import Sizes, config, load, make
from midward.guards.registry import GUARDS

GUARD = """
import numpy as np
from pydantic.dataclasses import dataclass
from midward.dynamics import SRISignal
from midward.guards import Guard, GuardInfo

@dataclass(frozen=True)
class Nothing:
    letters: int = 1

class End(Guard):
    name, about, looks, Settings = "end", "how compliant the last state is", "during", Nothing

    def view(self, model):
        return "response", -1

    def train(self, anchors, signals, others=()):
        self.anchors = anchors
        return self

    def watcher(self, stopped=None):
        return SRISignal(self.anchors)

    def score(self, model, exchanges, *, batch_size=8):
        return np.array([each.signal[-1] for each in exchanges])

END = GuardInfo(End)
"""


def test_the_names_that_are_known_without_loading_are_all_of_them():
    assert tuple(GUARDS) == config.GUARDS


def test_a_packages_guard_may_look_at_signals(model, sampling, tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "midward_long", GUARD, "midward.guards", end="midward_long:END")
    guard = make("end")
    paths = fit(model, {"end": guard}, tmp_path, sampling, sizes=Sizes(12, 8, 20))
    again = load(paths["end"], model, sampling)
    assert again.digest == guard.digest and again.anchors.digest == guard.anchors.digest
    found = again.sample(model, prompts(300, 12), sampling)
    for response in found:
        assert response.verdict.score == response.verdict.signal[-1]
        assert response.verdict.flagged == (response.verdict.score > guard.threshold)
