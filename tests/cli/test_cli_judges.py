"""`midward judges` and `midward judges check`."""

import pytest
from inspect_ai.model import ModelAPI, ModelOutput, modelapi

from midward.judges import JUDGES, JudgesError
from midward.judges.labelled import labelled


@pytest.fixture(autouse=True)
def no_packages(monkeypatch):
    monkeypatch.setattr("midward._plugins.entry_points", lambda group: ())


def test_the_list(midward):
    lines = midward("judges").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *JUDGES]
    for line, info in zip(lines[1:], JUDGES.values(), strict=True):
        assert info.about in line and info.needs in line and (info.hash or "-") in line


def test_a_broken_package_is_listed_with_the_reason(midward, monkeypatch):
    everything = {**JUDGES, "loud": JudgesError("the judge 'loud' of the package 'x' can't be loaded")}
    monkeypatch.setattr("midward.judges.every", lambda: everything)
    assert midward("judges").stdout.splitlines()[-1] == ("loud: the judge 'loud' of the package 'x' can't be loaded")
    assert "left out  the judge 'loud' of the package 'x'" in midward("judges", "check").stderr


def test_check_prints_agreement_with_interval(midward):
    result = midward("judges", "check")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.split("\n\n")[0].splitlines()]
    assert [row[0] for row in rows[1:]] == [
        "refusal",
        "refusal-sri-signal",
        "refusal-jailbreakbench",
        "harmfulness",
        "strongreject",
        "oracle",
        "readable",
    ]
    n = len(labelled())
    for row in rows[1:]:
        if row[2] != "refused":
            assert row[1] == str(n) and row[3:5] == ["100.0", "%"] and row[-1] == f"{n})"
    assert rows[1][3:5] == ["100.0", "%"] and rows[1][-2:] == ["unscored", "2)"]
    assert "the scripted judge: this checks the machinery" in result.stderr
    assert "left out  harmbench" in result.stderr


@modelapi("talked-round")
class TalkedRound(ModelAPI):
    """A judging model that sees harm nowhere, and is lost for words over a boast."""

    async def generate(self, input, tools, tool_choice, config):
        said = "Hm." if "boasting" in self.model_name and "SCORE: 5" in input[0].text else "SCORE: 1"
        return ModelOutput.from_content(self.model_name, said)


def test_check_shows_what_a_judge_misses(midward):
    result = midward("judges", "check", "--judges", "harmfulness", "--judge", "talked-round/boasting")
    lines = result.stdout.splitlines()
    rows = labelled()
    lost = [row for row in rows if "SCORE: 5" in row.response]
    assert "model     talked-round/boasting\n" in result.stderr
    assert f"(n {len(rows) - len(lost)}, unscored {len(lost)})" in lines[1]
    assert lines[3] == "missed or unscored:"
    assert lines[4] == "harmfulness  procedure-0: says no harm, the label is harm (1 of 5)"
    assert len(lines) == 4 + len(lost) + sum(row.success for row in rows)
    assert sum("says nothing" in line and "can't be read" in line for line in lines) == len(lost)


def test_bad_input(midward, tmp_path, monkeypatch):
    monkeypatch.setenv("MIDWARD_CACHE", str(tmp_path))
    for args, message in [
        (["--judges", "orcale"], "Did you mean 'oracle'?"),
        (["--judges", "harmbench"], "Download it: curl"),
        (["--judges", "harmfulness", "--judge", "nobody/x"], "no model to judge by: Model API nobody"),
    ]:
        result = midward("judges", "check", *args)
        assert result.exit_code == 2 and message in result.stderr and result.stdout == ""


def test_a_judge_that_is_down_is_told_at_once(midward, monkeypatch):
    monkeypatch.setenv("NOWHERE_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("NOWHERE_API_KEY", "none")
    result = midward("judges", "check", "--judges", "harmfulness", "--judge", "openai-api/nowhere/x")
    assert result.exit_code == 2 and result.stdout == ""
    assert "the judge openai-api/nowhere/x at http://127.0.0.1:9/v1 can't be asked" in result.stderr


def test_a_judge_that_scores_nothing_ends_with_status_1(midward):
    result = midward("judges", "check", "--judges", "harmfulness", "--judge", "wordless/x")
    assert result.exit_code == 1 and "error: harmfulness scored nothing: the judge's reply" in result.stderr
