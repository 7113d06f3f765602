"""An Inspect model that says what a test wants."""

from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage, get_model


def speaking(*replies, read=lambda messages: messages, **config):
    """(model, what it was asked): replies in turn, the last one for good.

    A reply is a text, an exception to raise, a function of the last message, or a pair of a text and why it stopped.
    read: what is kept of the messages of a call.
    """
    asked = []

    def outputs(messages, *_):
        reply = replies[min(len(asked), len(replies) - 1)]
        asked.append(read(messages))
        reply = reply(messages[-1].text) if callable(reply) else reply
        if isinstance(reply, Exception):
            raise reply
        reply, stopped = reply if isinstance(reply, tuple) else (reply, "stop")
        output = ModelOutput.from_content("mock", reply, stop_reason=stopped)
        output.usage = ModelUsage()  # or mockllm counts tokens with an encoding that it would download
        return output

    settings = GenerateConfig(**config)
    return get_model("mockllm/model", custom_outputs=outputs, memoize=False, config=settings), asked
