"""Blocks: whatever a cell holds is shown the way that `stats` writes it, fits the terminal, and can do no harm."""

import csv
import io
import json
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from midward.errors import InputError
from midward.reports import render
from midward.reports.blocks import Card, Figure, Missing, Statement, Table, Talk, reading, text
from midward.reports.builders.shared import table as records_table
from midward.reports.chart import Chart, Point, Series
from midward.stats import Paired, area, mean, paired, rate

READINGS = (
    rate([True, False, None], [1, 2, 3]),
    rate([None]),
    mean([1.0, 2.0, 4.0]),
    mean([1.0]),
    area([1.0, 2.0], [0.0, 1.5]),
    paired([{1: True, 2: False}], [{1: False, 2: False}]),
    paired([{1: None}], [{1: True}]),
)
RATE = rate([True, False])
CANNOT_BE = [
    *((RATE, {name: value}) for name in ("n", "goals", "hits", "unscored") for value in (-5, 1.5, 2.0, None, 10**400)),
    *((RATE, {name: None}) for name in ("value", "low", "high")),
    (RATE, {"value": 7.0}),
    (RATE, {"value": 1e308, "high": 1e308}),
    (RATE, {"low": 0.6}),
    (RATE, {"high": 0.4}),
    (RATE, {"low": -0.1}),
    (RATE, {"hits": 2}),
    (RATE, {"n": 0, "hits": 0}),
    (mean([1.0, 2.0]), {"low": 1.7}),
    (area([1.0, 2.0], [0.0, 1.5]), {"value": 1.2, "high": 1.3}),
    (paired([{1: True, 2: False}], [{1: False, 2: False}]), {"low": -1.2}),
]
LINES = Figure("lines", "Lines", [Chart("x", "y", [Series("a", [Point(0, 0.5, 0.2, 0.7), Point(1, 1.0, 0.9, 1.0)])])])


@pytest.mark.parametrize("found", READINGS, ids=str)
def test_a_reading_and_its_record_are_one_cell(found):
    record = json.loads(json.dumps(found.record()))
    assert text(record) == text(found) == str(found)
    assert reading(record) == found


@pytest.mark.parametrize("record", [{}, {"hits": 1}, {"value": math.inf, "low": 0}, {"stat": "mean", "n": 3}])
def test_what_is_no_reading_is_refused(record):
    with pytest.raises(InputError):
        text(record)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, 4), st.integers(0, 2)), min_size=1))
def test_every_number_that_is_measured_can_be(rows):
    verdicts, goals, seeds = zip(*rows, strict=True)
    sides = [{(seed, n): verdict for n, (verdict, _, seed) in enumerate(rows)}], [dict.fromkeys(range(len(rows)), True)]
    scores = [goal + (verdict or 0) for verdict, goal, _ in rows]
    numbers = [rate(verdicts, goals, seeds), mean(scores, goals, seeds), mean(scores, goals, seeds, ends=(0, 5))]
    numbers += [area(scores, scores[:3]), paired(sides[0], sides[0])]
    for number in numbers:
        assert reading(json.loads(json.dumps(number.record()))) == number


@pytest.mark.parametrize("number, wrong", CANNOT_BE)
def test_a_number_that_cannot_be_is_refused(number, wrong):
    with pytest.raises(InputError) as error:
        reading(number.record() | wrong)
    assert str(error.value).isprintable()


def test_a_difference_is_measurable_by_its_corrected_p():
    record = Paired(0.3, 0.1, 0.5, 20, 20, p=0.02).record()
    assert reading(record).apart()
    assert not reading({**record, "holm": 0.2, "family": 10}).apart()
    assert not reading({**record, "low": -0.1}).apart()


def test_a_row_of_another_length_is_a_fault():
    with pytest.raises(ValueError, match="columns"):
        Table("t", "t", ["a", "b"], [["x"]])


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=6),
    st.integers(20, 200),
    st.integers(0, 5),
)
def test_a_table_stays_within_the_terminal(names, width, count):
    table = Table(
        "t", "title", names, [[name, *READINGS[: len(names) - 1], *names][: len(names)] for name in names[:count]]
    )
    shown = render.terminal([table], width)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_a_wide_table_loses_nothing_on_a_narrow_terminal():
    names = [f"column{n}" for n in range(9)]
    shown = render.terminal([Table("t", "t", ["row", *names], [["one", *[READINGS[0]] * 9]])], 80)
    assert all(name in shown for name in names) and shown.count("[9.5, 90.5]") == 9
    assert shown.count("one") > 1  # each lot of columns says which row it is of


