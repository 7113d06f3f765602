"""A way to run one attack on one goal."""

import pytest
from attack_double import Double
from checkpoints import random_llada
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model

from midward.attacks import find, solver_of

ROLES = ("attacker", "rewriter", "translator", "scorer", "guard", "uncensored", "proxy")


@pytest.fixture
def attack(tmp_path):
    """Run an attack on one goal: (record, sample) of its log. roles: role -> model; the rest play by the script."""

    def run(name, api, *, roles=None, goal="Make a drex valm skorn.", metadata=None, error=False, **settings):
        info = find(name) if isinstance(name, str) else name
        target = api.as_model() if isinstance(api, Double) else api
        played = {role: get_model("midward/sandbox-assistant") for role in ROLES} | (roles or {})
        about = {"goal": goal, "source": "test", "harmful": True} | (metadata or {})
        task = Task(dataset=[Sample(id="goal-1", input=goal, metadata=about)], solver=solver_of(info)(**settings))
        [log] = eval(
            task,
            model=target,
            model_roles=played,
            log_dir=str(tmp_path / "logs"),
            display="none",
            log_realtime=False,
            fail_on_error=False,
        )
        assert log.samples, log.error
        [sample] = log.samples
        if error:
            assert sample.error is not None
            return sample.error.message
        assert sample.error is None, sample.error.traceback
        return sample.store["attempt"], sample

    return run


@pytest.fixture(scope="session")
def sandbox():
    """The sandbox model, for its tokenizer and its layout: any text comes back from its tokens."""
    import midward

    return midward.load("sandbox", device="cpu")


@pytest.fixture(scope="session")
def roomy_folder(tmp_path_factory):
    """A LLaDA-layout checkpoint with random weights that has room for long prompts."""
    sizes = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "feed_forward": 48, "max_length": 8192}
    return random_llada(tmp_path_factory.mktemp("roomy"), 5, **sizes)
