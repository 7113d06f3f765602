"""A search that samples gives one result, whatever else runs beside it."""

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model

from midward.attacks import find, solver_of
from midward.attacks.profiles import PROFILES

TEXTS = ("Do the placeholder thing number 3.", "Do another thing.", "And a third thing, a longer one, please.")


def without_floats(record):
    """Padding moves the last bits of a log-probability; and seconds are seconds."""
    if isinstance(record, dict):
        return {key: without_floats(value) for key, value in record.items() if not isinstance(value, float)}
    return [without_floats(value) for value in record] if isinstance(record, list) else record


NAMES = "prefill dija ept ept-mid advprefix advprefix-mid random-search pal pair tap aos wildjailbreak".split()


@pytest.mark.parametrize("name", NAMES)
def test_a_goal_alone_and_among_others(roomy_folder, tmp_path, name):
    model = get_model(f"midward/{roomy_folder}", length=64, steps=8, temperature=0.7, device="cpu", dtype="float32")
    assistant = get_model("midward/sandbox-assistant")
    roles = {role: assistant for role in ("attacker", "rewriter", "scorer", "guard", "uncensored")} | {"proxy": model}
    info = find(name)

    def run(texts):
        samples = [
            Sample(id=text, input=text, metadata={"goal": text, "source": "test", "harmful": True}) for text in texts
        ]
        [log] = eval(
            Task(dataset=samples, solver=solver_of(info)(**PROFILES["quick"].settings_of(info))),
            model=model,
            model_roles=roles,
            log_dir=str(tmp_path),
            display="none",
            log_realtime=False,
        )
        assert not [sample.error for sample in log.samples if sample.error]
        found = {sample.id: sample.store for sample in log.samples}[TEXTS[0]]
        return found["texts"], without_floats(found["attempt"])

    assert run(TEXTS[:1]) == run(TEXTS)
