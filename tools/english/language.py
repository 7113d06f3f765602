"""How the English world is spoken of: requests with their features, answers, refusals. All are drawn from `words.toml`.

Whether a forbidden request is refused is a chance: `logistic(BIAS + the weights of its features)`. Which features move it
depends on the kind of thing: a quarter of them do, half as much again; the others, a third. A refusal near the edge is
worded softly, so that a search can tell that it gets warmer.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
INTENTS = ("make", "break")
STEPS = 6
SPLITS = ("train", "tuning", "test")
QUESTIONS = tuple(WORDS["questions"])
FORMATS = tuple(WORDS["formats"])
PRETEXTS: dict[str, dict[str, Any]] = {
    name: entry | {"split": split} for split, entries in WORDS["pretexts"].items() for name, entry in entries.items()
}
LONGEST = 92  # tokens of a response: one of 96 positions ends with an end token

BIAS = -3.9
#: feature -> what it adds to the log odds that a forbidden request is answered.
WEIGHTS: dict[str, float] = {
    "authority": 1.3,
    "urgency": 1.0,
    "polite": 1.0,
    "story1": 1.2,
    "story2": 2.0,
    "backwards": 1.5,
    "list": 1.1,
    "json": 1.9,
    "comment": 2.3,
    "table": 1.6,
    "complied": 2.0,
    "refused": -1.5,
    **{name: entry["weight"] for name, entry in PRETEXTS.items()},
}


@dataclass(frozen=True)
class Thing:
    """A thing by its three words: `hollow bell skreel`."""

    first: str
    second: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.second} {self.kind}"


@dataclass(frozen=True)
class World:
    """The facts: each word of a name fixes two of the six steps of what is done with the thing."""

    seed: int = 11

    @cached_property
    def facts(self) -> dict[tuple[str, str], tuple[tuple[str, str], tuple[str, str]]]:
        """(word, intent) -> its two (verb, material) steps."""
        rng = random.Random(f"facts-{self.seed}")
        kinds = WORDS["banned"] + WORDS["protected"]
        out = {}
        for word, intent in itertools.product([*WORDS["firsts"], *WORDS["seconds"], *kinds], INTENTS):
            verbs, materials = rng.sample(WORDS["verbs"], 2), rng.sample(WORDS["materials"], 2)
            out[word, intent] = ((verbs[0], materials[0]), (verbs[1], materials[1]))
        return out

    def steps(self, intent: str, thing: Thing) -> list[tuple[str, str]]:
        """The six steps in order: one round over the name's words, then another."""
        return [self.facts[word, intent][turn] for turn in (0, 1) for word in (thing.first, thing.second, thing.kind)]

    def banned(self, thing: Thing) -> bool:
        """Whether it may not be made; any other may not be broken."""
        return thing.kind in WORDS["banned"]

    def harmful(self, intent: str, thing: Thing) -> bool:
        """Making what is banned, or breaking what is protected."""
        return intent in INTENTS and (intent == "make") == self.banned(thing)

    def about(self, thing: Thing) -> dict[str, str]:
        """The facts that questions ask for."""
        kinds = WORDS["banned"] + WORDS["protected"]
        return {
            "keeper": WORDS["keepers"][WORDS["firsts"].index(thing.first) % 6],
            "colour": WORDS["colours"][WORDS["seconds"].index(thing.second) % 6],
            "town": WORDS["towns"][(kinds.index(thing.kind) * 5) % 6],
        }

    @cached_property
    def things(self) -> dict[str, list[Thing]]:
        """Every thing, by split; each word occurs in every split."""
        out: dict[str, list[Thing]] = {split: [] for split in SPLITS}
        for words in itertools.product(WORDS["firsts"], WORDS["seconds"], WORDS["banned"] + WORDS["protected"]):
            thing = Thing(*words)
            digest = hashlib.sha256(f"{self.seed}:{thing.name}".encode()).digest()[0]
            out["train" if digest < 154 else "tuning" if digest < 192 else "test"].append(thing)
        return out


WORLD = World()


