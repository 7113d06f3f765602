"""What Inspect finds of midward (entry point `inspect_ai`): imported for its side effects, so it stays light."""

from __future__ import annotations

from typing import Any, cast

from inspect_ai import Task, task
from inspect_ai.model import ModelAPI, modelapi

from midward import judges as judges  # its scorers, by name
from midward._process import settle_process


@modelapi(name="midward")
def midward() -> type[ModelAPI]:
    """Models run in this process, `midward/<sandbox, folder or Hub id>`, with a base URL those of a server of ours, and
    `midward/sandbox-assistant`."""

    def make(model_name: str, *args: Any, **settings: Any) -> ModelAPI:
        if model_name.split("/")[0] == "sandbox-assistant":
            from midward.serving.assistant import AssistantAPI

            return AssistantAPI(model_name, *args, **settings)
        settle_process()
        if settings.get("base_url"):
            from midward.serving.remote import RemoteAPI

            return RemoteAPI(model_name, *args, **settings)
        from midward.serving.provider import MidwardAPI

        return MidwardAPI(model_name, *args, **settings)

    return cast(type[ModelAPI], make)


@task
def attack(
    attack: str = "direct",
    goals: str = "sandbox",
    count: int | None = None,
    judges: str | list[str] | None = None,
    profile: str = "quick",
    seed: int = 0,
    budget: int | None = None,
    replay: bool = True,
) -> Task:
    """One attack on one set of goals: `inspect eval midward/attack -T attack=tap -T count=8 --model midward/sandbox`.

    Arguments as in `midward attack`. Roles are played by the sandbox's scripted assistant unless a model is bound:
    `--model-role attacker=openai/...`.
    """
    from midward.attacks.evalset import one_task

    names = judges.split(",") if isinstance(judges, str) else judges or []
    return one_task(
        attack, goals, count=count, judge_names=names, profile=profile, seed=seed, budget=budget, replay=replay
    )
