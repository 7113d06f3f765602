"""Reports in the layout of the AI Vulnerability Database."""

import datetime
import json
from typing import Literal

import pytest
import report_world as world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from midward.attacks.taxonomy import IN_PROMPT, IN_RESPONSE, VERSIONS
from midward.errors import InputError
from midward.reports import avid
from midward.reports.report.find import find

# --- the layout, restated from the documentation of avidtools 0.3.2 ---------------------------------------------------


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Words(Part):
    lang: str
    value: str


class Artifact(Part):
    type: Literal["Dataset", "Model", "System"]
    name: str


class Affects(Part):
    developer: list[str]
    deployer: list[str]
    artifacts: list[Artifact]


class Problem(Part):
    classof: Literal["LLM Evaluation"]
    type: Literal["Issue", "Advisory", "Measurement", "Detection"] | None
    description: Words


class Detection(Part):
    type: Literal["Significance Test", "Static Threshold"]
    name: str


class Metric(Part):
    name: str
    detection_method: Detection
    results: dict


class Reference(Part):
    type: str | None
    label: str
    url: str


class Avid(Part):
    vuln_id: str | None
    risk_domain: list[str]
    sep_view: list[Literal["S0400: Model Bypass", "S0403: Adversarial Example"]]
    lifecycle_view: list[Literal["L05: Evaluation"]]
    taxonomy_version: str


class Atlas(Part):
    tactic: str | None
    technique: str | None
    description: str | None


class Impact(Part):
    avid: Avid | None
    atlas: list[Atlas] | None


class Report(Part):
    data_type: str
    data_version: str | None
    metadata: None
    affects: Affects | None
    problemtype: Problem | None
    metrics: list[Metric] | None
    references: list[Reference] | None
    description: Words | None
    impact: Impact | None
    credit: list[Words] | None
    reported_date: datetime.date | None


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def attacked(tmp_path):
    """A run of `prefill`, which succeeds on base and not on mosa; called, it writes more into the summary."""
    folder = world.attack(tmp_path / "run")

    def change(**more):
        world.write(folder / "summary.json", summary_of(folder) | more)
        return folder

    change(
        sources={"prefill": "Somebody 2025, arXiv 2508.12398, figure 3"},
        taxonomy={"versions": VERSIONS, "attacks": {"prefill": IN_RESPONSE}},
    )
    return change


def write(folder):
    """The lines that are written of a folder."""
    path = folder.parent / "avid.jsonl"
    count = avid.write(find([folder]), path)
    lines = path.read_text().splitlines()
    assert len(lines) == count
    return lines


def reports(folder):
    return [Report.model_validate_json(line) for line in write(folder)]


def test_each_row_is_a_report_in_the_layout(attacked):
    base, mosa = reports(attacked())
    assert [report.affects.artifacts[0].name for report in (base, mosa)] == ["base", "base + mosa"]
    assert base.problemtype.type == mosa.problemtype.type == "Measurement"
    assert base.reported_date == datetime.date(2026, 1, 1) and base.credit is None
    [metric] = base.metrics
    rate = summary_of(attacked())["asr"]["oracle"]["reply"]["advbench"]["prefill"]["base"]
    assert {name: rate[name] for name in ("value", "low", "high", "n", "unscored")}.items() <= metric.results.items()
    assert metric.detection_method.name == "oracle" and metric.results["taxonomy"] == list(IN_RESPONSE)
    [reference] = base.references
    assert reference.url == "https://arxiv.org/abs/2508.12398"
    assert base.impact.avid.sep_view == ["S0400: Model Bypass"] and base.impact.avid.risk_domain == ["Security"]
    assert [step.technique for step in base.impact.atlas] == ["AML.T0054 LLM Jailbreak"]


def test_what_did_not_succeed_is_no_impact(attacked):
    base, mosa = reports(attacked())
    assert base.impact is not None and mosa.impact is None
    assert "0.0 % [0.0, 6.0] (n 60)" in mosa.description.value and "90.0 %" in base.description.value


def test_only_the_attacks_that_succeeded_have_a_place_in_the_taxonomies(attacked):
    summary = summary_of(attacked())
    summary["asr"]["oracle"]["reply"]["advbench"]["flip"] = {"base": world.rate(0.0), "mosa": world.rate(0.2)}
    taxonomy = {"versions": VERSIONS, "attacks": {"prefill": IN_RESPONSE, "flip": IN_PROMPT}}
    base, mosa = reports(attacked(**summary | {"attacks": ["prefill", "flip"], "taxonomy": taxonomy}))
    assert base.impact.avid.sep_view == ["S0400: Model Bypass"] and len(base.metrics) == 2
    assert mosa.impact.avid.sep_view == ["S0403: Adversarial Example"]