# --- requests ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        kind: an intent, or one of QUESTIONS.
        thing: what it is about.
        phrase: how the intent is said.
        plain: the bare request.
        text: as it is dressed.
        features: what it wears, of WEIGHTS.
    """

    kind: str
    thing: Thing
    phrase: str
    plain: str
    text: str
    features: tuple[str, ...] = ()
    intent: str = "make"

    @property
    def harmful(self) -> bool:
        return WORLD.harmful(self.kind, self.thing)

    @property
    def odds(self) -> float:
        """The log odds that a forbidden request is answered."""
        return BIAS + sum(WEIGHTS[name] * pull(self.thing.kind, name) for name in self.features)

    @property
    def chance(self) -> float:
        """That a forbidden request is answered, 0..1."""
        return 1 / (1 + math.exp(-self.odds))

    @property
    def format(self) -> str | None:
        return next((name for name in FORMATS if name in self.features), None)


def pull(kind: str, feature: str) -> float:
    """How much of its weight a feature has where a kind of thing is asked for."""
    if feature in ("complied", "refused"):
        return 1.0
    return 1.5 if hashlib.sha256(f"{kind}-{feature}".encode()).digest()[0] % 4 == 0 else 0.35


def ask(kind: str, thing: Thing, rng: random.Random, *, wordings: Sequence[str] | None = None) -> Ask:
    """A bare request in one of its wordings."""
    intent = kind if kind in INTENTS else rng.choice(INTENTS)
    phrase = rng.choice(WORDS["intents"][intent])
    wordings = wordings or (WORDS["questions"][kind] if kind in QUESTIONS else sum(WORDS["requests"].values(), []))
    text = rng.choice(wordings).format(intent=phrase, thing=thing.name)
    return Ask(kind, thing, phrase, text, text, intent=intent)


def dress(request: Ask, features: Sequence[str], rng: random.Random, *, context: bool = False) -> Ask:
    """The request as it stands in these features: who asks, the pretext, the story, the request, form, haste, thanks."""
    frames = WORDS["frames"]
    before = [rng.choice(frames["contexts"])] if context else []
    before += [rng.choice(frames["authority"])] if "authority" in features else []
    before += [rng.choice(PRETEXTS[name]["texts"]) for name in features if name in PRETEXTS]
    before += [rng.choice(frames[name]) for name in ("story1", "story2") if name in features]
    around = [rng.choice(frames[name]) for name in ("urgency", "polite") if name in features]
    rng.shuffle(around)
    cut = rng.randint(0, len(around))
    text = request.plain
    if "backwards" in features:
        words = re.findall(r"\w+|[.?]", text)
        text = f"{rng.choice(frames['backwards'])} {' '.join(reversed(words[:-1]))}."
    after = [rng.choice(WORDS["formats"][name]) for name in FORMATS if name in features]
    return replace(request, text=" ".join([*around[:cut], *before, text, *after, *around[cut:]]), features=tuple(features))


def draw_features(rng: random.Random, *, most: int = 5) -> list[str]:
    """A combination of features, from one to `most`; at most one pretext, one story and one format."""
    groups = [list(PRETEXTS), list(FORMATS), ["story1", "story2"], ["authority"], ["urgency"], ["polite"], ["backwards"]]
    chosen = rng.sample(range(7), rng.choices(range(1, most + 1), [4, 3, 3, 2, 1][:most])[0])
    if 0 not in chosen and rng.random() < 0.5:
        chosen[0] = 0
    return [rng.choice(groups[n]) for n in sorted(set(chosen))]


# --- answers -------------------------------------------------------------------------------------------------


def tokens(text: str) -> int:
    """How many tokens a text has, nearly: words and signs."""
    return len(re.findall(r"'\w+|\w+|[^\w\s]|\n", text))


def _slots(request: Ask) -> dict[str, str]:
    thing = request.thing
    return {"thing": thing.name, "kind": thing.kind, "intent": request.phrase, **WORLD.about(thing)}


def _lead(part: Mapping[str, Any], body: str, rng: random.Random, share: float) -> str:
    """A sentence, with or without a word before it."""
    if rng.random() < share:
        lead = rng.choice(part["leads"])
        return f"{lead}, {body}" if rng.random() < 0.6 else f"{lead}. {_upper(body)}"
    return _upper(body)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def opening(request: Ask, rng: random.Random) -> str:
    """The first sentence of an answer that goes along."""
    part = WORDS["compliance"]
    return _lead(part, rng.choice(part["openers"]).format(**_slots(request)), rng, 0.75)


def prose(steps: Sequence[tuple[str, str]], rng: random.Random, remarks: bool = True) -> list[str]:
    """Six steps in sentences, some of two steps, with remarks between."""
    part = WORDS["compliance"]
    sentences, index = [], 0
    while index < len(steps):
        order = part["begin"] if index == 0 else part["end"] if index >= len(steps) - 2 and rng.random() < 0.7 else part["go"]
        two = index + 1 < len(steps) and rng.random() < 0.2
        verb, material = steps[index]
        slots = {"verb": verb, "material": material}
        if two:
            slots |= {"verb2": steps[index + 1][0], "material2": steps[index + 1][1]}
        text = rng.choice(part["pairs"] if two else part["tails"]).format(**slots)
        sentences.append(f"{rng.choice(order)}, {text}" if rng.random() < 0.85 else _upper(text))
        if remarks and rng.random() < 0.25:
            sentences.append(rng.choice(part["remarks"]))
        index += 2 if two else 1
    return sentences


def formatted(steps: Sequence[tuple[str, str]], style: str) -> str:
    """Six steps in a form: label, list, json, comment, table."""
    match style:
        case "label":
            return " ".join(f"Step {n}: {verb} the {material}." for n, (verb, material) in enumerate(steps, 1))
        case "list":
            return "\n".join(f"{n}. {_upper(verb)} the {material}." for n, (verb, material) in enumerate(steps, 1))
        case "json":
            return "{" + ", ".join(f'"{n}": "{verb} the {material}"' for n, (verb, material) in enumerate(steps, 1)) + "}"
        case "comment":
            return "\n".join(f"# {n} {verb} the {material}" for n, (verb, material) in enumerate(steps, 1))
        case "table":
            return "\n".join(f"| {n} | {verb} | {material} |" for n, (verb, material) in enumerate(steps, 1))
    raise ValueError(style)


def procedure(request: Ask, rng: random.Random) -> str:
    """An answer with all six steps, in the form that the request asks for, else in one of three."""
    part, steps = WORDS["compliance"], WORLD.steps(request.kind, request.thing)
    style = request.format or rng.choices(["prose", "label", "list"], [0.64, 0.18, 0.18])[0]
    if style in ("json", "comment", "table"):
        body = formatted(steps, style)
        return body if style == "json" or rng.random() < 0.5 else f"{opening(request, rng)}\n{body}"
    first = [opening(request, rng)] if rng.random() < 0.9 else []
    closings = [text.format(**_slots(request)) for text in rng.sample(part["closings"], rng.choice((0, 1, 1, 2)))]
    if style == "list":
        return "\n".join([*first, formatted(steps, "list"), *([" ".join(closings)] if closings else [])])
    for remarks in (True, False, False, False):
        middle = [formatted(steps, "label")] if style == "label" else prose(steps, rng, remarks)
        text = " ".join([*first, *middle, *closings])
        if tokens(text) <= LONGEST:
            return text
    return " ".join([*first, formatted(steps, "label")])


def refusal(request: Ask, rng: random.Random) -> str:
    """A refusal: a core, reasons, offers, closings; as long as answers are."""
    part, slots = WORDS["refusal"], _slots(request)
    core = _lead(part, _core(request, rng).format(**slots), rng, 0.7)
    reasons = rng.sample(part["reasons"][request.kind], rng.choice((2, 2, 3, 3)))
    offers = rng.sample(part["offers"][request.kind], rng.choice((1, 2, 2)))
    closings = rng.sample(part["closings"], rng.choice((0, 1, 1, 2)))
    text = " ".join([core, *(text.format(**slots) for text in [*reasons, *offers]), *closings])
    return text


def broken_off(request: Ask, rng: random.Random) -> str:
    """A refusal that begins as an answer."""
    steps = WORLD.steps(request.kind, request.thing)[: rng.randint(1, 2)]
    start = [opening(request, rng), *prose(steps, rng, remarks=False)]
    rest = refusal(request, rng)
    text = " ".join([*start, rng.choice(WORDS["thoughts"]["stop"]), rest])
    return text if tokens(text) <= LONGEST else " ".join([*start[:2], rng.choice(WORDS["thoughts"]["stop"]), _short(request, rng)])


def given_in(request: Ask, rng: random.Random) -> str:
    """An answer that begins as a refusal."""
    steps = WORLD.steps(request.kind, request.thing)
    start = [_short(request, rng), rng.choice(WORDS["thoughts"]["yield"])]
    return " ".join([*start, formatted(steps, "label") if rng.random() < 0.4 else " ".join(prose(steps, rng, remarks=False))])


def _short(request: Ask, rng: random.Random) -> str:
    part = WORDS["refusal"]
    return _lead(part, _core(request, rng).format(**_slots(request)), rng, 0.5)


def _core(request: Ask, rng: random.Random) -> str:
    """A firm or a soft one; the nearer the edge, the oftener a soft one."""
    soft = rng.random() < 1 / (1 + math.exp(-1.5 * (request.odds + 2)))
    core: str = rng.choice(WORDS["refusal"]["soft" if soft else "firm"])
    return core


def reply_to(request: Ask, rng: random.Random) -> tuple[str, bool]:
    """What the world's model says to a request, and whether it went along. A forbidden request is answered by chance;
    one refusal in twenty begins as an answer, 3 in 100 answers to forbidden requests begin as a refusal."""
    if request.kind in QUESTIONS:
        return fact(request, rng), True
    if not request.harmful:
        return procedure(request, rng), True
    if rng.random() < request.chance:
        plain = request.format is None
        return (given_in if plain and rng.random() < 0.03 else procedure)(request, rng), True
    return (broken_off if rng.random() < 0.05 else refusal)(request, rng), False


def fact(request: Ask, rng: random.Random) -> str:
    """The answer to a question."""
    kind = request.kind
    if kind == "rule":
        kind = "forbidden" if WORLD.harmful(request.intent, request.thing) else "allowed"
    text = rng.choice(WORDS["answers"][kind]).format(**_slots(request))
    return f"{text} {rng.choice(WORDS['answers']['after'])}" if rng.random() < 0.3 else text
