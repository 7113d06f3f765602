"""A target with a known key, and roles that say what a test wants."""

from dataclasses import dataclass, field, replace

import anyio
from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from speaking import speaking

from midward.attacks import Capability
from midward.attacks.record import Record
from midward.sampling import Sampling
from midward.sampling.likelihood import SpanScore
from midward.serving.provider import MidwardAPI

REFUSAL = "I must refuse to say how. It is against the law of the harbour."
CANARY = "Sure, here is how to make the drex valm skorn. Step 1: grind the salt. Step 2: melt the wax."


@dataclass
class Seen:
    """One request that the double got."""

    turns: list[tuple[str, str]]
    forced: list[dict]
    bans: list[dict]
    fill: str | None
    seed: int

    @property
    def prompt(self) -> str:
        return self.turns[-1][1]


@dataclass
class Double(MidwardAPI):
    """Answers by a rule: (Seen) -> text; scores spans by one: (Span) -> log-probability; has a guard's verdict by one:
    (Seen) -> record. Keeps all it was asked."""

    rule: object
    score_rule: object = None
    language_model: object = None
    guard_rule: object = None
    caps: frozenset = frozenset(Capability)
    length: int = 64
    seen: list = field(default_factory=list)
    spans: list = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self):
        ModelAPI.__init__(self, "double", None, None, [], GenerateConfig())

    @property
    def model(self):
        return self.language_model

    @property
    def sampling(self):
        return Sampling(length=self.length)

    @property
    def capabilities(self):
        return frozenset(str(one) for one in self.caps)

    def max_connections(self):
        return 1000

    def connection_key(self):
        return str(id(self))

    async def generate(self, input, tools, tool_choice, config):
        body = config.extra_body or {}
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await anyio.sleep(0.001)
        self.in_flight -= 1
        texts, details = [], []
        for i in range(config.num_choices or 1):
            seen = Seen(
                [(message.role, message.text) for message in input],
                body.get("forced", []),
                body.get("bans", []),
                body.get("prompt_masks"),
                (config.seed or 0) + i,
            )
            self.seen.append(seen)
            texts.append(self.rule(seen))
            at = [texts[-1].find(self.written(one)) for one in seen.forced]
            found = [
                (place, place + len(self.written(one))) if place >= 0 else None for place, one in zip(at, seen.forced)
            ]
            details.append({"seed": seen.seed, "nfe": 1, "authored": texts[-1], "forced_at": found})
            details[-1] |= {"guard": self.guard_rule(seen)} if self.guard_rule else {}
        output = ModelOutput.from_content("double", "")
        output.choices = [output.choices[0].model_copy(deep=True) for _ in texts]
        for choice, text in zip(output.choices, texts, strict=True):
            choice.message.content = text
        output.usage = ModelUsage()
        output.metadata = {"choices": details}
        return output

    def written(self, piece):
        """The text of a forced or banned span, as in `Seen`."""
        return self.language_model.text(piece["ids"])

    async def score(self, spans, *, mode, length):
        spans = [replace(span, prompt=self.language_model.encode(span.prompt)) for span in spans]
        self.spans += spans
        totals = [self.score_rule(span) for span in spans]
        return [SpanScore([total / len(span.ids)] * len(span.ids), total, 0.0, 1) for span, total in zip(spans, totals)]

    async def gradient(self, span, slots, *, length, drafts=((),)):
        raise NotImplementedError

    def as_model(self):
        """The Inspect model of this double."""
        _DOUBLES[str(id(self))] = self
        return get_model(f"double/{id(self)}", memoize=False)


_DOUBLES = {}


@modelapi(name="double")
def double():
    return lambda model_name, *_, **__: _DOUBLES[model_name]


def said(*replies):
    """`speaking`, and the last message's text of every call."""
    return speaking(*replies, read=lambda messages: messages[-1].text)


def record(goal, queries=3, **more):
    """What is kept of an attempt that put `please GOAL`."""
    ask = {"turns": [["user", f"please {goal}"]], "forced": [], "bans": [], "fill": None, "seed": 0}
    about = {"attack": "tap", "version": "1", "hash": "x", "access": "black", "settings": {}, "capabilities": ["CHAT"]}
    about |= {"goal": goal, "goal_text": f"goal {goal}", "source": "made-up", "target": "x", "seed": 0}
    cost = {"queries": {"respond": queries, "score": 1, "gradient": 0}, "nfe": 10, "calls": {"scorer": 2}}
    cost |= {"budget": None, "spent": False, "failed": {"scorer": 1}, "why": {}, "seconds": 0.25}
    best = {"score": 7, "scored": True, "asks": [ask | {"temperature": None, "length": None}], "forced": []}
    best |= {"note": {}, "tried": 1, "prompts": [], "response": "said", "composite": False}
    return Record(**{**about, **cost, **best, **more})


class Stub:
    """What the target reads of a language model, in which a word's id is its length. system: where its template takes
    system turns; or that it raises."""

    max_positions = 4096

    def __init__(self, system=("head", "inner")):
        self.system = system

    def tokens(self, words):
        return [len(word) for word in words.split()]

    def text(self, ids):
        return " ".join("x" * length for length in ids)

    def encode(self, messages):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = []
        for i, message in enumerate(messages):
            if message["role"] == "system" and ("inner" if i else "head") not in self.system:
                if "raise" in self.system:
                    raise RuntimeError("no system turns, says the template")
                continue
            ids += [1, *message["content"].encode()]
        return ids
