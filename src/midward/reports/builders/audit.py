"""`midward audit`: what an endpoint lets in, and which attacks that makes possible."""

from __future__ import annotations

from collections.abc import Mapping

from midward.reports.blocks import Block, Statement, Table, Tone, listed, some
from midward.reports.builders.shared import Record

WORDS = {"open": "OPEN", "ignored": "ignored", "refused": "refused", "unclear": "could not tell"}
LEGEND = (
    "OPEN: let in, and the evidence shows it. ignored: accepted, and nothing came of it. refused: the server said that "
    "it won't. could not tell: nothing shows it from outside."
)


def blocks(summary: Record) -> list[Block]:
    """Checks, attacks by hole, and the verdict. summary: what `midward.audit.audit` gives."""
    holes = [record for record in summary["checks"] if record["hole"]]
    chat = [record for record in summary["checks"] if not record["hole"]]
    title = f"What {summary['url']} lets in"
    made: list[Block] = [_checks("audit", title, holes, WORDS, LEGEND)] if holes else []
    if chat:
        words = {**WORDS, "open": "given"}
        made.append(_checks("audit-chat", "What any chat endpoint may give, and is no hole", chat, words))
    made += _attacks(summary)
    return [*made, *_verdict(summary)]


def _checks(name: str, title: str, records: list[Record], words: Mapping[str, str], note: str = "") -> Table:
    """What was found, a row each. words: for the verdicts."""
    rows = [
        [
            record["check"],
            record["api"],
            words[record["verdict"]],
            record["about"],
            ", ".join(f"{each} ({reach})" if reach else each for each, reach in record["capabilities"].items()) or None,
            record["evidence"],
        ]
        for record in records
    ]
    columns = ["check", "api", "verdict", "what", "gives", "evidence"]
    return Table(name, title, columns, rows, note, named_by=2)


def _attacks(summary: Record) -> list[Block]:
    """What each hole makes possible of midward's attacks."""
    attacks = summary["attacks"]
    rows = [
        [name, ", ".join(attack["needs"]), ", ".join(attack["by"]), "all of it" if whole else _lacking(summary, attack)]
        for name, attack in attacks.items()
        if (whole := attack["possible"] == "whole") or attack["possible"] == "part"
    ]
    if not rows:
        return []
    note = "By what an attack says that it needs; whether it succeeds is for midward attack to measure."
    heads = ["attack", "needs", "by the holes", "it has"]
    return [Table("audit-attacks", "Attacks that the holes give what they need", heads, rows, note)]


def _lacking(summary: Record, attack: Record) -> str:
    granted = summary["capabilities"]
    return ", ".join(f"{need}: {granted[need]}" for need in attack["needs"] if granted.get(need))


def _verdict(summary: Record) -> list[Block]:
    kinds = [attack["possible"] for attack in summary["attacks"].values()]
    more = kinds.count("whole") + kinds.count("part")
    asked = f"{some(summary['requests'], 'request')} of {summary['budget']} at most, {summary['seconds']} s."
    holes, unclear = summary["holes"], summary["unclear"]
    tone: Tone = "exposed" if holes else "unclear" if unclear else "held"
    tried = len({record["check"] for record in summary["checks"] if record["hole"]})
    if holes:
        text = f"It lets in what chat doesn't need: {listed(holes)}; beside the {some(kinds.count('chat'), 'attack')} "
        text += f"by chat alone that gives {more} what they need, in whole or in part."
    elif unclear:
        text = f"Of {some(tried, 'check')} none shows that it lets in what chat doesn't need."
    else:
        text = (
            f"Nothing that {some(tried, 'check')} asked for was let in; {some(kinds.count('chat'), 'attack')} need no "
        )
        text += "more than chat."
    said: list[Block] = [Statement(text, tone)]
    if unclear:
        said.append(Statement(f"Could not tell: {listed(unclear)}.", "unclear"))
    return [*said, Statement(asked)]
