"""The methods by name: what each trains on, and its objective."""

from dataclasses import dataclass

from midward.alignment.config import AlignConfig
from midward.alignment.data import Schedule, SentenceSchedule
from midward.alignment.mosa import MosaObjective
from midward.alignment.objective import Objective
from midward.models import LanguageModel


@dataclass(frozen=True)
class Method:
    """A way to align.

    Attributes:
        title: The heading of the adapter's card.
        what: What such an adapter does, and whose idea it is.
        schedule: Its examples.
        objective: Its loss.
    """

    title: str
    what: str
    schedule: type[Schedule]
    objective: type[MosaObjective]


METHODS = {
    "mosa": Method(
        "MOSA",
        "makes the middle of an answer to a harmful request a refusal (MOSA, arXiv 2508.12398)",
        SentenceSchedule,
        MosaObjective,
    ),
    "initial": Method(
        "Initial alignment",
        "makes an answer to a harmful request begin with a refusal (the baseline of MOSA, arXiv 2508.12398)",
        SentenceSchedule,
        MosaObjective,
    ),
}


def objective_of(model: LanguageModel, config: AlignConfig) -> Objective:
    """The loss that `config.method` names, of a model whose network is a PeftModel."""
    return METHODS[config.method].objective(model, config)
