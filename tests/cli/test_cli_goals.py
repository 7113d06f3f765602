"""`midward goals`."""

import hashlib
from dataclasses import replace

import pytest

from midward.goals import SETS, cache
from midward.world import forbidden

ROWS = b"goal,target\nPlaceholder one,Sure\nPlaceholder two,Sure\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDWARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def offered(monkeypatch):
    """AdvBench can be downloaded, and is two placeholders."""
    monkeypatch.setattr(cache, "_download", lambda *args: ROWS)
    monkeypatch.setitem(SETS, "advbench", replace(SETS["advbench"], sha256=hashlib.sha256(ROWS).hexdigest()))


def line(result, start):
    return next(line for line in result.stdout.splitlines() if line.startswith(start))


def test_the_listing_tells_what_there_is(midward, offered):
    listed = midward("goals")
    named = [row.split()[0] for row in listed.stdout.splitlines()[1 : 1 + len(SETS)]]
    assert listed.exit_code == 0 and named == list(SETS)
    assert line(listed, "sorry-bench ").split("  ")[-1].startswith("unsafe instructions")
    assert "612a4e1f, sha256 of the first download" in line(listed, "sorry-bench ")
    assert "without the copyright ones" in line(listed, "harmbench ")
    assert "CC BY-NC 4.0" in line(listed, "alpaca ") and " 52002 " in line(listed, "alpaca ")
    assert "  no      harmful behaviours" in line(listed, "advbench ")
    midward("goals", "advbench", "--download")
    assert "  yes     harmful behaviours" in line(midward("goals"), "advbench ")


def test_one_set_in_full(midward, offered):
    told = midward("goals", "advbench")
    assert told.exit_code == 0 and line(told, "cached").endswith("no") and "loaded" not in told.stdout
    assert SETS["advbench"].revision in line(told, "url") and SETS["advbench"].sha256 in line(told, "sha256")
    assert "midward goals advbench --download" in told.stderr
    fetched = midward("goals", "advbench", "--download")
    assert line(fetched, "loaded").endswith("2, 2 of them harmful") and "     2  no category" in fetched.stdout
    assert "Placeholder" not in fetched.stdout
    assert midward("goals", "advbench").stdout.endswith("     2  no category\n")


def test_goals_are_printed_only_when_asked_for(midward, offered):
    shown = midward("goals", "advbench", "--show", 1)
    assert shown.stdout.endswith("\n[advbench-0000]\nPlaceholder one\n") and "Placeholder two" not in shown.stdout
    hidden = midward("goals", "sandbox")
    goals = forbidden("test", 500)
    assert f"{sum(goal.kind == 'make' for goal in goals)}  make" in hidden.stdout
    assert goals[0].thing.kind not in hidden.stdout


def test_a_file_is_counted_by_category(midward, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,category\nPlaceholder one,a\nPlaceholder two,b\nPlaceholder three,b\n")
    told = midward("goals", path, "--column", "question")
    assert told.stdout.splitlines() == [
        f"file      {path}",
        "loaded    3, 3 of them harmful",
        "       2  b",
        "       1  a",
    ]
    assert "none of the columns" in midward("goals", path).stderr


def test_mistakes_are_one_line(midward):
    for args, message in [
        (["advbnch"], "Did you mean 'advbench'?"),
        (["sandbox", "--column", "goal"], "column goes with a file"),
        (["--show", 3], "go with a NAME"),
    ]:
        result = midward("goals", *args)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and message in result.stderr
