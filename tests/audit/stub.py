"""Endpoints over a toy model that let in what a test says: SGLang's /generate as its documentation has it, and chat.

A letter is a token; the answer is words drawn by the prompt. What isn't obeyed is refused, or accepted and ignored.
"""

import json
import random
import re
from typing import ClassVar

import httpx

MASK, END = "<|mask|>", "<|im_end|>"
CONTROLS = {MASK: 1, END: 2}
WORDS = ["so", "the", "box", "is", "blue", "and", "round", "today"]
FIRST = 1000  # the id of "so"
TEMPLATE = [3, 4, 2, 3, 5, 4]
#: What SGLang does as it comes, and what it does with --enable-custom-logit-processor --enable-return-hidden-states.
SGLANG = ("masks", "controls", "raw-prompt", "raw-ids", "ignore-eos", "logit-bias", "pattern", "logprobs", "settings")
SWITCHED = ("processor", "states")
#: Field -> the check that is about it.
FIELDS = {
    **{"ignore_eos": "ignore-eos", "logit_bias": "logit-bias", "regex": "pattern", "response_format": "pattern"},
    **{"return_logprob": "logprobs", "logprobs": "logprobs", "return_hidden_states": "states"},
    **{"custom_logit_processor": "processor", "input_ids": "raw-ids", "prompt_token_ids": "raw-ids"},
}


class Refusal(Exception):
    """A 400."""


