"""The methods by name: what each trains on, and its objective."""

from dataclasses import dataclass

from midward.alignment.answers import LEARNS, AnswerSchedule
from midward.alignment.config import AlignConfig
from midward.alignment.data import Schedule, SentenceSchedule
from midward.alignment.dpo import PreferenceObjective
from midward.alignment.mosa import MosaObjective
from midward.alignment.objective import Objective
from midward.alignment.ra import Reward, RolloutObjective, RolloutSchedule
from midward.alignment.tokens import TokenObjective
from midward.models import LanguageModel


@dataclass(frozen=True)
class Method:
    """A way to align.

    Attributes:
        title: The heading of the adapter's card.
        what: What such an adapter does, and whose idea it is.
        schedule: Its examples.
        objective: Its loss.
        open: Settings that its paper doesn't name.
        ours: What of it isn't its paper's under any recipe; empty where nothing is.
    """

    title: str
    what: str
    schedule: type[Schedule]
    objective: type[MosaObjective] | type[TokenObjective] | type[PreferenceObjective] | type[RolloutObjective]
    open: tuple[str, ...] = ()
    ours: str = ""


#: Of MOSA and its baseline, see docs/papers.md.
_OPEN = ("length", "batch_size", "kl_rows", "kl_reduction", "fit")
_BASELINE = "the numbers, which are A2D's: papers describe this baseline in a sentence"

METHODS = {
    "mosa": Method(
        "MOSA",
        "makes the middle of an answer to a harmful request a refusal (MOSA, arXiv 2508.12398)",
        SentenceSchedule,
        MosaObjective,
        open=_OPEN,
    ),
    "initial": Method(
        "Initial alignment",
        "makes an answer to a harmful request begin with a refusal (the baseline of MOSA, arXiv 2508.12398)",
        SentenceSchedule,
        MosaObjective,
        open=_OPEN,
    ),
    "sft": Method(
        "Supervised fine-tuning",
        "was trained on safe answers to harmful requests (a baseline of A2D, arXiv 2509.23286)",
        AnswerSchedule,
        TokenObjective,
        ours=_BASELINE,
    ),
    "rt": Method(
        "Refusal training",
        "was trained on refusals of harmful requests (a baseline of A2D, arXiv 2509.23286)",
        AnswerSchedule,
        TokenObjective,
        ours=_BASELINE,
    ),
    "a2d": Method(
        "A2D",
        "makes every token of an answer to a harmful request the end token (A2D, arXiv 2509.23286)",
        AnswerSchedule,
        TokenObjective,
        open=("length",),
    ),
    "dpo": Method(
        "DPO in VRPO form",
        "prefers safe answers to harmful requests over harmful ones (VRPO, arXiv 2505.19223)",
        AnswerSchedule,
        PreferenceObjective,
        ours="pairs of a safe and a harmful answer to harmful prompts, and all numbers",
    ),
    "ra": Method(
        "Recovery Alignment",
        "recovers from harmful tokens in its own answer (Recovery Alignment, arXiv 2510.00565)",
        RolloutSchedule,
        RolloutObjective,
        ours="all numbers, a judge as the reward, and what benign prompts are worth",
    ),
}


def draws_sentences(method: str) -> bool:
    """Whether the examples of a method hold drawn sentences."""
    return METHODS[method].schedule is SentenceSchedule or (method in LEARNS and "refusal" in LEARNS[method].texts)


def objective_of(model: LanguageModel, config: AlignConfig, reward: Reward | None = None) -> Objective:
    """The loss that `config.method` names, of a model whose network is a PeftModel. reward: what `ra` learns from."""
    objective = METHODS[config.method].objective
    if issubclass(objective, RolloutObjective):
        assert reward is not None  # `align` asks for it
        return objective(model, config, reward)
    return objective(model, config)
