"""`AlignConfig`: every number of an alignment run, and the three named recipes."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from midward._hints import did_you_mean
from midward._settings import read_settings
from midward.errors import InputError


class AlignError(InputError):
    """An alignment run that cannot be started as asked; the message says what to change."""


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AlignConfig:
    """Settings of `align`. "The paper" is arXiv 2508.12398; [ours] marks where it is silent.

    The objective
        method: "mosa" (window in the middle) or "initial" (the baseline: the first token is the only start).
        recipe: "stable", "published" or "paper" (RECIPES); names the defaults below that were used.
        length: response tokens in the training pass, >= 1 [ours]. Equal to the length that will be sampled.
        window_start, window_end: starts k with window_start <= k < window_end (tokens 20 to 60). "initial":
            0, 1.
        fit: False: a sentence must start in the window; True: it must also end there [ours].
        pool: "max" over starts (the paper) or "logsumexp".
        pairs: sentence pairs an example is scored on, >= 1 (paper: 1); they are averaged.
        draw: "step": all prompts of a step share one drawn pair (the paper); "example": each draws its own.
        beta: weight of KL(policy || reference) on harmful prompts, >= 0 (paper: 0.05).
        kl_rows: masked tokens that this KL covers: the whole "response" or the "window" [ours]. The window's
            rows end where the longest sentence that starts in it can end.
        kl_reduction: "mean" or "sum" over those tokens [ours]; beta means 100 times more with "sum".
    What the paper doesn't have [ours]: "published" takes the floor and the benign KL, "stable" the revealed tokens too
        negative_floor: the harmful sentence's score stops counting once it is this many nats below the
            reference's own score of it, >= 0; None: unbounded (the paper).
        benign_beta: weight of the KL on benign prompts, >= 0; with 0 they are measured only.
        benign_per_prompt: benign prompts beside each harmful one, >= 1.
        reveal: share of harmful examples whose response is partly revealed from a compliant text, 0 to 1.
        benign_reveal: the same for benign examples that have an answer.
        reveal_kind: what is revealed: a "prefix", a random "subset", or "both" (either, at even odds).
        over_refusal_tokens: first tokens of a safe sentence that the over-refusal figure looks at, >= 1.
    The adapter
        lora_rank, lora_alpha, lora_dropout: LoRA r 32, alpha 64 (the paper); dropout 0 to 1.
    The optimizer
        lr: AdamW's learning rate, > 0 (paper: 5e-5). lr_schedule: "constant", "linear" or "cosine" [ours].
        warmup_steps: >= 0. weight_decay: >= 0. clip: gradient norm, > 0 (paper: 0.01).
        batch_size: harmful prompts an optimizer step, over all processes, >= 1 [ours].
        micro_batch: of those, how many a process holds at a time; None: all of its share.
        epochs: passes over the harmful prompts, > 0 (paper: 1). The last step is filled up from the next
            pass.
        max_steps: optimizer steps; overrides epochs.
        seed: of the adapter's initial weights, the order, the drawn sentences and the revealed tokens.
    The machine
        gradient_checkpointing: recompute the body's activations in the backward pass: less memory, a third
            slower.
        chunk_rows: rows of logits in memory at a time; None: by vocabulary size.
        log_steps: steps between rows of the reward curve. save_steps: between checkpoints, a multiple of
            log_steps.
    """

    method: Literal["mosa", "initial"] = "mosa"
    recipe: Literal["stable", "published", "paper"] = "stable"

    length: Count = 128
    window_start: Annotated[int, Field(ge=0)] = 20
    window_end: Count = 60
    fit: bool = False
    pool: Literal["max", "logsumexp"] = "max"
    pairs: Count = 1
    draw: Literal["step", "example"] = "example"
    beta: NotNegative = 0.05
    kl_rows: Literal["response", "window"] = "response"
    kl_reduction: Literal["mean", "sum"] = "mean"

    negative_floor: NotNegative | None = 10.0
    benign_beta: NotNegative = 100.0
    benign_per_prompt: Count = 1
    reveal: Share = 0.5
    benign_reveal: Share = 0.5
    reveal_kind: Literal["prefix", "subset", "both"] = "subset"
    over_refusal_tokens: Count = 4

    lora_rank: Count = 32
    lora_alpha: Count = 64
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    lr: Positive = 5e-5
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NotNegative = 0.0
    clip: Positive = 0.01
    batch_size: Count = 4
    micro_batch: Count | None = None
    epochs: Positive = 1.0
    max_steps: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    gradient_checkpointing: bool = False
    chunk_rows: Count | None = None
    log_steps: Count = 10
    save_steps: Count = 100

    def __post_init__(self) -> None:
        if self.window_end <= self.window_start:
            raise InputError(
                f"the window {self.window_start} to {self.window_end} is empty; window_end must be larger."
            )
        if self.window_end > self.length:
            raise InputError(
                f"the window ends at token {self.window_end} of a response of {self.length} tokens; "
                "move the window or raise length."
            )
        if self.save_steps % self.log_steps:
            raise InputError(
                f"save_steps={self.save_steps} is no multiple of log_steps={self.log_steps}; a resumed curve "
                "would differ from an uninterrupted one."
            )
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise InputError(f"batch_size={self.batch_size} is no multiple of micro_batch={self.micro_batch}.")
        if self.method == "initial" and self.reveal > 0 and self.reveal_kind != "subset":
            raise InputError(
                "with method='initial' the first token is the only start, so no prefix can be revealed; "
                "use reveal_kind='subset' or reveal=0."
            )

    @property
    def window(self) -> tuple[int, int]:
        """First start and the one past the last."""
        return self.window_start, self.window_end

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a recipe file."""
        return asdict(self)


RECIPES: dict[str, dict[str, Any]] = {
    "stable": {},
    "published": {"reveal": 0.0, "benign_reveal": 0.0},
    "paper": {"draw": "step", "negative_floor": None, "benign_beta": 0.0, "reveal": 0.0, "benign_reveal": 0.0},
}
"""What each recipe sets apart from AlignConfig's defaults.

stable: floor, benign KL, and half of the responses partly revealed. published: the paper's fully masked responses, with
    the floor and the benign KL that a small model needs to survive. paper: the objective as it is written.
"""


def resolve(settings: Mapping[str, Any]) -> AlignConfig:
    """The full configuration from `method`, `recipe` and whatever else is set, all by AlignConfig's field
    names.

    Raises AlignError for an unknown name (with the nearest known one) or a value out of range.
    """
    recipe = settings.get("recipe", "stable")
    if recipe not in RECIPES:
        raise AlignError(
            f"unknown recipe {recipe!r}.{did_you_mean(str(recipe), RECIPES)} Available: {', '.join(RECIPES)}."
        )
    chosen = {**RECIPES[recipe], **settings}
    if chosen.get("method") == "initial":
        chosen = {"window_start": 0, "window_end": 1, **chosen}
    try:
        return read_settings(AlignConfig, chosen, "align")
    except InputError as error:
        raise AlignError(str(error)) from None
