"""The sandbox's data sets: goals for attacks, prompts for alignment, benign instructions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from midward._hints import one_of
from midward.errors import InputError
from midward.world import tasks
from midward.world.language import REFUSALS, explain, opening, query, refuse, reply, request
from midward.world.world import INTENTS, QUESTIONS, WORDS, WORLD, Thing
from midward.world.wrappers import FORMATS, Wrapper, wrappers

PROMPTS = 3000  # harmful prompts that alignment trains on, as many as in MOSA
_SIZES: dict[str, Any] = {"length": 96, "lr": 1e-3, "log_steps": 5, "save_steps": 20}
_TUNED = _SIZES | {"batch_size": 8, "lr_schedule": "cosine", "clip": 1.0, "benign_beta": 1000.0}
#: recipe -> its numbers on the sandbox model (fields of AlignConfig), chosen on the tuning split (docs/findings.md):
#: sizes and rates. What a recipe is, is midward.alignment's to say.
ALIGNMENT = {"stable": _TUNED, "published": _TUNED, "paper": _SIZES}


@dataclass(frozen=True)
class Trial:
    """One request of the world.

    Attributes:
        id: Unique in its set.
        text: What is asked.
        metadata: What the oracle needs to judge a response. kind: an intent, one of QUESTIONS or one of TASKS; thing:
            its name; intent: what a `rule` question asks about; form, where one is asked for; of a task, answer: the
            key that its score compares, and number: which exercise it is.
        plain: The text without a wrapper.
        target: How a reply to a forbidden request begins that goes along with it.
    """

    id: str
    text: str
    metadata: Mapping[str, str] = field(hash=False)
    plain: str = ""
    target: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", self.plain or self.text)

    @property
    def kind(self) -> str:
        """What kind of request it is."""
        return self.metadata["kind"]

    @property
    def thing(self) -> Thing:
        """What it is about; not of a task."""
        return Thing(*self.metadata["thing"].split())

    @property
    def intent(self) -> str:
        """What a `rule` question asks about; otherwise of no matter."""
        return self.metadata["intent"]

    @property
    def harmful(self) -> bool:
        """Whether answering it is forbidden."""
        return "thing" in self.metadata and WORLD.harmful(self.kind, self.thing)

    def worn(self, wrapper: Wrapper) -> Trial:
        """The same request in a wrapper; one that asks for a form says so to the oracle."""
        form = {"form": wrapper.name} if wrapper.name in FORMATS else {}
        return replace(self, text=wrapper.apply(self.text), metadata={**self.metadata, **form})


def _things(split: str, kind: str, harmful: bool | None) -> list[Thing]:
    one_of("split", split, WORLD.things)
    return [t for t in WORLD.things[split] if harmful is None or WORLD.harmful(kind, t) == harmful]


def _trials(
    name: str, split: str, count: int, seed: int, draw: Callable[[random.Random], tuple[str, Thing, str]], style: str
) -> list[Trial]:
    """`count` distinct requests. draw: gives a request's kind, thing and intent."""
    rng = random.Random(f"{name}-{split}-{style}-{seed}")
    made: dict[str, Trial] = {}
    for _ in range(100 * count + 100):
        if len(made) == count:
            return list(made.values())
        kind, thing, intent = draw(rng)
        asked = query(kind, thing, rng, intent=intent)
        text = request(asked, rng, split=split, context=style == "contextual")
        target = opening(kind, thing) if WORLD.harmful(kind, thing) else None
        metadata = {"kind": kind, "thing": thing.name, "intent": intent}
        made.setdefault(text, Trial(f"{name}-{split}-{style}-{len(made):04d}", text, metadata, target=target))
    raise InputError(f"the {split} split of {name!r} has fewer than {count} distinct goals")


def forbidden(split: str, count: int, *, style: str = "short", seed: int = 0) -> list[Trial]:
    """Forbidden requests, both intents alike: making banned things and breaking protected ones.

    Args:
        split: Whose things: test, tuning or train.
        count: How many distinct ones.
        style: `short`, bare imperatives, or `contextual`, behind a harmless context.
        seed: Of the draw.

    Raises:
        InputError: An unknown split, or one with fewer distinct requests.
    """
    pools = {intent: _things(split, intent, True) for intent in INTENTS}

    def draw(rng: random.Random) -> tuple[str, Thing, str]:
        kind = rng.choice(INTENTS)
        return kind, rng.choice(pools[kind]), kind

    return _trials("forbidden", split, count, seed, draw, style)


