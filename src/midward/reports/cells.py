"""The numbers of runs, one cell of a verb's table at a time, as a release criterion needs them: with their rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from midward._tables import grouped
from midward.errors import InputError
from midward.reports.builders.shared import name_of
from midward.reports.compare import Row, Side, lacking, side
from midward.reports.report.find import LeftOut, RunFolder
from midward.stats import Bound, Mean, Rate, Standing, mean_of, rate_of

#: Measures that a run has of every row of the cells that it asks about: None is unscored there. Of others, a cell that
#: has nothing but None wasn't asked.
ASKED = {"success", "flagged", "value"}
MOST_SEEDS = 8  # with unscored answers; of more there are too many ways in which these may fall


@dataclass(frozen=True)
class Cell:
    """One number of a run.

    Attributes:
        run: the run's label.
        about: what tells the cell in its run: model, attack, set ...
        measure: its own name.
        meant: what else it is called: what a judge measures, of the one whose verdicts the report's table shows.
        field: of the rows that it is in.
        wrong: a value that isn't between 0 and 1, where there is one.
        control: whether its model stands in the run behind a guard as well.
    """

    run: str
    about: Mapping[str, Any]
    measure: str
    meant: str
    rows: Sequence[Row]
    field: str
    wrong: float | None = None
    control: bool = False

    @property
    def unscored(self) -> int:
        """How many verdicts there aren't."""
        return sum(row[self.field] is None for row in self.rows)

    @property
    def places(self) -> set[str]:
        """What a threshold may call it by, behind its measure."""
        return {self.run, *(str(value) for value in self.about.values() if value not in (None, ""))}

    def called(self, name: str) -> bool:
        """Whether a name is its measure's: its own one, or one of the same words (asr, success)."""
        return name_of(name) in (name_of(self.measure), name_of(self.meant))

    def number(self) -> Rate | Mean:
        """With its interval over goals and seeds."""
        return self._of(self.rows)

    def _of(self, rows: Sequence[Row]) -> Rate | Mean:
        partly = any(row[self.field] not in (0, 1, None) for row in rows)
        return (mean_of(rows, self.field, (0.0, 1.0)) if partly else None) or rate_of(rows, self.field)

    def _filled(self) -> Iterator[Rate | Mean]:
        """Its number if the unscored answers of each seed all hit, or all don't, in every combination."""
        seeds = dict.fromkeys(row.get("seed") for row in self.rows if row[self.field] is None)
        for ends in product((0.0, 1.0), repeat=len(seeds)):
            of = dict(zip(seeds, ends, strict=True))
            yield self._of(
                [{**row, self.field: of[row.get("seed")]} if row[self.field] is None else row for row in self.rows]
            )

    def standing(self, bound: Bound) -> Standing:
        """The verdict, which no way changes that the unscored answers of each seed may fall together."""
        seeds = {row.get("seed") for row in self.rows if row[self.field] is None}
        verdicts = {bound.standing(number) for number in self._filled()} if len(seeds) <= MOST_SEEDS else set()
        return verdicts.pop() if len(verdicts) == 1 else "unclear"

    def record(self, bound: Bound) -> Row:
        """As JSON, with its verdict, and how many goals in all would decide it (`Bound.needed`)."""
        number, verdict = self.number(), self.standing(bound)
        of_scored = bound.standing(number)
        needed = bound.needed(self.rows, self.field) if verdict == of_scored == "unclear" else None
        record = {"run": self.run, "measure": self.measure, **self.about, "verdict": verdict, "needed": needed}
        return record | {"unscored": self.unscored, **number.record()}


def read(run: RunFolder) -> Side:
    """What a run measured; a row that isn't asked a measure lacks its field.

    Raises:
        LeftOut: it isn't finished, or rows are missing.
        InputError, or KeyError and its like: its files hold what no command would have written.
    """
    run.check_finished()
    measured = side(run.folder, run.run)
    rows = [_numbers(row, measured) for row in measured.rows]
    if lost := lacking(run.run.verb, run.summary, measured):
        raise LeftOut(f"isn't whole: rows of {lost} are missing; run the same command again")
    says = {name for name in measured.measures if any(row.get(name) is not None for row in rows)}
    says |= {"refused"} | ({"correct"} if _says_correct(run) else set())
    for group in _groups(rows, measured.cell).values():
        for name in measured.measures:
            silent = all(row.get(name) is None for row in group)
            if not silent or name in ASKED or measured.judges or any(row.get("error") for row in group):
                continue
            if name not in ("correct", "refused") or name not in says:
                for row in group:
                    row.pop(name, None)
    # A task's measure that has values, and none between 0 and 1, is no share.
    values = [(row.get("measure"), row["value"]) for row in rows if row.get("value") is not None]
    other = {name for name, _ in values} - {name for name, value in values if 0 <= value <= 1}
    return replace(measured, rows=[row for row in rows if "value" not in row or row.get("measure") not in other])


def _says_correct(run: RunFolder) -> bool:
    """Whether the run's judge says who is right: the oracle alone does; where the record names none, it may."""
    judges = [judge.get("judge") for judge in run.run.judges]
    return not judges or "oracle" in judges


def _numbers(row: Row, measured: Side) -> Row:
    """A row with the measures that it is asked. NaN is unscored. Raises InputError where one is no number."""
    asked = {name: value for name, value in row.items() if name not in measured.measures or _asks(name, row)}
    for name in {*measured.measures} & {*asked}:
        value = asked[name]
        if not isinstance(value, bool | int | float | None):
            raise InputError(f"{name} of {row.get('goal')} is {value!r:.40}, no number")
        asked[name] = None if value is not None and math.isnan(value) else value
    return asked


def _asks(measure: str, row: Row) -> bool:
    """Attack success is of harmful goals, right answers are of harmless ones."""
    harmful = row.get("harmful")
    return harmful is None or not measure.endswith("correct" if harmful else "success")


def _groups(rows: Sequence[Row], cell: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Model and what tells the cell -> its rows."""
    return grouped(rows, lambda row: tuple(row.get(name) for name in ("model", *cell)))


def cells_of(run: str, measured: Side) -> Iterator[Cell]:
    """All shares of a run."""
    shown = next((judge for judge, of in measured.judges.items() if of != "refused"), None)
    for key, group in _groups(measured.rows, measured.cell).items():
        about = {name: value for name, value in zip(("model", *measured.cell), key, strict=True) if value is not None}
        for field in measured.measures:
            rows = [row for row in group if field in row]
            if not rows:
                continue
            wrong = next((row[field] for row in rows if row[field] is not None and not 0 <= row[field] <= 1), None)
            meant = "refused" if measured.judges.get(field) == "refused" else "success" if field == shown else ""
            named = {name: value for name, value in about.items() if name != "measure"}
            control = about.get("model") in measured.controls
            yield Cell(run, named, str(about.get("measure", field)), meant, rows, field, wrong, control)
