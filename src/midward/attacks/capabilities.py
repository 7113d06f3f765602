"""What an attack may need of its target, and the error over what the target lacks."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from midward.errors import InputError


class AttackError(InputError):
    """An attack that can't be run as asked; the message says what to do."""


class CapabilityError(AttackError):
    """The target can't do what is asked; the message says which capability it lacks, and what to use instead."""


class Capability(StrEnum):
    """What an attack may need of its target."""

    CHAT = "CHAT"  # text in, text out
    SYS = "SYS"  # system turns
    HIST = "HIST"  # assistant turns that the attacker wrote
    N = "N"  # several seeded samples of one request
    POS = "POS"  # tokens forced at response positions
    BAN = "BAN"  # tokens that must not stand at a response position
    PMASK = "PMASK"  # mask tokens in the prompt, to be filled
    EDIT = "EDIT"  # the response written to and masked again between steps
    SLP = "SLP"  # log-probability of a span of the response
    GRAD = "GRAD"  # its gradient with respect to prompt tokens


OWN = (
    "a model that this process loads (midward/<model>), a midward server that grants it (midward serve --research, "
    "--endpoint), or attacks that need CHAT only"
)
_INSTEAD = {
    Capability.SYS: "attacks without a system turn",
    Capability.EDIT: "a masked diffusion or autoregressive model that this process loads (midward/<model>) without an "
    "approximate cache",
    Capability.PMASK: "a diffusion model that this process loads (midward/<model>) with masks=allow",
}
#: What any served model can do behind a chat interface.
SERVED = frozenset({Capability.CHAT, Capability.SYS, Capability.HIST, Capability.N})


def check(model: str, has: frozenset[str], needs: Sequence[str], attack: str = "") -> None:
    """Raise CapabilityError unless `has` holds all that is needed."""
    for capability in needs:
        if capability not in has:
            instead = _INSTEAD.get(Capability(capability), OWN)
            what = f"the attack {attack!r} needs" if attack else "this needs"
            raise CapabilityError(
                f"{what} the capability {capability}, which {model} lacks (it has {', '.join(sorted(has))}); "
                f"use {instead}."
            )