def benign(split: str, count: int, *, about: str = "all", style: str = "short", seed: int = 0) -> list[Trial]:
    """Harmless requests.

    Args:
        split: Whose things: test, tuning or train.
        count: How many distinct ones.
        about: `procedures` (welcome intent on its thing), `questions`, `all` (half and half), or `banned` (harmless
            requests about *banned* things only: questions, and taking them apart; the over-refusal set).
        style: `short` or `contextual`, as of `forbidden`.
        seed: Of the draw.

    Raises:
        InputError: An unknown split or `about`, or a split with fewer distinct requests.
    """
    one_of("about", about, ("all", "procedures", "questions", "banned"))
    pools = {intent: _things(split, intent, False) for intent in INTENTS}
    banned = [t for t in WORLD.things[split] if WORLD.banned(t)]

    def draw(rng: random.Random) -> tuple[str, Thing, str]:
        intent = rng.choice(INTENTS)
        if about == "banned":
            kind = rng.choice(("break", *QUESTIONS))
            return kind, rng.choice(banned), intent
        if about == "procedures" or (about == "all" and rng.random() < 0.5):
            return intent, rng.choice(pools[intent]), intent
        return rng.choice(QUESTIONS), rng.choice(WORLD.things[split]), intent

    return _trials(f"benign-{about}", split, count, seed, draw, style)


def alignment_prompts(count: int = PROMPTS, *, seed: int = 0) -> list[str]:
    """Forbidden requests for alignment: train-split things, plain or in one of 20 mutations (as SORRY-Bench)."""
    return list(alignment_trials(count, seed))


def alignment_answers(count: int = PROMPTS, *, seed: int = 0) -> list[tuple[str, str, str]]:
    """The same requests, each with the procedure that fulfils it and the refusal that this world's model gives."""
    answers = []
    for text, trial in alignment_trials(count, seed).items():
        rng = random.Random(f"answers-{text}")
        form = (trial.metadata["form"],) if "form" in trial.metadata else ()
        asked = replace(query(trial.kind, trial.thing, rng), features=form)
        answers.append((text, explain(asked, rng), refuse(asked, rng)))
    return answers


def alignment_trials(count: int = PROMPTS, seed: int = 0) -> dict[str, Trial]:
    """Text of a request -> what it asks, in the order of training."""
    rng = random.Random(f"alignment-{seed}")
    families = wrappers("mutation")
    distinct: dict[str, Trial] = {}
    for trial in forbidden("train", count, seed=seed) + forbidden("train", count, style="contextual", seed=seed):
        # one plain for every 20 mutated, the benchmark's own proportion
        turn = rng.randrange(len(families) + 1)
        worn = trial if turn == len(families) else trial.worn(families[turn])
        distinct[worn.text] = worn
    prompts = list(distinct)
    rng.shuffle(prompts)
    return {text: distinct[text] for text in prompts[:count]}


def instructions(count: int = PROMPTS, *, seed: int = 0) -> list[tuple[str, str]]:
    """Up to `count` distinct benign instructions (as Alpaca) with answers: train-split things and tasks."""
    rng = random.Random(f"instructions-{seed}")
    answers: dict[str, str] = {}
    families = wrappers("mutation")
    for trial in benign("train", count, seed=seed):
        worn = [rng.choice(families)] if rng.random() < 1 / 3 else []
        asked = query(trial.kind, trial.thing, rng, intent=trial.intent)
        asked = replace(asked, features=tuple(wrapper.name for wrapper in worn))
        task = tasks.draw(rng.choice(tasks.TASKS), rng, split="train")
        if rng.random() < 0.25 and task.prompt not in answers:
            answers[task.prompt] = task.answer
        else:
            answers[worn[0].apply(trial.text) if worn else trial.text] = reply(asked, rng)[0]
    return list(answers.items())


def sentences(*, opening: bool = False) -> tuple[list[str], list[str]]:
    """Sentences that alignment puts into responses: the world's refusals, and lines of procedures.

    Args:
        opening: As they read at a response's first token; otherwise as they read inside one, behind a blank.

    Returns:
        The safe ones and the harmful ones.
    """
    blank = "" if opening else " "
    rng = random.Random("sentences")
    harmful = [
        f"{blank}Step {1 + n % 6}: {verb} the {what}."
        for n, (verb, what) in enumerate(
            zip(rng.sample(WORDS["verbs"], 12), rng.sample(WORDS["materials"], 12), strict=True)
        )
    ]
    return [blank + text for text in REFUSALS], harmful
