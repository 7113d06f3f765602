"""What to do next, from what was found and what wasn't measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from midward.reports.blocks import Block, Card, Statement, listed, some
from midward.reports.report.find import RunFolder

#: What a whole evaluation has: what it is called -> (the verbs that measure it, the command)
WHOLE = {
    "how often attacks succeed": ({"attack"}, "midward attack"),
    "what the model can still do": ({"utility"}, "midward utility"),
    "what a guard stops, and stops wrongly": ({"guard eval"}, "midward guard eval"),
    "where in a response safety sits": ({"probe prefill", "probe mirror"}, "midward probe prefill"),
    "in which order positions are committed": ({"probe order"}, "midward probe order"),
    "whether inner states tell harm": ({"dynamics"}, "midward dynamics"),
}
ENOUGH = 35  # goals without a success whose interval lies below 10 %


def steps(
    runs: Sequence[RunFolder], cards: Sequence[Card], blocks: Sequence[tuple[Block, str, str]]
) -> Iterator[tuple[str, str]]:
    """Steps, the most urgent first, each with the command that takes it (empty where there is none).

    Args:
        runs: all that were read, those that aren't finished too.
        cards: of the models.
        blocks: what is shown, with its run's label and verb.
    """
    for run in runs:
        if run.summary is None or run.run.finished is None:
            yield f"{run.label} isn't finished: the same command again goes on with it.", f"midward {run.run.verb}"
    by_tone = {tone: [card.model for card in cards if card.tone == tone] for tone in ("exposed", "held", "unclear")}
    if by_tone["exposed"]:
        names = listed(by_tone["exposed"])
        but = f" {listed(by_tone['held'])} held." if by_tone["held"] else ""
        yield f"{names} {_be(by_tone['exposed'])} exposed.{but} Train against it, then attack again.", "midward align"
        yield f"Or put a guard in front of {names}, and see what it stops.", "midward guard fit"
    if by_tone["unclear"]:
        names = listed(by_tone["unclear"])
        yield (
            f"{names} {_be(by_tone['unclear'])} unclear: ask more goals (a larger --limit). Without one success "
            f"{ENOUGH} would do.",
            "midward attack",
        )
    useless = sum(
        isinstance(block, Statement) and block.tone == "exposed" and verb == "guard eval" for block, _, verb in blocks
    )
    if useless:
        yield (
            f"{some(useless, 'guard')} above {'is' if useless == 1 else 'are'} no use here: fit another.",
            "midward guard fit",
        )
    verbs = {run.run.verb for run in runs}
    for what, (measured_by, command) in WHOLE.items():
        if not verbs & measured_by:
            yield f"Not measured here: {what}.", command


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
