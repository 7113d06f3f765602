"""`Sampling`: the settings of one generation. Every field changes results, so all belong in a record."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from midward._flags import Flag, check
from midward._hints import did_you_mean
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.models import LanguageModel
    from midward.models.family import Family

#: All that an autoregressive model follows: it writes a token a step, left to right.
AUTOREGRESSIVE = ("length", "temperature", "end", "seed")
Order = Literal["low_confidence", "random", "left_to_right", "entropy", "margin", "annealed"]


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled. The defaults are those of LLaDA's published function.

    Source: LLaDA (Nie et al. 2025), algorithms 4 and 5.

    Args:
        length: Response tokens.
        steps: Denoising steps. Over the whole response; each block gets its share (the first ones one more where it
            doesn't divide). More steps than masks is fine: a step with nothing to commit is skipped. Without effect
            with a threshold, and for autoregressive models (one token a step).
        block: Tokens of a semi-autoregressive block. None is the whole response. The last may be shorter. With
            block-causal attention blocks are counted from the prompt's start, as published: the first may be shorter
            too.
        order: Which positions are committed first. Of the block's masked ones: "low_confidence" (the most confident
            ones; the published name says which are remasked), "random", "left_to_right", or Dream's "entropy" (lowest
            first) and "margin" (of the two most probable tokens, largest first; published as topk_margin), or
            "annealed" (DiffuGuard's: the confidence mixed with chance, 30 % of it in a block's first step and none in
            its last).
        threshold: Commit all tokens at least this probable, in (0, 1], instead of by schedule. One or more a step; the
            number of forwards then depends on the data. Only with order="low_confidence".
        temperature: 0 takes the most probable token. Above it, tokens are drawn from softmax(logits / temperature).
            Confidence is always that of temperature 1.
        guidance: Classifier-free guidance; 0 is off. It is w in u + (w + 1)(c - u); above 0 each step costs a second
            forward.
        end: What an end token does. "stop" ends a row once a committed end token has no mask before it (the text is the
            same as without, positions behind may stay masks); "keep" decodes everything, and the text goes on behind
            end tokens as in the published script; "forbid" never chooses an end token.
        prompt_masks: Masks inside the prompt are filled with the first block. "joint" counts them in its schedule, so
            everything is filled; "published" doesn't, so they compete and masks may be left over.
        schedule: How many tokens a step commits: evenly many, or as Dream was published, or as ZHZisZZ/dllm rounds.
            "even", the larger shares first, is LLaDA's; "published" is Dream's: of the masks that are left the share
            that the noise level falls by from step to step (of linear levels from 1 to 0.001), rounded down, and the
            rest in the last; "rounded" rounds that share to the nearest (levels from 1 to 0). Counted by row, where
            Dream's code takes the batch's mean. Without effect with a threshold.
        seed: Seed of every random draw. See `midward.sampling.noise` for what it reaches.
        cache: Approximate: compute a block and what is behind it, or the block alone. None computes every position in
            every step. With "prefix" and "dual" (Fast-dLLM, Wu et al. 2025) a block's first step computes all, its
            later ones the block and what is behind it, or the block alone, against the keys and values of the first.
            The mask token is then never chosen, and masks in prompts are refused. Block-causal models have an exact
            cache, always on, and take none of these.

    Raises:
        InputError: a value is outside its range.
    """

    length: Annotated[int, Flag(min=1, max=1_000_000)] = 128
    steps: Annotated[int, Flag(min=1)] = 128
    block: Annotated[int | None, Flag(min=1)] = None
    order: Annotated[Order, Flag()] = "low_confidence"
    threshold: Annotated[float | None, Flag(min=0, max=1)] = None
    temperature: Annotated[float, Flag(min=0)] = 0.0
    guidance: Annotated[float, Flag(min=0)] = 0.0
    end: Annotated[Literal["stop", "keep", "forbid"], Flag()] = "stop"
    prompt_masks: Literal["joint", "published"] = "joint"
    schedule: Annotated[Literal["even", "published", "rounded"], Flag()] = "even"
    seed: Annotated[int, Flag()] = 0
    cache: Annotated[Literal["prefix", "dual"] | None, Flag()] = None

    def __post_init__(self) -> None:
        for name in ("length", "steps", "block", "seed"):
            value = getattr(self, name)
            optional = name == "block" and value is None
            if not optional and (not isinstance(value, int) or isinstance(value, bool)):
                raise InputError(f"{name} must be an integer; received {value!r}.")
        check(self)  # bounds and choices
        if self.block is not None and self.block > self.length:
            raise InputError(f"block must be between 1 and length={self.length}; received {self.block}.")
        if self.threshold is None:
            if self.steps < len(self.blocks):
                raise InputError(
                    f"steps={self.steps} can't serve {len(self.blocks)} blocks, each needs one; "
                    "use more steps or larger blocks."
                )
        elif self.threshold == 0:
            raise InputError("threshold is in (0, 1], above 0; received 0.")
        elif self.order != "low_confidence":
            raise InputError(f"a threshold needs order='low_confidence'; received order={self.order!r}.")

    def __str__(self) -> str:
        return self.words()

    def words(self, kind: str = "diffusion") -> str:
        """The settings that say something of a model of this kind, as "length 128, steps 64, ..."."""
        names = AUTOREGRESSIVE if kind == "autoregressive" else [field.name for field in fields(self)]
        values = ((name, getattr(self, name)) for name in names)
        text = ", ".join(f"{name} {value}" for name, value in values if value is not None)
        return text + (f" (approximate: {self.approximate})" if self.approximate else "")

    @property
    def approximate(self) -> str | None:
        """What makes the tokens other than those of the model's own forwards, in words; None where nothing does."""
        return None if self.cache is None else f"{self.cache} cache"

    def unlike(self, **values: Any) -> str:
        """Those of these settings that have another value here, as "name=value, ..."; "" where none has."""
        own = {name: getattr(self, name) for name in values}
        return ", ".join(f"{name}={own[name]!r}" for name, value in values.items() if own[name] != value)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The blocks as (start, stop) response positions, left to right."""
        return self.blocks_after(0)

    @property
    def block_steps(self) -> list[int]:
        """The steps each block gets."""
        return spread(self.steps, len(self.blocks))

    def blocks_after(self, offset: int) -> list[tuple[int, int]]:
        """The blocks where the prompt's last `offset` positions are part of the first one; below `block`."""
        size = self.block or self.length
        starts = range(-offset, self.length, size)
        return [(max(start, 0), min(start + size, self.length)) for start in starts]

    def steps_after(self, offset: int) -> list[int]:
        """The steps of each of `blocks_after`: in proportion to their lengths, and one at least."""
        if offset == 0:
            return self.block_steps
        ends = [math.ceil(self.steps * stop / self.length) for _, stop in self.blocks_after(offset)]
        shares = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
        while sum(shares) > max(self.steps, len(shares)):
            shares[shares.index(max(shares))] -= 1
        return shares

    def changed(self, **changes: Any) -> "Sampling":
        """The same with these changes. A threshold gives way to steps and to an order, which mean nothing under it."""
        return replace(self, **by_schedule(changes))

    @classmethod
    def for_model(
        cls, model: "LanguageModel", defaults: Mapping[str, Any] | None = None, /, **overrides: Any
    ) -> "Sampling":
        """Return the model's own default settings, or in their place `defaults` (what a guard was fitted for), with
        these overrides.

        A default block longer than an overridden length shrinks to it; a default threshold gives way as in `changed`.
        Raises TypeError for an unknown setting and ValueError for a bad value.
        """
        known = [f.name for f in fields(cls)]
        defaults = defaults or {}
        for name in [*overrides, *defaults, *model.family.sampling]:
            if name not in known:
                hint = did_you_mean(name, known)
                raise TypeError(f"unknown sampling setting {name!r}.{hint} Available: {', '.join(known)}.")
        settings = {**model.family.sampling, **by_schedule(defaults), **by_schedule(overrides)}
        length = settings.get("length", cls.length)
        block = settings.get("block")
        if block is not None and "block" not in {*overrides, *defaults} and isinstance(length, int):
            settings["block"] = min(block, length)
        return cls(**settings)


