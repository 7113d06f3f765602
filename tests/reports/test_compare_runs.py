"""Runs of one verb against each other: paired by what both were asked, corrected, told in a sentence."""

import json

import pytest
import report_world as world

from midward.errors import InputError
from midward.reports.compare import between, unlike
from midward.runs.run import Run


def probe(folder, hits, kinds=("affirmative", "neutral"), verb="probe prefill"):
    """A run whose goals fall under `kinds` of phrases; hits: kind -> how many of 30 goals fall."""
    world.run(folder, verb, {"cells": []})
    about = {"set": "harmful", "source": "sandbox", "position": 0, "tokens": None, "phrase": "Sure"}
    rows = [
        {**about, "goal": f"g{n}", "subject": f"g{n}", "kind": kind, "success": n < hits[kind], "correct": None}
        for kind in kinds
        for n in range(30)
    ]
    world.rows(folder / "rows.jsonl", rows)
    return folder


def test_each_cell_is_paired_and_a_table_is_corrected_together(tmp_path):
    base = probe(tmp_path / "base", {"affirmative": 25, "neutral": 3})
    mosa = probe(tmp_path / "mosa", {"affirmative": 2, "neutral": 3})
    more = probe(tmp_path / "more", {"affirmative": 25}, kinds=("affirmative",))
    found = between([mosa, base, more])
    by_cell = {(pair["minus"], pair["kind"]): pair for pair in found["pairs"]}
    assert set(by_cell) == {("base", "affirmative"), ("base", "neutral"), ("more", "affirmative")}
    fallen = by_cell["base", "affirmative"]
    assert fallen["value"] == pytest.approx(-23 / 30) and fallen["n"] == 30 and fallen["measure"] == "success"
    assert fallen["better"] == -1 and fallen["family"] == 2 and fallen["holm"] >= fallen["p"]
    assert by_cell["base", "neutral"]["value"] == 0 and by_cell["more", "affirmative"]["family"] == 1


def test_attacks_are_compared_by_their_judges_whatever_the_models_are_called(tmp_path):
    def one(name, success):
        folder = world.attack(tmp_path / name)
        row = {"goals": "advbench", "attack": "prefill"}
        rows = [{"row": name, **row, "goal": f"g{n}", "oracle_reply": int(n < success)} for n in range(30)]
        world.table(folder / "samples.csv", rows)
        return folder

    [pair] = between([one("mosa", 2), one("base", 20)])["pairs"]
    assert pair["value"] == pytest.approx(-0.6) and pair["measure"] == "oracle" and pair["attack"] == "prefill"


def test_guards_are_compared_by_what_comes_through_and_what_they_flag(tmp_path):
    def one(name, caught, false):
        folder = world.run(tmp_path / name, "guard eval", {})
        about = {"guard": "sri", "refused": False, "score": 0.5, "step": ""}
        rows = [
            {
                **about,
                "set": name_of,
                "goal": f"{name_of}{n}",
                "harmful": bad,
                "success": bad or "",
                "flagged": n < count,
            }
            for name_of, bad, count in (("plain", True, caught), ("benign", False, false))
            for n in range(30)
        ]
        world.table(folder / "scores.csv", rows)
        return folder

    found = between([one("new", 25, 6), one("old", 10, 0)])["pairs"]
    by_measure = {pair["measure"]: (pair["set"], round(pair["value"], 3)) for pair in found}
    assert by_measure == {"success": ("plain", -0.5), "flagged": ("benign", 0.2)}


def test_each_sampler_of_dynamics_is_a_cell(tmp_path):
    folders = []
    for name, hits in (("mosa", 2), ("base", 20)):
        folder = world.run(tmp_path / name, "dynamics", {})
        rows = [{"set": "plain", "goal": f"g{n}", "success": n < hits, "signals": {"last": [0.5]}} for n in range(30)]
        for sampler in ("native", "ar"):
            world.rows(folder / f"rows-{sampler}.jsonl", rows)
        folders.append(folder)
    found = between(folders)["pairs"]
    assert {pair["sampler"]: round(pair["value"], 2) for pair in found} == {"native": -0.6, "ar": -0.6}


