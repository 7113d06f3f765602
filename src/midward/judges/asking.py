"""The model that judges by rubric."""

from __future__ import annotations

from inspect_ai.model import GenerateConfig, Model, get_model

from midward import _asking
from midward.judges.judge import JudgesError

SETTINGS = _asking.LIMITS.merge(GenerateConfig(temperature=0.0, max_tokens=2048))


def judge_model(model: str | Model | None = None, *, memoize: bool = True) -> Model:
    """The model to ask, with SETTINGS under its own: the one given, else the Inspect role `judge`.

    memoize: whether everyone who names it gets the same one.

    Raises JudgesError where there is none, or it can't be had: the model under test must not judge itself by accident.
    """
    try:
        found = get_model(role="judge", required=True) if model is None else get_model(model, memoize=memoize)
    except Exception as error:  # whatever a provider raises over a missing key or package
        hint = "bind the role, e.g. model_roles={'judge': 'openai/gpt-4.1'}, or give the judge a model"
        raise JudgesError(f"no model to judge by: {_asking.unavailable(error)} ({hint}).") from error
    return bounded(found)


def first_call(model: str) -> None:
    """Ask the judging model once, as a judge would, before anything is sampled. Raises ModelDownError, and JudgesError
    as `judge_model` does."""
    _asking.preflight({model: "the judge"}, lambda name: judge_model(name, memoize=False))


def bounded(model: Model) -> Model:
    """The model with SETTINGS under its own; the caller's model stays as it is."""
    settings = SETTINGS
    if str(model).startswith("hf/"):
        # Inspect's hf provider always samples and fails at temperature 0; from one candidate it takes the likeliest.
        settings = settings.model_copy(update={"temperature": None, "top_k": 1})
    return _asking.bounded(model, settings)
