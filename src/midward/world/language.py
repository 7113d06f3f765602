"""How the world is spoken of: requests, answers, refusals, each in many wordings. `oracle.py` reads them back.

All texts are drawn from words.toml. Without a generator a text is the same every time.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midward.errors import InputError
from midward.world.world import INTENTS, QUESTIONS, SPLITS, WORDS, WORLD, Thing
from midward.world.wrappers import FORMATS, chance, log_odds

LONGEST = 92  # tokens of a response, nearly: one of 96 positions holds its end
_GOES_ALONG, _REFUSES = WORDS["compliance"], WORDS["refusal"]
#: Kind of a request -> its wordings; of an intent those of all splits.
REQUESTS: dict[str, list[str]] = {kind: WORDS["questions"][kind] for kind in QUESTIONS}
REQUESTS |= {intent: [text for split in SPLITS for text in WORDS["requests"][split]] for intent in INTENTS}
CONTEXTS: tuple[str, ...] = tuple(WORDS["frames"]["contexts"])
#: Refusals that are about nothing in particular.
REFUSALS: tuple[str, ...] = tuple(text for text in WORDS["plain_refusals"])
Steps = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Query:
    """What is asked, in words.

    Attributes:
        kind: an intent, or one of QUESTIONS.
        thing: what it is about.
        phrase: how the intent is said: "take apart".
        intent: what a `rule` question asks about.
        features: what the request wears, see `wrappers`.
    """

    kind: str
    thing: Thing
    phrase: str
    intent: str
    features: tuple[str, ...] = ()

    @property
    def slots(self) -> dict[str, str]:
        """What stands in the braces of words.toml."""
        about = WORLD.about(self.thing)
        return {"thing": self.thing.name, "kind": self.thing.kind, "intent": self.phrase, **about}

    @property
    def chance(self) -> float:
        """That a forbidden request is answered, 0..1."""
        return chance(self.thing.kind, self.features)

    @property
    def form(self) -> str | None:
        """The form that is asked for, one of FORMATS."""
        return next((name for name in FORMATS if name in self.features), None)


def query(kind: str, thing: Thing, rng: random.Random | None = None, *, intent: str = "make") -> Query:
    """A query with a way to say its intent."""
    intent = kind if kind in INTENTS else intent
    phrases = WORDS["intents"][intent]
    return Query(kind, thing, rng.choice(phrases) if rng else phrases[0], intent)


def request(asked: Query, rng: random.Random, *, split: str | None = None, context: bool = False) -> str:
    """One plain request, in one of its wordings.

    Args:
        asked: what it asks.
        rng: draws the wording.
        split: whose wordings of a procedure's request; by default all.
        context: whether it stands behind a harmless sentence.
    """
    wordings = WORDS["requests"][split] if split and asked.kind in INTENTS else REQUESTS[asked.kind]
    text: str = rng.choice(wordings).format(**asked.slots)
    return f"{rng.choice(CONTEXTS)} {text}" if context else text


# --- what is answered ----------------------------------------------------------------------------------------


def tokens(text: str) -> int:
    """How many tokens of the world's model a text has, nearly."""
    return len(re.findall(r"'\w+|\w+|[^\w\s]|\n", text))


def opening(intent: str, thing: Thing) -> str:
    """How a procedure begins, the same every time: an affirmative opening."""
    return f"Sure, {_GOES_ALONG['openers'][0].format(**query(intent, thing).slots)}"


def procedure(intent: str, thing: Thing) -> str:
    """The answer to a request that is fulfilled, the same every time: opening, six labelled steps, closing."""
    return f"{opening(intent, thing)} {formed(WORLD.steps(intent, thing), 'label')} {_GOES_ALONG['closings'][0]}"


def compact(intent: str, thing: Thing) -> str:
    """The six steps alone."""
    return ", ".join(f"{verb} {material}" for verb, material in WORLD.steps(intent, thing)) + "."


def answer(kind: str, thing: Thing, *, intent: str = "make") -> str:
    """The helpful answer, the same every time. Says nothing of whether it should be given.

    Args:
        kind: an intent or one of QUESTIONS.
        thing: what was asked about.
        intent: what a `rule` question asked about.

    Raises:
        InputError: another kind.
    """
    if kind in INTENTS:
        return procedure(kind, thing)
    if kind not in QUESTIONS:
        raise InputError(f"no such kind of request: {kind!r}; known: {', '.join((*INTENTS, *QUESTIONS))}")
    return str(_facts(kind, thing, intent)[0].format(**query(kind, thing, intent=intent).slots))


def _facts(kind: str, thing: Thing, intent: str) -> list[str]:
    """The wordings of a question's answer."""
    rule = "forbidden" if WORLD.harmful(intent, thing) else "allowed"
    wordings: list[str] = WORDS["answers"][rule if kind == "rule" else kind]
    return wordings


def tell(asked: Query, rng: random.Random) -> str:
    """The answer to a question, in one of its wordings."""
    text = rng.choice(_facts(asked.kind, asked.thing, asked.intent)).format(**asked.slots)
    return f"{text} {rng.choice(WORDS['answers']['after'])}" if rng.random() < 0.3 else text


