"""`Card`: what a server says of the model behind it, and which of our runtime's capabilities may be asked for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from midward.sampling import Sampling
from midward.serving.engine import Engine
from midward.serving.wire import Masks

if TYPE_CHECKING:
    from midward.guards import Guard

_CHAT = frozenset({"CHAT", "HIST", "N"})


def capabilities_of(kind: str, sampling: Sampling, masks: Masks, system_turns: bool) -> frozenset[str]:
    """What may be asked of our runtime, by the names of `midward.attacks.Capability`.

    Args:
        kind: the model's, see `Family`.
        sampling: the settings of a request that gives none of its own.
        masks: the policy.
        system_turns: whether the chat template passes them on.
    """
    has = {*_CHAT, "POS", "BAN", "SLP", "GRAD"}
    cached = sampling.cache  # which masks in prompts and edits can't follow
    if kind == "diffusion" and masks == "allow" and cached is None:
        has.add("PMASK")
    if kind != "canvas" and cached is None:  # canvases can be written to alone
        has.add("EDIT")
    return frozenset({*has, "SYS"} if system_turns else has)


class Card(BaseModel):
    """What a server says of its model.

    Attributes:
        name: what clients call it. fingerprint: see `LanguageModel.fingerprint`. dtype: what it computes in.
        family: its `Family` record. max_positions: of prompt and response together.
        capabilities: what may be asked of it, by the names of `midward.attacks.Capability`.
        sampling: the settings of a request that gives none. given: those of them that aren't the model's own.
        guard: name and digest of the guard in front of it. shadow: it only looks.
        research: whether more than chat is granted; adapter, device and vocab_size are said then alone.
    """

    name: str
    fingerprint: str
    dtype: str
    family: dict[str, Any]
    max_positions: int
    capabilities: list[str]
    given: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    guard: dict[str, str] | None = None
    shadow: bool = False
    research: bool = False
    adapter: str | None = None
    device: str | None = None
    vocab_size: int | None = None


def card_of(
    engine: Engine,
    sampling: Sampling,
    *,
    name: str,
    guard: Guard | None = None,
    shadow: bool = False,
    research: bool = False,
) -> Card:
    """The card of an engine that is served.

    Args:
        engine: whose model.
        sampling: the settings of a request that gives none.
        name: what clients call it.
        guard, shadow: what stands in front of it.
        research: whether more than chat is granted.
    """
    model, system = engine.model, engine.takes_system_turns
    own = Sampling.for_model(model).length
    default = asdict(Sampling.for_model(model, length=sampling.length)) | {"length": own}
    has = _CHAT | {"SYS"} if system else _CHAT
    more: dict[str, Any] = {}
    if research:
        has = capabilities_of(model.family.kind, sampling, "allow", system)
        more = {"adapter": model.adapter, "device": str(model.device), "vocab_size": model.vocab_size}
    return Card(
        name=name,
        fingerprint=engine.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        family=asdict(model.family),
        max_positions=model.max_positions,
        capabilities=sorted(has),
        given={setting: value for setting, value in asdict(sampling).items() if value != default[setting]},
        sampling=asdict(sampling),
        guard=None if guard is None else {"name": guard.name, "digest": guard.digest},
        shadow=shadow,
        research=research,
        **more,
    )