class Stub:
    """What an httpx.MockTransport asks.

    Args:
        obeys: names of checks.
        refuses: whether it says so where it doesn't obey.
        key: that it wants.
        prefill: how it goes on with an answer that is begun: "whole" with it, "rest" behind it.
    """

    def __init__(self, obeys=(), refuses=True, key=None, prefill="whole"):
        self.obeys, self.refuses, self.key, self.prefill = set(obeys), refuses, key, prefill
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        if self.key and "key" not in self.obeys and request.headers.get("authorization") != f"Bearer {self.key}":
            return httpx.Response(401, json={"error": {"message": "who are you?"}})
        path, post = request.url.path, request.method == "POST"
        try:
            if path == "/get_server_info" and "settings" in self.obeys:
                return httpx.Response(
                    200, json={name: 1 for name in ("model_path", "port", "host", "tp", "dp", "rank")}
                )
            if post and path in self.paths:
                return httpx.Response(200, json=self.paths[path](self, self.read(request.content)))
        except Refusal as error:
            return httpx.Response(400, json={"error": {"message": str(error)}})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            status = 500 if "malformed" in self.obeys else 400
            return httpx.Response(status, json={"error": {"message": str(error)}})
        return httpx.Response(404, json={"detail": "Not Found"})

    def read(self, content):
        body = json.loads(content)
        if not isinstance(body, dict):
            raise TypeError("no object")
        text = body.get("text") or (body.get("messages") or [{}])[0].get("content") or ""
        if len(text) > 100_000 and "long" in self.obeys:
            raise httpx.RemoteProtocolError("the server is gone")
        return body

    def let(self, name):
        """Whether it is obeyed; raises where it is refused."""
        if name not in self.obeys and self.refuses:
            raise Refusal(f"{name} isn't for you")
        return name in self.obeys

    def encode(self, text):
        """Ids; what a user types of the model's own tokens is either text, or those."""
        ids = []
        for piece in re.split(f"({'|'.join(map(re.escape, CONTROLS))})", text):
            if piece in CONTROLS and self.let("masks" if piece == MASK else "controls"):
                ids.append(CONTROLS[piece])
            else:
                ids += [ord(letter) % 900 + 10 for letter in piece if letter.strip()]
        return ids

    def answer(self, ids, how, most, seed=0):
        """Ids of an answer, and why it ends."""
        if type(most) is not int or most < 1:
            raise ValueError("max tokens")
        draw = random.Random(str((ids, seed)))
        count = most if how.get("ignore_eos") and self.let("ignore-eos") else 5
        written = [FIRST + draw.randrange(len(WORDS)) for _ in range(min(count, most))]
        if how.get("logit_bias") and self.let("logit-bias"):
            written = [int(next(iter(how["logit_bias"])))] * len(written)
        if how.get("custom_logit_processor") and self.let("processor"):
            named = bytes.fromhex(json.loads(how["custom_logit_processor"])["callable"])  # a name is all that it may be
            assert named == b"csglang.srt.sampling.custom_logit_processor\nDisallowedTokensLogitsProcessor\n."
            banned = how["custom_params"]["token_ids"]
            written = [FIRST + (each - FIRST + 1) % len(WORDS) if each in banned else each for each in written]
        return written, "length" if len(written) == most else "stop"

    def generate(self, body):
        """SGLang's /generate."""
        sampling = body.get("sampling_params") or {}
        if sampling.get("temperature") != sampling.get("temperature"):
            raise ValueError("temperature")
        text = body.get("text")
        if body.get("input_ids") and self.let("raw-ids"):
            ids = body["input_ids"]
        elif isinstance(text, str):
            ids = self.encode(text) if "raw-prompt" in self.obeys else [*TEMPLATE, *self.encode(text)]
        elif text is None and not self.refuses:
            ids = TEMPLATE
        else:
            raise ValueError("Either text, input_ids or input_embeds should be provided.")
        seed = sampling.get("sampling_seed", 0) if sampling.get("temperature") else 0
        written, why = self.answer(ids, {**body, **sampling}, sampling.get("max_new_tokens", 128), seed)
        about = {"prompt_tokens": len(ids), "completion_tokens": len(written), "finish_reason": {"type": why}}
        if body.get("return_logprob") and self.let("logprobs"):
            about["input_token_logprobs"] = [[None if i == 0 else -1.5, each, None] for i, each in enumerate(ids)]
            about["output_token_logprobs"] = [[-0.5, each, None] for each in written]
        if body.get("return_hidden_states") and self.let("states"):
            about["hidden_states"] = [[0.5] * 8 for _ in written]
        answer = " ".join(WORDS[each - FIRST] for each in written)
        if sampling.get("regex") and self.let("pattern"):
            answer = sampling["regex"]
        output = {"text": answer, "output_ids": written, "meta_info": about}
        return [output] * sampling["n"] if sampling.get("n", 1) > 1 else output

    def chat(self, body):
        """OpenAI's chat completions; beside what is said here all turns are joined."""
        if type(body.get("temperature", 0)) not in (int, float) or body.get("temperature") != body.get("temperature"):
            raise ValueError("temperature")
        turns = [*body["messages"]]
        begun = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
        goes_on = bool(begun) and self.let("prefill")
        ids = [token for turn in turns for token in [*TEMPLATE, *self.encode(turn["content"])]]
        if (body.get("input_ids") or body.get("prompt_token_ids")) and self.let("raw-ids"):
            ids = body["input_ids"]
        seed = body.get("seed", 0) if body.get("temperature") else 0
        written, why = self.answer(ids, body, body.get("max_tokens", 32), seed)
        text = " ".join(WORDS[each - FIRST] for each in written)
        if goes_on:
            rest = "day" if begun.endswith("Wednes") else "ber"
            text = f"{begun}{rest}, {text}" if self.prefill == "whole" else f"{rest}, {text}"
        if body.get("response_format") and self.let("pattern"):
            text = '{"word": "zebra"}'
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": why}
        if body.get("logprobs") and self.let("logprobs"):
            choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.5} for _ in written]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return {"choices": [choice] * body.get("n", 1), "usage": usage}

    def completions(self, body):
        """OpenAI's old completions."""
        self.let("raw-prompt")
        prompt = body["prompt"]
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt if self.let("raw-ids") else TEMPLATE
        ids = ids if "raw-prompt" in self.obeys or not isinstance(prompt, str) else [*TEMPLATE, *ids]
        written, why = self.answer(ids, body, body.get("max_tokens", 16))
        choice = {"text": " ".join(WORDS[each - FIRST] for each in written), "finish_reason": why}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written)}}


class Sglang(Stub):
    """Speaks /generate alone."""

    paths: ClassVar = {"/generate": Stub.generate}


class Chatty(Stub):
    """Speaks chat, and the old completions."""

    paths: ClassVar = {"/v1/chat/completions": Stub.chat, "/v1/completions": Stub.completions}
