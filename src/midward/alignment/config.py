"""`AlignConfig`: every number of an alignment run, and the named recipes of each method."""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from midward._flags import Flag
from midward._hints import one_of
from midward._settings import read_settings
from midward.errors import InputError


class AlignError(InputError):
    """An alignment run that cannot be started as asked; the message says what to change."""


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_WHAT, _OURS, _HOW = "The objective", "What the paper doesn't have", "Adapter, optimizer, machine"


_WINDOWED, _TOKENS = ("mosa", "initial"), ("sft", "rt", "a2d")
#: Settings of some methods only.
_OF_WINDOWS: tuple[str, ...] = ("window_start", "window_end", "fit", "pairs", "draw", "kl_rows", "kl_reduction")
_OF_WINDOWS += ("harmful_floor", "reveal", "benign_reveal", "reveal_kind", "reveal_rate", "reveal_room", "reveal_text")
_ONLY: dict[str, tuple[str, ...]] = {
    **{name: _WINDOWED for name in _OF_WINDOWS},
    **{"least_rate": (*_TOKENS, "dpo"), "token_mean": _TOKENS, "masks": ("dpo",), "dpo_beta": ("dpo",)},
    **{"beta": (*_WINDOWED, "ra"), "group": ("ra",), "most_anchors": ("ra",), "rollout_steps": ("ra",)},
}


def _rate(text: str) -> Any:
    """`reveal_rate` from a command line: a name, or two numbers by comma."""
    low, comma, high = text.partition(",")
    try:
        return (float(low), float(high)) if comma else text
    except ValueError:
        raise InputError(f"reveal_rate is uniform, linear, or two numbers by comma; received {text!r}.") from None


