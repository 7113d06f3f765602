"""What a report is made of: plain records that the template draws. All shares are in 0..1; nothing is escaped yet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from midward.errors import InputError
from midward.reports.html import redacted, visible
from midward.reports.report.chart import Chart, Series

Tone = Literal["exposed", "held", "unclear", "note"]
FEW = 20  # pairs; below that "no measurable loss" says nothing


@dataclass(frozen=True)
class Share:
    """A rate with its 95 % interval; value is None where nothing was scored. note: what stands beside n."""

    value: float | None
    low: float = 0.0
    high: float = 1.0
    n: int = 0
    note: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"- (n 0{self.note})"
        return f"{percent(self.value)} % {self.interval} (n {self.n}{self.note})"

    @property
    def interval(self) -> str:
        return f"[{percent(self.low)}, {percent(self.high)}]"

    @property
    def step(self) -> int:
        """0 to 10, for its colour."""
        return 0 if self.value is None else min(10, max(0, round(10 * self.value)))


@dataclass(frozen=True)
class Gap:
    """A paired difference with its 95 % interval, None where no pair was scored. p: None where there is no test; holm:
    p corrected for all `family` comparisons that were made with it, None where it is the only one."""

    value: float | None
    low: float = 0.0
    high: float = 0.0
    n: int = 0
    p: float | None = None
    holm: float | None = None
    family: int = 1

    def __str__(self) -> str:
        return "- (n 0)" if self.value is None else f"{points(self.value)} {self.interval} ({self.about})"

    @property
    def about(self) -> str:
        """n, p and the corrected p."""
        tested = [f"{name} {p:.2g}" for name, p in (("p", self.p), ("Holm", self.holm)) if p is not None]
        return ", ".join([f"n {self.n}", *tested])

    @property
    def interval(self) -> str:
        return f"[{points(self.low)}, {points(self.high)}]"

    @property
    def apart(self) -> bool:
        """Whether the interval leaves zero out and a test, where there is one, agrees."""
        apart = self.value is not None and (self.low > 0 or self.high < 0)
        return apart and (self.p is None or self.p < 0.05)

    @property
    def measurable(self) -> bool:
        """The same, also once p is corrected for the other comparisons of its table."""
        return self.apart and (self.holm is None or self.holm < 0.05)


@dataclass(frozen=True)
class Heat:
    """A map: a row an attack, a column a model. cells: row -> column -> Share (absent: not run)."""

    name: str
    title: str
    columns: Sequence[str]
    cells: Mapping[str, Mapping[str, Share]]
    about: str = ""
    kind: str = "heat"


@dataclass(frozen=True)
class Table:
    """A table of texts, shares and gaps; the first cell of a row names it. small: folded unless it is asked for."""

    name: str
    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str | Share | Gap]]
    about: str = ""
    small: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows in words."""

    name: str
    title: str
    about: str
    chart: Chart
    kind: str = "figure"


@dataclass(frozen=True)
class Said:
    """Sentences, each a finding as the command that made the run wrote it."""

    title: str
    lines: Sequence[str]
    kind: str = "said"


@dataclass(frozen=True)
class Turn:
    """What one model was asked and answered. asked: empty where it is the goal itself."""

    model: str
    asked: str
    reply: str
    verdict: str


@dataclass(frozen=True)
class Talk:
    """One goal put to several models."""

    where: str
    goal: str
    turns: Sequence[Turn]


Block = Heat | Table | Figure | Said


@dataclass(frozen=True)
class Card:
    """One model at a glance: its strongest attack. model: the title. run: empty where the title names it. of: model,
    adapter, guard and judge, by short names."""

    model: str
    run: str
    tone: Tone
    value: str
    about: str
    line: str
    of: str = ""


@dataclass(frozen=True)
class Claim:
    """A sentence of the verdict. section: where its figures stand."""

    tone: Tone
    text: str
    section: str