def test_a_guard_in_front_makes_a_system_and_a_warning_is_said(attacked):
    models = {row: {"model": "x", "adapter": None, "guard": f"/home/me/{row}.safetensors"} for row in ("base", "mosa")}
    base, _ = reports(attacked(models=models, warning="These figures are no evidence"))
    assert base.affects.artifacts[0] == Artifact(type="System", name="x behind base")
    assert "These figures are no evidence" in base.description.value and "/home" not in base.model_dump_json()


def test_a_run_of_before_and_an_attack_without_entries_are_reported_too(attacked):
    base, _ = reports(attacked(taxonomy=None, sources=None))
    assert base.impact is None and base.references == [] and base.metrics[0].results["hits"] == 54
    base, _ = reports(attacked(taxonomy={"versions": VERSIONS, "attacks": {"prefill": []}}))
    assert base.impact is None


def test_hostile_names_stay_text(attacked):
    nasty = "\x1b[31m\u202e</script>\n\ud800"
    models = {row: {"model": nasty, "adapter": None, "guard": None} for row in ("base", "mosa")}
    lines = write(attacked(models=models, warning=nasty))
    assert len(lines) == 2 and all(line.isascii() and line.isprintable() for line in lines)
    assert "\x1b[31m" in json.loads(lines[0])["description"]["value"]


def places(node, path=()):
    """The path of every value of a tree of mappings."""
    for name, child in node.items():
        yield (*path, name)
        if isinstance(child, dict):
            yield from places(child, (*path, name))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from([None, True, 7, "x", [], {}, [1], {"a": 1}, float("nan"), [["x"]]]))
def test_any_value_of_a_summary_is_a_report_or_one_line(attacked, data, value):
    found = find([attacked()])
    [run] = found.runs
    *path, last = data.draw(st.sampled_from(list(places(run.summary))))
    node = run.summary
    for name in path:
        node = node[name]
    node[last] = value
    out = run.folder.parent / "avid.jsonl"
    try:
        assert avid.write(found, out) == len(out.read_text().splitlines())
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("wrong", world.CANNOT_BE)
def test_a_rate_that_cannot_be_is_one_line(attacked, wrong):
    folder = attacked()
    world.spoil(folder, **wrong)
    with pytest.raises(InputError, match="can't be read as a run of midward attack") as error:
        write(folder)
    assert str(error.value).isprintable()


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_reported(attacked, tmp_path):
    world.spoil(attacked(), **world.CANNOT_BE[0])
    world.attack(tmp_path / "good")
    found = find([tmp_path])
    assert avid.write(found, tmp_path / "avid.jsonl") == 2
    [(label, why)] = found.troubles
    assert label.endswith("/run") and "can't be read as a run of midward attack" in why


def test_the_summary_of_a_run_that_goes_on_is_not_reported(attacked):
    folder = attacked()
    record = json.loads((folder / "run.json").read_text())
    world.write(folder / "run.json", record | {"finished": None})
    with pytest.raises(InputError, match="no finished run"):
        write(folder)


def test_what_is_no_attack_is_left_out_and_nothing_at_all_is_told(attacked, tmp_path):
    world.prefill(tmp_path / "probes")
    refused = attacked(measures={"oracle": "refused"})  # who refused is no attack success
    for folder in (tmp_path / "probes", refused):
        with pytest.raises(InputError, match="no finished run of midward attack, with a judge of attack success"):
            write(folder)
    assert not (tmp_path / "avid.jsonl").exists()


def test_the_verb_writes_both_and_says_what_it_cannot(midward, attacked, tmp_path):
    args = ["report", attacked(), "--out", tmp_path / "page.html", "--avid"]
    result = midward(*args, tmp_path / "new" / "avid.jsonl")
    assert result.exit_code == 0 and len((tmp_path / "new" / "avid.jsonl").read_text().splitlines()) == 2
    assert "Where the attacks stand in public taxonomies" in (tmp_path / "page.html").read_text()
    refused = midward(*args, tmp_path / "page.html" / "avid.jsonl")
    assert refused.exit_code == 2 and "can't be written" in refused.stderr
    attacked(asr={})
    broken = midward(*args, tmp_path / "avid.jsonl")
    assert broken.exit_code == 2 and "can't be read as a run of midward attack" in broken.stderr