@dataclass(frozen=True)
class DataConfig:
    """What alignment learns from; `sandbox` is the sandbox's world, which its models learn from by default.

    Args:
        data: Harmful prompts: a .csv or .jsonl file, or `sandbox`. Methods that learn answers take them from columns
            `answer` and `safe_answer`.
        benign: Benign prompts: the same; answers are taken from a column `answer`.
        column: The column of --data that holds the prompts (prompt, goal or behavior).
        benign_column: The column of --benign; by default --column.
        sentences: YAML file of the lists `safe` and `harmful`, or `sandbox`; default: built in, or the data's.
    """

    data: Annotated[str | None, Flag()] = None
    benign: Annotated[str | None, Flag()] = None
    column: Annotated[str | None, Flag()] = None
    benign_column: Annotated[str | None, Flag()] = None
    sentences: Annotated[str | None, Flag()] = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AlignConfig:
    """Settings of `align`. "The paper" is arXiv 2508.12398; [ours] marks where it is
    silent. The adapter and the optimizer are the paper's: LoRA r 32, alpha 64, AdamW at 5e-5, gradients clipped at
    0.01. Other methods have other defaults, see `RECIPES`.

    Args:
        method: mosa: a refusal in the middle of the response; initial: with its first token as the only start. sft:
            safe answers; rt: refusals as answers; a2d: the end token for every masked token of a harmful answer; dpo:
            the safe answer above the harmful one; ra: responses that are judged well, sampled from contaminated starts.
        recipe: Names the defaults below. paper: the method's paper to the letter; stable: with what ours adds, a KL on
            benign prompts above all; published: mosa with a floor and a benign KL, but without revealed starts.
        length: Response tokens in the training pass; the model's own length unless given [ours].
        window_start: First token at which a sentence may start (initial: 0).
        window_end: The token before which it must have started (initial: 1).
        fit: A sentence must end in the window too [ours].
        pairs: Sentence pairs that an example is scored on, averaged (paper: 1).
        draw: Who shares a drawn pair: all prompts of a step (the paper), or nobody.
        beta: Weight of KL(policy || reference) on harmful prompts (MOSA's paper: 0.05; of ra on all prompts).
        kl_rows: Masked tokens that this KL covers [ours]; the window's end where the longest sentence that starts in it
            can end.
        kl_reduction: Over those tokens [ours]; beta means 100 times more with sum.
        least_rate: Of sft, rt, a2d, dpo: the rate at which an answer's tokens are masked is drawn between this and 1.
        token_mean: Of sft, rt, a2d: what the cross-entropy is divided by: each row's length (A2D's code for LLaDA), or
            all masked tokens of the step (its code for Dream).
        masks: Of dpo: masked copies of an answer, the same for policy and reference.
        dpo_beta: Of dpo: how sharply the two answers are told apart.
        group: Of ra: responses to a prompt that are compared with each other [ours].
        most_anchors: Of ra: the share of a response that stands from the start in the last step, rising evenly from
            none in the first; 0: all responses start masked.
        rollout_steps: Of ra: denoising steps of a response; a quarter of its tokens unless given [ours].
        harmful_floor: The harmful sentence's score stops counting once it is this many nats below the reference's;
            --set harmful_floor=null: unbounded, the paper's.
        benign_beta: Weight of the KL on benign prompts; with 0 they are measured only.
        benign_per_prompt: Benign prompts beside each harmful one.
        reveal: Share of harmful examples whose response is partly revealed from a compliant text.
        benign_reveal: The same of benign examples that have an answer.
        reveal_kind: What is revealed: a prefix, a random subset, or either, at even odds.
        reveal_rate: How much of a harmful example's text: uniform, any share; linear, from none at the first step to
            all at the last (the curriculum of Recovery Alignment, arXiv 2510.00565); or two bounds of it, as 0.0,0.25.
        reveal_room: kept: one stretch stays free for the longest sentence; any: none does, as in an anchoring attack,
            and a safe sentence without room scores as the end token at the window's first masked token.
        reveal_text: What a harmful example's response is revealed from: own, the answer that complies, or generic lines
            where it has none; other, another harmful prompt's answer; neutral, a benign prompt's.
        lora_rank: Rank of the adapter.
        lora_alpha: Its scale.
        lora_dropout: Its dropout.
        lr: AdamW's learning rate.
        lr_schedule: Of the rate [ours].
        warmup_steps: Steps of rising rate.
        weight_decay: AdamW's.
        clip: Norm that gradients are clipped at; --set clip=null: they aren't.
        batch_size: Harmful prompts of an optimizer step, over all processes [ours].
        micro_batch: Of those, how many a process holds at a time; all of its share.
        epochs: Passes over the harmful prompts (paper: 1); the last step is filled up from the next.
        max_steps: Optimizer steps, instead of epochs.
        seed: Of the adapter's first weights, the order, the drawn sentences, the revealed tokens.
        gradient_checkpointing: Recompute the body's activations backwards: less memory, somewhat slower.
        log_steps: Steps between rows of the reward curve.
        save_steps: Steps between checkpoints, a multiple of --log-steps.
    """

    method: Annotated[Literal["mosa", "initial", "sft", "rt", "a2d", "dpo", "ra"], Flag()] = "mosa"
    recipe: Annotated[Literal["stable", "published", "paper"], Flag()] = "stable"

    length: Annotated[Count, Flag(panel=_WHAT)] = 128
    window_start: Annotated[int, Field(ge=0), Flag(panel=_WHAT)] = 20
    window_end: Annotated[Count, Flag(panel=_WHAT)] = 60
    fit: Annotated[bool, Flag(panel=_WHAT)] = False
    pairs: Annotated[Count, Flag(panel=_WHAT)] = 1
    draw: Annotated[Literal["step", "example"], Flag(panel=_WHAT)] = "example"
    beta: Annotated[NotNegative, Flag(panel=_WHAT)] = 0.05
    kl_rows: Annotated[Literal["response", "window"], Flag(panel=_WHAT)] = "response"
    kl_reduction: Annotated[Literal["mean", "sum"], Flag(panel=_WHAT)] = "mean"
    least_rate: Annotated[float, Field(gt=0, le=1), Flag(panel=_WHAT)] = 0.001
    token_mean: Annotated[Literal["length", "masked"], Flag(panel=_WHAT)] = "length"
    masks: Annotated[Count, Flag(panel=_WHAT)] = 4
    dpo_beta: Annotated[Positive, Flag(panel=_WHAT)] = 0.1
    group: Annotated[int, Field(ge=2), Flag(panel=_WHAT)] = 8
    most_anchors: Annotated[Share, Flag(panel=_WHAT)] = 0.25
    rollout_steps: Annotated[Count | None, Flag(panel=_WHAT)] = None

    harmful_floor: Annotated[NotNegative | None, Flag(panel=_OURS)] = 10.0
    benign_beta: Annotated[NotNegative, Flag(panel=_OURS)] = 100.0
    benign_per_prompt: Annotated[Count, Flag(panel=_OURS)] = 1
    reveal: Annotated[Share, Flag(panel=_OURS)] = 0.5
    benign_reveal: Annotated[Share, Flag(panel=_OURS)] = 0.5
    reveal_kind: Annotated[Literal["prefix", "subset", "both"], Flag(panel=_OURS)] = "subset"

    reveal_rate: Annotated[
        Literal["uniform", "linear"] | tuple[Share, Share], Flag(panel=_OURS, metavar="NAME|LOW,HIGH", read=_rate)
    ] = "uniform"
    reveal_room: Annotated[Literal["kept", "any"], Flag(panel=_OURS)] = "kept"
    reveal_text: Annotated[Literal["own", "other", "neutral"], Flag(panel=_OURS)] = "own"

    lora_rank: Annotated[Count, Flag(panel=_HOW)] = 32
    lora_alpha: Annotated[Count, Flag(panel=_HOW)] = 64
    lora_dropout: Annotated[float, Field(ge=0, lt=1), Flag(panel=_HOW)] = 0.0

    lr: Annotated[Positive, Flag(panel=_HOW)] = 5e-5
    lr_schedule: Annotated[Literal["constant", "linear", "cosine"], Flag(panel=_HOW)] = "constant"
    warmup_steps: Annotated[int, Field(ge=0), Flag(panel=_HOW)] = 0
    weight_decay: Annotated[NotNegative, Flag(panel=_HOW)] = 0.0
    clip: Annotated[Positive | None, Flag(panel=_HOW)] = 0.01
    batch_size: Annotated[Count, Flag(panel=_HOW)] = 4
    micro_batch: Annotated[Count | None, Flag(panel=_HOW)] = None
    epochs: Annotated[Positive, Flag(panel=_HOW)] = 1.0
    max_steps: Annotated[Count | None, Flag(panel=_HOW)] = None
    seed: Annotated[int, Field(ge=0, lt=2**31), Flag(panel=_HOW)] = 0

    gradient_checkpointing: Annotated[bool, Flag(panel=_HOW)] = False
    log_steps: Annotated[Count, Flag(panel=_HOW)] = 10
    save_steps: Annotated[Count, Flag(panel=_HOW)] = 100

    def __post_init__(self) -> None:
        for field in fields(self):
            methods = _ONLY.get(field.name, (self.method,))
            if self.method not in methods and getattr(self, field.name) != field.default:
                raise InputError(f"method {self.method!r} has no {field.name}; {', '.join(methods)} have.")
        if self.windowed:
            self._check_window()
        if self.save_steps % self.log_steps:
            raise InputError(
                f"save_steps={self.save_steps} is no multiple of log_steps={self.log_steps}; a resumed curve "
                "would differ from an uninterrupted one."
            )
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise InputError(f"batch_size={self.batch_size} is no multiple of micro_batch={self.micro_batch}.")

    def _check_window(self) -> None:
        if self.window_end <= self.window_start:
            raise InputError(
                f"the window {self.window_start} to {self.window_end} is empty; window_end must be larger."
            )
        if self.window_end > self.length:
            raise InputError(
                f"the window ends at token {self.window_end} of a response of {self.length} tokens; "
                "move the window or raise length."
            )
        if isinstance(self.reveal_rate, tuple) and self.reveal_rate[0] > self.reveal_rate[1]:
            raise InputError(f"reveal_rate={self.reveal_rate}: the first bound is the lower one.")
        if self.method == "initial" and self.reveal > 0 and self.reveal_kind != "subset":
            raise InputError(
                "with method='initial' the first token is the only start, so no prefix can be revealed; "
                "use reveal_kind='subset' or reveal=0."
            )

    @property
    def windowed(self) -> bool:
        """Whether the method scores sentences in a window of a response of masks."""
        return self.method in _WINDOWED

    @property
    def window(self) -> tuple[int, int]:
        """First start and the one past the last."""
        return self.window_start, self.window_end

    def memory(self, *, benign: bool) -> dict[str, Any]:
        """What training takes, as `midward.models.memory.estimate` is told it. benign: whether there are benign
        prompts."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and accelerate launch say
        share = self.micro_batch or max(1, self.batch_size // processes)
        rows = 2 * self.masks if self.method == "dpo" else 1
        return {
            "batch": share * (rows + (self.benign_per_prompt if benign else 0)),
            "length": min(self.length, 1024) + 64,
            "training": True,
            "checkpointing": self.gradient_checkpointing,
            "rank": self.lora_rank,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a recipe file."""
        return asdict(self)


