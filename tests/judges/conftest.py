"""Judging models that reply as a test says."""

import pytest
from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage, get_model


@pytest.fixture
def judge_that_says():
    """A function: replies in turn (the last one for good; an exception is raised; a pair is the
    text and why it stopped) -> (model, the prompts it got)."""

    def make(*replies, **config):
        prompts = []

        def outputs(messages, *_):
            reply = replies[min(len(prompts), len(replies) - 1)]
            prompts.append(messages)
            if isinstance(reply, Exception):
                raise reply
            reply, stopped = reply if isinstance(reply, tuple) else (reply, "stop")
            output = ModelOutput.from_content("mock", reply, stop_reason=stopped)
            output.usage = ModelUsage()  # or mockllm counts tokens with an encoding that it would download
            return output

        model = get_model("mockllm/model", custom_outputs=outputs, memoize=False, config=GenerateConfig(**config))
        return model, prompts

    return make