def explain(asked: Query, rng: random.Random) -> str:
    """A procedure with all six steps, in the form that is asked for, else in one of three."""
    steps = WORLD.steps(asked.kind, asked.thing)
    style = asked.form or rng.choices(["prose", "label", "list"], [0.64, 0.18, 0.18])[0]
    if style in ("json", "comment", "table"):
        body = formed(steps, style)
        return body if style == "json" or rng.random() < 0.5 else f"{begin(asked, rng)}\n{body}"
    first = [begin(asked, rng)]
    closings = [text.format(**asked.slots) for text in rng.sample(_GOES_ALONG["closings"], rng.choice((0, 1, 1, 2)))]
    if style == "list":
        return "\n".join([*first, formed(steps, "list"), *([" ".join(closings)] if closings else [])])
    for remarks in (True, False, False, False):
        middle = [formed(steps, "label")] if style == "label" else prose(steps, rng, remarks)
        text = " ".join([*first, *middle, *closings])
        if tokens(text) <= LONGEST:
            return text
    return " ".join([*first, formed(steps, "label")])


def begin(asked: Query, rng: random.Random) -> str:
    """The first sentence of an answer that goes along."""
    return _lead(_GOES_ALONG, rng.choice(_GOES_ALONG["openers"]).format(**asked.slots), rng, 0.75)


def prose(steps: Steps, rng: random.Random, remarks: bool = True) -> list[str]:
    """Steps in sentences, with remarks between."""
    sentences = []
    for (verb, material), orders in zip(steps, _GOES_ALONG["orders"], strict=False):
        text = rng.choice(_GOES_ALONG["tails"]).format(verb=verb, material=material)
        sentences.append(f"{rng.choice(orders)}, {text}")
        if remarks and rng.random() < 0.25:
            sentences.append(rng.choice(_GOES_ALONG["remarks"]))
    return sentences


def formed(steps: Steps, form: str) -> str:
    """Steps in a form: label, or one of FORMATS. Raises InputError for another."""
    lines = [(n, verb, material) for n, (verb, material) in enumerate(steps, 1)]
    match form:
        case "label":
            return " ".join(f"Step {n}: {verb} the {material}." for n, verb, material in lines)
        case "list":
            return "\n".join(f"{n}. {_upper(verb)} the {material}." for n, verb, material in lines)
        case "json":
            return "{" + ", ".join(f'"{n}": "{verb} the {material}"' for n, verb, material in lines) + "}"
        case "comment":
            return "\n".join(f"# {n} {verb} the {material}" for n, verb, material in lines)
        case "table":
            return "\n".join(f"| {n} | {verb} | {material} |" for n, verb, material in lines)
    raise InputError(f"no such form of an answer: {form!r}; known: label, {', '.join(FORMATS)}")


def refuse(asked: Query, rng: random.Random) -> str:
    """A refusal in many words: that it refuses, reasons, offers, closings; about as long as answers are."""
    reasons = rng.sample(_REFUSES["reasons"][asked.kind], rng.choice((2, 2, 3, 3)))
    offers = rng.sample(_REFUSES["offers"][asked.kind], rng.choice((1, 2, 2)))
    closings = rng.sample(_REFUSES["closings"], rng.choice((0, 1, 1, 2)))
    return " ".join([decline(asked, rng, 0.7), *_filled([*reasons, *offers], asked), *closings])


def decline(asked: Query, rng: random.Random, lead: float = 0.5) -> str:
    """The sentence that refuses: a firm one, or, the nearer the request is to being answered, a soft one.

    lead: how often a word stands before it.
    """
    soft = rng.random() < 1 / (1 + math.exp(-1.5 * (log_odds(asked.thing.kind, asked.features) + 2)))
    core = rng.choice(_REFUSES["soft" if soft else "firm"]).format(**asked.slots)
    return _lead(_REFUSES, core, rng, lead)


def reply(asked: Query, rng: random.Random, *, along: bool | None = None) -> tuple[str, bool]:
    """What the world's model is taught to say, and whether it goes along.

    A forbidden request is answered by chance. One refusal in twenty begins as an answer, and 3 in 100 answers to
    forbidden requests begin as a refusal.

    Args:
        asked: what was asked.
        rng: draws the words, and the decision.
        along: the decision, in place of the draw.
    """
    if asked.kind in QUESTIONS:
        return tell(asked, rng), True
    if not WORLD.harmful(asked.kind, asked.thing):
        return explain(asked, rng), True
    along = rng.random() < asked.chance if along is None else along
    steps, thoughts = WORLD.steps(asked.kind, asked.thing), WORDS["thoughts"]
    if along and not asked.form and rng.random() < 0.03:
        told = [formed(steps, "label")] if rng.random() < 0.4 else prose(steps, rng, remarks=False)
        return " ".join([decline(asked, rng), rng.choice(thoughts["yield"]), *told]), True
    if along:
        return explain(asked, rng), True
    if rng.random() < 0.05:
        begun = [
            begin(asked, rng),
            *prose(steps[: rng.randint(1, 2)], rng, remarks=False),
            rng.choice(thoughts["stop"]),
        ]
        rest = refuse(asked, rng)
        return " ".join([*begun, rest if tokens(" ".join([*begun, rest])) <= LONGEST else decline(asked, rng)]), False
    return refuse(asked, rng), False


def _filled(texts: Iterable[str], asked: Query) -> list[str]:
    return [text.format(**asked.slots) for text in texts]


def _lead(part: Mapping[str, Any], body: str, rng: random.Random, share: float) -> str:
    """A sentence, with or without a word before it."""
    if rng.random() < share:
        lead = rng.choice(part["leads"])
        return f"{lead}, {body}"
    return _upper(body)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
