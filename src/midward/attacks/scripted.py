"""The sandbox's scripted assistant as an Inspect model, `midward/sandbox-assistant`: plays every role offline.

It sees what a real model would see, the rendered prompt, and answers what each prompt's `scripted` part says; a prompt
of a judge's rubric is answered by the scripted judge. What it says depends on the prompt and the seeds alone.
"""

from __future__ import annotations

import json
import random
from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage
from inspect_ai.tool import ToolChoice, ToolInfo

from midward._hints import one_of
from midward.attacks.registry import prompt_of
from midward.attacks.roles import fields_of
from midward.errors import InputError
from midward.judges import ScriptedJudge
from midward.world.assistant import Assistant
from midward.world.wrappers import GROUPS

NAME = "sandbox-assistant"


class AssistantAPI(ModelAPI):
    """`midward/sandbox-assistant`, or with the group of wrappers it knows: `midward/sandbox-assistant/tuning`.

    Without one it is "test"; the others are "tuning" and "mutation". Model argument: seed (of its choices).
    """

    def __init__(
        self,
        model_name: str = NAME,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's signature)
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        group = model_name.removeprefix(NAME).strip("/") or "test"
        one_of("group of wrappers", group, GROUPS)
        self.seed, self.group = seed, group

    def max_connections(self) -> int:
        """It answers at once."""
        return 1000

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer the last prompt it understands. Raises InputError for one without a scripted part."""
        output = ModelOutput.from_content(self.model_name, self._answer(input, config.seed or 0))
        output.usage = ModelUsage()
        return output

    def _answer(self, messages: list[ChatMessage], seed: int) -> str:
        for message in reversed(messages):
            found = fields_of(message.text)
            if found is None:
                continue
            name, fields = found
            prompt = prompt_of(name)
            if prompt is None or prompt.scripted is None:
                raise InputError(f"the sandbox's assistant can't play {name!r}; bind a real model to its role.")
            assistant = Assistant(self.seed + seed, self.group)
            answer: dict[str, Any] = dict(prompt.scripted(assistant, fields, random.Random(f"{seed}-{message.text}")))
            return json.dumps(answer)
        return ScriptedJudge().reply(messages)
