"""The world's scripted assistant as an Inspect model, `midward/sandbox-assistant`: every role, offline."""

from __future__ import annotations

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage
from inspect_ai.tool import ToolChoice, ToolInfo

from midward._hints import one_of
from midward.world import players
from midward.world.wrappers import GROUPS

NAME = "sandbox-assistant"


class AssistantAPI(ModelAPI):
    """`midward/sandbox-assistant`, or with the group of wrappers it knows: `midward/sandbox-assistant/tuning`.

    Without one it is "test"; the others are "tuning" and "mutation". What it says depends on the prompt and the seeds
    alone, see `midward.world.players`.

    Args:
        model_name: `sandbox-assistant`, with a group behind a slash.
        base_url: Unused.
        api_key: Unused.
        config: Inspect's settings of generation.
        seed: Of its choices.

    Raises:
        InputError: An unknown group.
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
        """Answer the newest prompt that it understands. Raises InputError for a role's that nobody plays."""
        prompts = [message.text for message in input]
        text = players.answer(prompts, seed=self.seed, group=self.group, turn=config.seed or 0)
        output = ModelOutput.from_content(self.model_name, text)
        output.usage = ModelUsage()
        return output
