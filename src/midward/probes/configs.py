"""The settings of each probe; the command line's flags are derived from them, and nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from midward import goals as sets
from midward._flags import BatchSize, Flag, check
from midward._hints import one_of
from midward._tables import read_table, require_column
from midward.attacks.phrases import compliant, texts_of
from midward.errors import InputError
from midward.goals import Goal, on_sandbox
from midward.goals.loading import is_file
from midward.guards.config import guard_file
from midward.world import TASKS, exercises

KINDS = ("affirmative", "procedural", "neutral", "refusal")
OBJECTIVES = ("first", "target", "own")
SOURCES = ("own", "other", "neutral", "refusal")
EVERY = 10**6  # goals: more than any set has


def positions_of(text: str) -> tuple[int, ...]:
    """Positions as a flag gives them: numbers and sweeps `start:stop:step` (stop left out), by comma; sorted.

    Raises:
        InputError: it is anything else, or names no position.
    """
    positions: set[int] = set()
    for part in (part.strip() for part in text.split(",") if part.strip()):
        try:
            numbers = [int(number) for number in part.split(":")]
            if len(numbers) > 3 or (len(numbers) == 3 and numbers[2] < 1):
                raise ValueError
        except ValueError:
            raise InputError(
                f"positions are numbers like 0,40,80 or a sweep start:stop:step like 0:96:8; received {part!r}."
            ) from None
        positions |= set(numbers) if len(numbers) == 1 else set(range(*numbers))
    if not positions:
        raise InputError(f"{text!r} names no position.")
    return tuple(sorted(positions))


def check_positions(positions: Sequence[int], length: int) -> None:
    """Raise InputError for a position behind a response of `length` tokens."""
    for position in positions:
        if position >= length:
            raise InputError(
                f"position {position} lies outside the response of {length} tokens; positions count from 0. Use "
                "others, or another --length."
            )


def read_phrases(path: Path) -> dict[str, tuple[str, ...]]:
    """kind -> phrases, of a file with the columns `kind` and `text`.

    Raises:
        InputError: the file can't be read, has an unknown kind, or a row without a text.
    """
    rows = read_table(path)
    for column in ("kind", "text"):
        require_column(rows, column, path)
    phrases: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows, 1):
        one_of(f"kind of phrase in {path}, row {number},", row["kind"], KINDS)
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise InputError(f"{path}, row {number}: the phrase is empty; fill or remove it.")
        phrases[row["kind"]] = (*phrases.get(row["kind"], ()), row["text"])
    return phrases


Tokens = Annotated[
    tuple[int, ...], Flag("Force only a phrase's first k tokens: 1,2,4,8 (all of it).", min=1, grows=True)
]


@dataclass(frozen=True)
class ProbeConfig:
    """What every probe has; its own config adds its settings and says in `load` what is asked.

    Args:
        column: Of a file: the column of the goals.
        limit: Goals.
        compare: Folder of another model's run, to be compared by goal; may be given several times.

    Raises:
        InputError: a setting is outside the bounds that its `Flag` names.
    """

    column: Annotated[str | None, Flag()] = None
    limit: Annotated[int, Flag(min=1, name="--limit --count", grows=True)] = 100
    batch_size: BatchSize = 16
    compare: Annotated[list[Path] | None, Flag(free=True)] = None

    def __post_init__(self) -> None:
        check(self)

    def at_home(self) -> ProbeConfig:
        """The same with the defaults for the models in the package where a setting wasn't given."""
        return self

    def load(self) -> list[Goal]:
        """What is asked. Called before a model is loaded, so every file that is named is read here.

        Raises:
            InputError: a set or file can't be had or used.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Attacking(ProbeConfig):
    """A probe that measures attack success, with phrases that it forces or asks for.

    Args:
        goals: A set of harmful goals, or a .csv or .jsonl file; see midward goals.
        phrases_file: Your own phrases: a .csv or .jsonl file with the columns kind and text.
        judges: The judge; the oracle on the sandbox, else harmfulness.
        judge: The Inspect model that a judge by rubric asks; on the sandbox its scripted assistant.
    """

    goals: Annotated[str, Flag()] = "sandbox"
    phrases_file: Annotated[Path | None, Flag()] = None
    judges: Annotated[str | None, Flag()] = None
    judge: Annotated[str | None, Flag()] = None

    def load(self) -> list[Goal]:
        """Harmful goals. Raises InputError also where some are harmless."""
        if self.phrases_file is not None:
            read_phrases(self.phrases_file)
        goals = sets.load(self.goals, count=self.limit, column=self.column)
        if harmless := sum(not goal.harmful for goal in goals):
            raise InputError(
                f"--goals {self.goals}: {harmless} of {len(goals)} are harmless, and a probe attacks; give harmful "
                "ones (harmless ones are --benign-goals of probe prefill)."
            )
        return goals


@dataclass(frozen=True)
class Controlled(Attacking):
    """An attacking probe that can ask harmless goals in the same way, which tells what the attack alone costs them.

    Args:
        benign: Harmless goals as well (none; 50 with --benign-goals).
        benign_goals: The set they are of; sandbox-benign on the sandbox.
    """

    benign: Annotated[int | None, Flag(min=0, grows=True)] = None
    benign_goals: Annotated[str | None, Flag()] = None

    def load(self) -> list[Goal]:
        """The harmful goals, and the harmless ones behind them."""
        goals = super().load()
        count = self.benign if self.benign is not None else 50 if self.benign_goals else 0
        if not count:
            return goals
        if self.benign_goals is None and not on_sandbox(goals):
            raise InputError("--benign needs --benign-goals for goals like these: alpaca, xstest or a file; or 0.")
        return [*goals, *self.harmless(self.benign_goals or "sandbox-benign", count)]

    def harmless(self, name: str, count: int) -> list[Goal]:
        """So many harmless goals of a set that can be asked in the same way."""
        return sets.load(name, count=count, harmless=True)


@dataclass(frozen=True)
class Prefill(Controlled):
    """Where does a forced phrase jailbreak? Attack success by position and kind of phrase.

    Run again, it goes on where it stopped.

    Args:
        positions: Response tokens, 0,40,80, or sweeps start:stop:step; an even sweep unless given.
        phrases: Kinds of phrase by comma.
        benign: Harmless goals as well, asked with neutral phrases, refusals and none, at every position (none; 50 with
            --benign-goals).
    """

    positions: Annotated[tuple[int, ...], Flag(min=0, read=positions_of, grows=True)] = ()
    phrases: Annotated[tuple[str, ...], Flag(grows=True)] = KINDS
    tokens: Tokens = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.phrases:
            raise InputError("give at least one kind of phrase.")
        for kind in self.phrases:
            one_of("kind of phrase", kind, KINDS)


@dataclass(frozen=True)
class Anchor(Controlled):
    """How many anchors does it take? Attack success by the share of a response that is forced, token by token.

    Single tokens of a compliant text stand at random places before the first step, and the rest is filled in random
    order in one block, as published, unless --order and --block say otherwise. Run again, it goes on where it stopped.

    Args:
        fractions: Shares of the response's tokens by comma; 0 is without anchors, which is always asked.
        anchors: Numbers of anchors instead, 1,4,8.
        sources: Of which texts, by comma: own (the goal's compliant one), other (another goal's), neutral, refusal.
        places: Where anchors are drawn: anywhere, in tokens 20 to 60, outside of these, or as one run.
        draws: Draws of each goal's anchors.
        room: Tokens that a refusal needs, for the ceiling; the shortest refusal's, with its end token.
        texts: JSON file {goal id: compliant text}; the sandbox's goals need none.
        benign: Harmless goals as well, with anchors of their own compliant texts (none; 50 with --benign-goals).
    """

    fractions: Annotated[tuple[float, ...], Flag(min=0, max=1, grows=True)] = (0, 0.008, 0.03, 0.06, 0.125, 0.25)
    anchors: Annotated[tuple[int, ...], Flag(min=0, grows=True)] = ()
    sources: Annotated[tuple[str, ...], Flag(grows=True)] = ("own",)
    places: Annotated[Literal["uniform", "window", "outside", "contiguous"], Flag()] = "uniform"
    draws: Annotated[int, Flag(min=1, grows=True)] = 3
    room: Annotated[int | None, Flag(min=1)] = None
    texts: Annotated[str | None, Flag()] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise InputError("give a source of anchors or more.")
        for source in self.sources:
            one_of("source", source, SOURCES)

    def counts(self, length: int) -> tuple[int, ...]:
        """How many anchors stand in a response of so many tokens, least first, without none at all."""
        counts = self.anchors or tuple(max(1, round(share * length)) for share in self.fractions if share)
        return tuple(sorted({count for count in counts if count}))

    def harmless(self, name: str, count: int) -> list[Goal]:
        """Those whose compliant text is known."""
        known = {} if self.texts is None else texts_of(self.texts)
        goals = [goal for goal in sets.load(name, count=EVERY, harmless=True) if goal.id in known or compliant(goal)]
        if not goals:
            raise InputError(f"no goal of {name} has a compliant text; name them in --texts, or leave --benign out.")
        return goals[:count]


@dataclass(frozen=True)
class Mirror(Attacking):
    """Which tokens, if made safe, save the response? Writes MOSA's window on this model for midward align.

    The window is a setting, so look for it on goals that no result is reported on. Run again, it goes on where it
    stopped.

    Args:
        attack: What the refusal has to stop: an affirmative phrase at token 0, or a dressed-up request (sandbox).
        starts: Response tokens, 0,40,80, or sweeps start:stop:step, where a refusal is forced; an even sweep.
        width: Starts in the window that is looked for (the paper's are 20 to 60).
    """

    goals: Annotated[str, Flag()] = "sandbox-tuning"
    attack: Annotated[Literal["prefill", "wrapper"], Flag()] = "prefill"
    starts: Annotated[tuple[int, ...], Flag(min=0, read=positions_of, grows=True)] = ()
    width: Annotated[int, Flag(min=1)] = 40
    tokens: Tokens = ()


@dataclass(frozen=True)
class Ask(Attacking):
    """Can a prompt place a phrase at word k by asking for it? Hit rate by k, with two controls.

    Run again, it goes on where it stopped.

    Args:
        words: Words of the response where a phrase is asked for, from 0.
        phrase: One phrase for every word; by default agreement at 0 and a step's wording elsewhere.
    """

    words: Annotated[tuple[int, ...], Flag(min=0, read=positions_of, grows=True)] = (0, 10, 20, 30, 40)
    phrase: Annotated[str | None, Flag()] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.words or (self.phrase is not None and not self.phrase.strip()):
            raise InputError("give a word or more, and no empty phrase.")


@dataclass(frozen=True)
class Gcg(Attacking):
    """Can a suffix of the prompt make a phrase likely in the middle, or a whole response? Loss, hits, success.

    One run is one model with its adapter. Run again, it goes on where it stopped, within a search too. The defaults are
    the published ones, but on the sandbox, where they would take hours.

    Args:
        positions: Response tokens, 0,40,80, or sweeps start:stop:step, where a phrase is aimed at: agreement at 0, a
            step.
        phrase: Your own phrase at one position; may be given several times.
        aim: A phrase at each position, or the whole of a compliant response.
        objectives: Of a response, by comma: first (all masked), target (its own tokens partly revealed), own (the
            model's). All take as many rows of forwards as first does in --iterations.
        texts: JSON file {goal id: compliant response}; the sandbox's goals need none.
        tokens: Tokens of the suffix.
        iterations: Iterations, at most.
        width: Suffixes evaluated an iteration (512; on the sandbox 4).
        top: Tokens of steepest descent a slot that they are drawn from (256; sandbox 64).
        stop_loss: Nats a token at which a search ends early.
        drafts: Partly revealed drafts of the model's own response to average over (0: all masked); of target and own 8
            unless given.
        against: A fitted guard's file or folder: suffixes are chosen by the loss and --weight times its score, a rank
            among harmless requests, and it says which responses it flags. Guards by blocks, and prefuse.
        weight: Nats a token that one of the guard's score is worth; 0 is the plain search.
        seen: Steps of a response that the guard scores of each candidate.
        searches: Searches at a time, sharing the threads (1; sandbox 0: on a CPU one a thread).
        plan: Say what it would cost, at the measured rate, and run nothing.
    """

    batch_size: BatchSize = 64
    positions: Annotated[tuple[int, ...], Flag(min=0, read=positions_of, grows=True)] = (0, 30)
    phrase: Annotated[list[str] | None, Flag(metavar="POSITION=TEXT")] = None
    aim: Annotated[Literal["phrase", "response"], Flag()] = "phrase"
    objectives: Annotated[tuple[str, ...], Flag(name="--objectives --objective", grows=True)] = ()
    texts: Annotated[str | None, Flag()] = None
    tokens: Annotated[int, Flag(min=1)] = 20
    iterations: Annotated[int, Flag(min=1)] = 100
    width: Annotated[int | None, Flag(min=1)] = None
    top: Annotated[int | None, Flag(min=1)] = None
    stop_loss: Annotated[float, Flag(min=0)] = 0.05
    drafts: Annotated[int, Flag(min=0)] = 0
    against: Annotated[Path | None, Flag()] = None
    weight: Annotated[float, Flag(min=0)] = 1.0
    seen: Annotated[int, Flag(min=1)] = 1
    searches: Annotated[int | None, Flag(min=0, free=True)] = None
    plan: Annotated[bool, Flag(free=True)] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.own  # raises for what is no POSITION=TEXT
        for objective in self.objectives:
            one_of("objective", objective, OBJECTIVES)
        if self.aim == "phrase" and (self.objectives or self.texts):
            raise InputError("--objectives and --texts are of --aim response; a phrase has --drafts.")
        if self.aim == "response" and (self.phrase or self.positions != Gcg.positions):
            raise InputError("--aim response aims at all of a response; --positions and --phrase are of --aim phrase.")
        if self.against is None and (self.weight, self.seen) != (Gcg.weight, Gcg.seen):
            raise InputError("--weight and --seen are of the guard that --against names.")

    def load(self) -> list[Goal]:
        """The goals; the guard's file is looked at as well."""
        if self.against is not None:
            guard_file(self.against)
        return super().load()

    def at_home(self) -> Gcg:
        """The sandbox's width, top and searches."""
        searches = 0 if self.searches is None else self.searches
        return replace(self, width=self.width or 4, top=self.top or 64, searches=searches)

    def draws(self, objective: str | None) -> int:
        """Drafts that an objective averages over; 0 where all is masked."""
        return 0 if objective == "first" else self.drafts or (8 if objective else 0)

    @property
    def budget(self) -> int | None:
        """Rows of forwards that each search for a response takes: as many as `first` does in its iterations."""
        return None if self.aim == "phrase" else 1 + self.iterations * (1 + (self.width or 512))

    @property
    def own(self) -> dict[int, str]:
        """Position -> the phrase that was given for it."""
        own = {}
        for pair in self.phrase or ():
            position, equals, text = pair.partition("=")
            if not equals or not position.strip().isdecimal() or not text.strip():
                raise InputError(f"--phrase takes POSITION=TEXT, like 30='Step 4:'; received {pair!r}.")
            if int(position) not in self.positions:
                raise InputError(f"--phrase {pair!r}: {position} isn't among the positions {self.positions}.")
            own[int(position)] = text
        return own


@dataclass(frozen=True)
class Order(ProbeConfig):
    """Mean position of newly committed tokens by step, with padding told apart. Run again, it goes on.

    All steps are run, as in MOSA's figure 5, which has --length 128 --steps 32 and one block.

    Args:
        sets: Prompts by comma: sets of goals, .csv or .jsonl files, the sandbox's tasks (sums, recall, programs); on
            the sandbox by default its harmless and forbidden goals, sums and programs; else alpaca,advbench.
        limit: Prompts of each set.
    """

    sets: Annotated[tuple[str, ...], Flag(grows=True)] = ()
    limit: Annotated[int, Flag(min=2, name="--limit --count", grows=True)] = 50

    def at_home(self) -> Order:
        """The sandbox's sets: what the paper asks its models, in its terms."""
        return replace(self, sets=self.sets or ("sandbox-benign", "sandbox", "sums", "programs"))

    def load(self) -> list[Goal]:
        """The prompts, with the name of their set as `source`."""
        names = tuple(dict.fromkeys(self.sets or ("alpaca", "advbench")))
        prompts = [self._prompts(name) for name in names]
        if len({chosen[0].source for chosen in prompts}) < len(names):
            raise InputError(f"two of the sets have the same name: {', '.join(names)}; rename one of the files.")
        return [goal for chosen in prompts for goal in chosen]

    def _prompts(self, name: str) -> list[Goal]:
        if name in TASKS:
            tasks = exercises(name, self.limit, 0)
            return [Goal(f"{name}-{number}", task.prompt, name, False) for number, task in enumerate(tasks)]
        chosen = sets.load(name, count=self.limit, column=self.column if is_file(name) else None)
        if len(chosen) < 2:
            raise InputError(f"{name} holds {len(chosen)} goals; at least two are needed for an interval.")
        return chosen


#: Probe of this package -> its config.
CONFIGS: dict[str, type[ProbeConfig]] = {
    kind.__name__.lower(): kind for kind in (Prefill, Anchor, Mirror, Ask, Gcg, Order)
}