_INITIAL = {"window_start": 0, "window_end": 1}
_PUBLISHED = {"reveal": 0.0, "benign_reveal": 0.0}
_MOSA = {"draw": "step", "harmful_floor": None, "benign_beta": 0.0, **_PUBLISHED}
_A2D = {"epochs": 10.0, "batch_size": 16, "weight_decay": 0.1, "clip": None, "lora_dropout": 0.05}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "mosa": {"stable": {}, "published": _PUBLISHED, "paper": _MOSA},
    "initial": {"stable": _INITIAL, "published": _INITIAL | _PUBLISHED, "paper": _INITIAL | _MOSA},
    **{name: {"stable": {**_A2D, "benign_beta": 5.0}, "paper": {**_A2D, "benign_beta": 0.0}} for name in _TOKENS},
    **{
        name: {"stable": {"clip": 1.0, "benign_beta": 5.0}, "paper": {"clip": 1.0, "benign_beta": 0.0}}
        for name in ("dpo", "ra")
    },
}
"""Method -> recipe -> what it sets apart from AlignConfig's defaults.

mosa, initial:
    stable: floor, benign KL, and half of the responses partly revealed. published: the paper's fully masked responses,
    with the floor and the benign KL that a small model needs to survive. paper: the objective as it is written.

sft, rt, a2d:
    paper: the numbers of A2D's released code. stable: with the benign KL, whose weight is [ours] and wasn't tuned:
    these losses are of one token, where MOSA's rewards are sums over about twenty.

dpo:
    paper: the objective as written; batch, rate and epochs are AlignConfig's. stable: with the same benign KL.

ra:
    paper: the curriculum, the reward and the gradient as written; all numbers are [ours], since the paper's aren't
    known. stable: with the same benign KL in place of `beta`'s.
"""


def resolve(settings: Mapping[str, Any]) -> AlignConfig:
    """The full configuration from `method`, `recipe` and whatever else is set, all by AlignConfig's field
    names.

    Raises AlignError for an unknown name (with the nearest known one) or a value out of range.
    """
    recipes = RECIPES.get(settings.get("method", AlignConfig.method), RECIPES["mosa"])
    recipe = settings.get("recipe", AlignConfig.recipe)
    try:
        one_of("recipe", recipe, recipes)
        return read_settings(AlignConfig, {**recipes[recipe], **settings}, "align")
    except InputError as error:
        raise AlignError(str(error)) from None