@dataclass
class Built:
    """What one run gives to the report."""

    blocks: dict[str, list[Block]] = field(default_factory=dict)  # section -> blocks
    cards: list[Card] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)  # for a CSV
    settings: dict[str, Any] = field(default_factory=dict)
    curves: list[Series] = field(default_factory=list)  # of the reward
    scores: dict[str, dict[str, Share | str]] = field(default_factory=dict)  # of utility: the run -> task -> score
    lacks: list[str] = field(default_factory=list)  # what isn't there, in words
    model: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, section: str, *blocks: Block | None) -> None:
        """Put blocks into a section; None is nothing."""
        self.blocks.setdefault(section, []).extend(block for block in blocks if block is not None)


@dataclass(frozen=True)
class Texts:
    """How texts of prompts and models are shown: as they are, or, with `redact`, by length and hash."""

    redact: bool = False

    def __call__(self, text: Any) -> str:
        """A prompt, a goal, a response, an error message."""
        text = "" if text is None else str(text)
        if self.redact and text:
            return redacted(text)
        # Most lines are plain: looking at each character takes a hundred times longer.
        return "\n".join(line if line.isprintable() else visible(line) for line in text.split("\n"))

    def name(self, text: Any) -> str:
        """A goal's id: redacted too, unless it is a plain one."""
        text = str(text)
        return self(text) if self.redact and not re.fullmatch(r"[\w.:-]{1,60}", text) else visible(text)

    def because(self, error: Exception) -> str:
        """An error in brackets; nothing where it could quote a text."""
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        return "" if self.redact else f" ({visible(why)})"

    def path(self, path: Any) -> str:
        """A path or a model's name; without the folders above it where the page is to be shared."""
        return Path(str(path)).name if self.redact else str(path)


# --- numbers of files ----------------------------------------------------------------------------------------


def number(value: Any) -> float:
    """A finite number. Raises InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{str(value)[:40]!r} stands where a number should")
    return float(value)


def share(record: Mapping[str, Any], name: str = "", note: str = "") -> Share:
    """A rate of a record: {"value", "low", "high", "n"}, or with a name {name, name_low, name_high, "n"}."""
    value, low, high = (
        record.get(f"{name}_{end}".strip("_") if name else end or "value") for end in ("", "low", "high")
    )
    unscored = record.get("unscored") or 0
    note = f", {unscored} unscored{note}" if unscored else note
    if value is None:
        return Share(None, note=note)
    # A reading that was written without its interval claims none.
    ends = (value if low is None else low, value if high is None else high)
    return Share(number(value), number(ends[0]), number(ends[1]), int(number(record["n"])), note)


def gap(record: Mapping[str, Any] | None) -> Gap | None:
    """A paired difference of a record: {"value", "low", "high", "n", "p"}."""
    if record is None:
        return None
    if record["value"] is None:
        return Gap(None)
    p = record.get("p")
    family = int(number(record.get("family", 1)))
    holm = record.get("holm") if family > 1 else None
    value = number(record["value"])
    low, high = (value if record[end] is None else number(record[end]) for end in ("low", "high"))
    tests = [None if one is None else number(one) for one in (p, holm)]
    return Gap(value, low, high, int(number(record["n"])), tests[0], tests[1], family)


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}").replace("+0.0", "0.0")


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def short(about: Mapping[str, Any]) -> str:
    """A row's model, adapter and guard by the ends of their paths: LLaDA-8B-Instruct + mosa behind sri."""
    parts = [str(about.get(part) or "") for part in ("model", "adapter", "guard")]
    model, adapter, guard = (Path(part.rstrip("/")).name for part in parts)
    guard = guard.removesuffix(".safetensors")
    return model + (f" + {adapter}" if adapter else "") + (f" behind {guard}" if guard else "")


def some(count: int, what: str) -> str:
    """1 attack, 2 attacks."""
    return f"{count} {what}{'' if count == 1 else 's'}"