def by_schedule(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of settings, where `steps` or `order` switch off a threshold that isn't among them."""
    return {"threshold": None, **changes} if {"steps", "order"} & changes.keys() else {**changes}


def block_offset(family: "Family", sampling: Sampling, prompt: int) -> int:
    """How many of the last positions of a prompt of so many tokens share the first block: some, with block-causal
    attention whose blocks are counted from the prompt's start."""
    size = sampling.block
    return 0 if family.attention != "block" or family.blocks_from == "response" or size is None else prompt % size


def blocks_of_steps(family: "Family", sampling: Sampling, prompt: int) -> list[tuple[int, int]]:
    """The block, in response positions, that each step is in behind a prompt of so many tokens. With a threshold, of as
    many steps as a row can take; of an autoregressive model what stands after each."""
    if family.kind == "autoregressive":
        return [(0, position + 1) for position in range(sampling.length)]
    if family.kind == "canvas":
        size = family.attention_block or sampling.length
        starts = range(0, sampling.length, size)
        blocks = [(start, min(start + size, sampling.length)) for start in starts]
        return [block for block in blocks for _ in range(max(1, sampling.steps // len(blocks)))]
    offset = block_offset(family, sampling, prompt)
    if sampling.threshold is not None:
        return [block for block in sampling.blocks_after(offset) for _ in range(block[1] - block[0])]
    both = zip(sampling.blocks_after(offset), sampling.steps_after(offset), strict=True)
    return [block for block, steps in both for _ in range(steps)]


def spread(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` near-equal integers, the larger ones first (the published schedule)."""
    base, more = divmod(total, parts)
    return [base + (part < more) for part in range(parts)]
