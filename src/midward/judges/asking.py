"""The model that judges by rubric, and a judge with its model."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import GenerateConfig, Model, get_model

from midward import _asking
from midward.judges.judge import Judge, JudgeInfo, JudgesError

SETTINGS = _asking.LIMITS.merge(GenerateConfig(temperature=0.0, max_tokens=2048))


def ready(info: JudgeInfo, model: str | Model | None = None) -> Judge:
    """A judge that can be asked, and one that asks a model only after that model has answered once.

    Args:
        info: the judge.
        model: which one a judge that needs `role:judge` asks, an Inspect model or its name; by default the role.

    Raises:
        JudgesError: the judge, or its model, can't be had.
        ModelDownError: the model doesn't answer.
    """
    if info.needs != "role:judge":
        return info.make()
    if isinstance(model, str):
        _asking.preflight({model: "the judge"}, lambda name: judge_model(name, memoize=False))
    return info.make(model=judge_model(model))


def reply_of(asked: _asking.Asked[Any]) -> dict[str, Any]:
    """What every verdict that a model was asked for keeps of its reply, among its details."""
    return {"model": asked.model, "tries": asked.tries, "judge_reply": asked.text, "down": asked.down}


def judge_model(model: str | Model | None = None, *, memoize: bool = True) -> Model:
    """The model to ask, with SETTINGS under its own: the one given, else the Inspect role `judge`.

    Args:
        memoize: whether everyone who names it gets the same one.

    Raises:
        JudgesError: there is none, or it can't be had; the model under test must not judge itself by accident.
    """
    try:
        asked = get_model(role="judge", required=True) if model is None else get_model(model, memoize=memoize)
    except Exception as error:  # whatever a provider raises over a missing key or package
        hint = "bind the role, e.g. model_roles={'judge': 'openai/gpt-4.1'}, or give the judge a model"
        raise JudgesError(f"no model to judge by: {_asking.unavailable(error)} ({hint}).") from error
    return bounded(asked)


def bounded(model: Model) -> Model:
    """The model with SETTINGS under its own; the caller's model stays as it is."""
    settings = SETTINGS
    if str(model).startswith("hf/"):
        # Inspect's hf provider always samples and fails at temperature 0; from one candidate it takes the likeliest.
        settings = settings.model_copy(update={"temperature": None, "top_k": 1})
    elif str(model).startswith("midward/"):  # of this process: it answers in its own length, and waits for its turn
        settings = GenerateConfig(temperature=settings.temperature)
    return _asking.bounded(model, settings)