def test_a_terminal_shows_verdicts_and_findings_but_no_conversation():
    said = render.terminal(
        [
            Card("base", "exposed", "62 %", "prefill", "above 10 %"),
            Statement("It falls.", "held"),
            Missing("no scores"),
            Figure("f", "Curve", [], finding="it rises"),
            Talk("where", "id", "harmful", []),
        ],
        80,
    )
    assert all(words in said for words in ("base", "62 %", "It falls.", "no scores", "it rises"))
    assert "harmful" not in said


def test_markdown_cells_hold_no_markup():
    lines = render.markdown([Table("t", "t", ["a", "b"], [["x|y\n<b>", None]])]).splitlines()
    row = lines[-1]
    assert row.replace("\\|", "").count("|") == 3 and "<" not in row


def test_a_csv_holds_each_number_by_itself():
    table = Table("t", "t", ["row", "asr", "gain"], [["a", READINGS[0], READINGS[5]], ["b", None, "-"]])
    first, second = csv.DictReader(io.StringIO(render.files(table)["csv"]))
    assert float(first["asr"]) == 0.5 and first["asr: n"] == "2" and first["asr: unscored"] == "1"
    assert float(first["gain: p"]) == READINGS[5].p and second["asr: low"] == ""


CHARTS = (
    LINES.charts[0],
    Chart("", "rate", [Series("<s>", [Point(0, 0.5, 0.2, 0.7)], kind="bars")], "%", groups=["<g>"]),
    Chart("x", "y", [Series("p", [Point(n % 13, n % 7) for n in range(300)], kind="points")]),
    Chart("step", "position", grid=[[0.0, 1.0, None], [0.5, 0.5, 0.5]], title="<t>"),
    Chart("x", "y", [Series("one", [Point(3, 3)])], levels=[("level", 1.0)], shaded=(1, 2, "w"), diagonal=True),
)


@pytest.mark.parametrize(
    "words", ["# a", "- a", "+ a", "1. a", "2) a", "===", "---", "<b>a", "[a](b)", "a\n\n# b", "> a", "```a"]
)
def test_words_are_no_markup_of_a_table_md(words):
    charts = [Chart("x", "y", [Series("a", [Point(0, 1)])])]
    shown = [
        Table("t", words, [words], [[words]], note=words, finding=words),
        Figure("f", words, charts, note=words, finding=words),
        Statement(words, "exposed"),
        Statement(words),
        Missing(words, quote=words),
        Card(words, "held", words, words, words),
    ]
    tokens = MarkdownIt("commonmark").enable("table").parse(render.markdown(shown))
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    assert kinds <= {"bullet_list", "list_item", "paragraph", "inline", "table", "thead", "tbody", "tr", "th", "td"}
    assert sum(token.type == "list_item_open" for token in tokens) == 1  # the mark of a note
    inline = {child.type for token in tokens for child in token.children or ()}
    assert inline <= {"text", "text_special", "strong_open", "strong_close"}


@pytest.mark.parametrize("chosen", [[one] for one in CHARTS] + [list(CHARTS)])
def test_every_chart_is_sound_svg(chosen):
    figure = Figure("f", "A <b>title</b>", chosen)
    drawn = ElementTree.fromstring(render.files(figure)["svg"])
    _, _, width, height = map(float, drawn.get("viewBox").split())
    assert (width, height) == (float(drawn.get("width")), float(drawn.get("height")))
    assert not drawn.findall(".//{*}b") and drawn.findall(".//{*}g")


def test_a_chart_without_points_is_refused():
    with pytest.raises(InputError):
        render.files(Figure("f", "f", [Chart("x", "y", [Series("a", [])])]))


def test_what_is_written_is_found_under_its_name(tmp_path):
    render.write(tmp_path, [LINES, Table("asr ../b/C", "t", ["a"], [["x"]]), Statement("said")])
    assert {path.name for path in tmp_path.iterdir()} - {"lines.png"} == {
        "lines.csv",
        "lines.svg",
        "asr-b-c.csv",
        "table.md",
    }
    assert "](lines.svg)" in (tmp_path / "table.md").read_text()


def test_a_picture_is_drawn_as_png_too_where_the_extra_is(tmp_path):
    pytest.importorskip("resvg_py", reason="the extra png isn't installed")
    render.write(tmp_path, [LINES])
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")


def test_only_columns_that_are_shown_are_explained():
    rows = [{"guard": "sri", "steps saved": 3.0, "time added": None}]
    legend = {"steps saved": "Steps saved: of a flagged one.", "time added": "Time added: a share."}
    shown = records_table("guards", "Guards", rows, note="All of them.", legend=legend)
    assert shown.note == "All of them. Steps saved: of a flagged one." and "time added" not in shown.columns