def test_what_a_detector_is_fitted_on_is_no_comparison(tmp_path):
    folders = []
    for name, hits in (("mosa", 2), ("base", 20)):
        folder = world.run(tmp_path / name, "dynamics", {})
        about = {"harmful": False, "success": False}
        rows = [
            {"set": each, "goal": f"g{n}", "refused": n < hits, **about}
            for each in ("benign", "training")
            for n in range(30)
        ]
        world.rows(folder / "rows-native.jsonl", rows)
        folders.append(folder)
    found = between(folders)["pairs"]
    assert {pair["set"] for pair in found} == {"benign"}


def test_what_cannot_be_compared_is_told(tmp_path):
    base = probe(tmp_path / "base", {"affirmative": 25}, kinds=("affirmative",))
    with pytest.raises(InputError, match="two runs"):
        between([base])
    with pytest.raises(InputError, match="given twice"):
        between([base, base / ".." / "base"])
    with pytest.raises(InputError, match=r"probe prefill.*probe ask"):
        between([base, probe(tmp_path / "ask", {"affirmative": 1}, kinds=("affirmative",), verb="probe ask")])
    with pytest.raises(InputError, match="share nothing"):
        between([base, probe(tmp_path / "other", {"refusal": 1}, kinds=("refusal",))])
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds no run\.json"):
        between([base, tmp_path / "none"])


def test_the_verb_prints_and_keeps_what_the_report_shows(midward, tmp_path):
    base = probe(tmp_path / "base", {"affirmative": 25, "neutral": 3})
    mosa = probe(tmp_path / "mosa", {"affirmative": 2, "neutral": 3})
    shown = midward("compare", mosa, base, "--out", tmp_path / "c")
    assert (
        shown.exit_code == 0
        and "mosa minus base" in shown.stdout
        and "measurably lower on 1 of 2 differences" in shown.stdout
    )
    data = midward("compare", mosa, base, "--json")
    assert json.loads(data.stdout) == json.loads((tmp_path / "c" / "summary.json").read_text())
    page = tmp_path / "r.html"
    assert midward("report", tmp_path / "c", "--out", page).exit_code == 0
    assert "mosa minus base: results measurably lower on 1 of 2 differences" in page.read_text()


def test_what_else_than_the_model_differs_is_said(midward, tmp_path):
    hits = {"affirmative": 25, "neutral": 3}
    for name, about in (("base", {"seed": 0}), ("mosa", {"seed": 1, "goals": {"sandbox": 30}}), ("same", {"seed": 0})):
        folder = probe(tmp_path / name, hits)
        world.run(folder, "probe prefill", {"cells": []}, **about)
    told = midward("compare", tmp_path / "base", tmp_path / "mosa", tmp_path / "same")
    assert told.exit_code == 0 and told.stdout.count("not the model alone differs") == 1
    assert "base minus mosa: not the model alone differs: seed 0 in base, 1 in mosa" in told.stdout
    assert "goals of sandbox None in base, 30 in mosa" in told.stdout


def test_what_was_given_of_an_attacks_decoding_is_what_differs():
    runs = [Run(verb="attack", settings={"--threshold": given, "--steps": None}) for given in (0.6, None)]
    assert unlike(("low", "own"), runs) == ["threshold 0.6 in low, not given in own"]
    assert not unlike(("low", "again"), [runs[0], runs[0]])


@pytest.mark.parametrize("flags", [[], ["-q"], ["--json"]])
def test_the_end_of_a_verb_says_which_command_shows_more(midward, tmp_path, flags):
    folders = [probe(tmp_path / name, {"affirmative": 25, "neutral": 3}) for name in ("base", "mosa")]
    told = midward("compare", *folders, "--out", tmp_path / "out", *flags)
    assert told.exit_code == 0 and (f"midward report {tmp_path / 'out'}" in told.stderr) is (not flags)
