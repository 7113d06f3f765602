"""One run a folder: what is there is never replaced by another run's tables."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def attack(midward, tiny, tmp_path):
    """`midward attack` of two goals into one folder."""

    def run(*flags):
        return midward(
            "attack", *tiny, "--goals", "sandbox", "--count", 2, "--no-replay", "--out", tmp_path / "out", *flags
        )

    return run


@pytest.fixture
def tables(tmp_path):
    """The tables of the folder, as bytes."""
    return lambda: {
        name: (tmp_path / "out" / name).read_bytes() for name in ("table.md", "summary.json", "samples.csv")
    }


def test_a_smaller_attack_leaves_the_larger_ones_tables(attack, tables):
    assert attack("--attacks", "direct,pad").exit_code == 0
    before = tables()
    for flags, message in (
        (["--attacks", "direct"], "--attacks lacks pad here"),
        (["--attacks", "direct,pad", "--count", 1], "--limit 2 there, 1 here"),
        (["--attacks", "direct,pad", "--goals", "sandbox-contextual"], "--goals lacks sandbox here"),
        (["--attacks", "direct,pad", "--seed", 1, "--budget", 1], "--seed 0 there, 1 here; --budget not given"),
        (["--attacks", "direct,pad", "--set", "pad.count=3"], "--set not given there, pad.count=3 here"),
    ):
        result = attack(*flags)
        assert result.exit_code == 2 and message in result.stderr and "Give another --out." in result.stderr
        assert tables() == before
    # what changes no result is as it likes, and more of the same goes on
    result = attack("--attacks", "pad,direct,prefill", "--batch-size", 1)
    assert result.exit_code == 0
    assert {"direct", "pad", "prefill"} == json.loads(tables()["summary.json"])["costs"].keys()


def test_a_file_of_goals_that_was_changed_is_another_one(attack, tables, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("goal\nt30\n")
    assert attack("--attacks", "direct", "--goals", path).exit_code == 0
    path.write_text("goal\nt31\n")
    result = attack("--attacks", "direct", "--goals", path)
    assert result.exit_code == 2 and "--goals lacks" in result.stderr and "sha256" in result.stderr


def test_a_run_that_never_began_is_no_run(attack):
    assert attack("--attacks", "direct", "--adapter", "x=/nowhere/at/all").exit_code == 2
    assert attack("--attacks", "direct").exit_code == 0


@pytest.mark.parametrize(
    "verb, first, second, message",
    [
        (["probe", "order"], ["--sets", "sums,programs"], ["--sets", "sums"], "--sets lacks programs here"),
        (["utility"], ["--tasks", "sums,recall"], ["--tasks", "sums"], "--tasks lacks recall here"),
        (["utility"], ["--tasks", "sums"], ["--tasks", "sums", "--limit", 2], "--limit 3 there, 2 here"),
    ],
)
def test_nor_do_other_verbs(midward, tiny, tmp_path, verb, first, second, message):
    base = [*verb, *tiny, "--limit", 3, "--out", tmp_path / "out"]
    assert midward(*base, *first).exit_code == 0
    before = (tmp_path / "out" / "summary.json").read_bytes()
    result = midward(*base, *second)
    assert result.exit_code == 2 and message in result.stderr
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


def test_another_verbs_folder_is_left_alone(midward, tiny, tmp_path):
    base = [*tiny, "--limit", 2, "--out", tmp_path / "out"]
    assert midward("utility", *base, "--tasks", "sums").exit_code == 0
    result = midward("probe", "order", *base, "--sets", "sums")
    assert result.exit_code == 2 and "holds a run of midward utility" in result.stderr


HOLDER = """
import pathlib, sys
from midward.store import hold
claim = hold(pathlib.Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


def test_two_processes_dont_share_a_folder(attack, tmp_path):
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", HOLDER, tmp_path / "out"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        result = attack("--attacks", "direct")
        other.kill()
    assert result.exit_code == 2 and "another process is writing to" in result.stderr
    assert not list((tmp_path / "out").glob("[!.]*"))


def run_alone(*args):
    """A verb in a process of its own, which prints at last whether torch was imported."""
    code = "import sys\nfrom midward.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.mark.parametrize("verb", [["attack"], ["probe", "ask"]], ids=" ".join)
def test_a_wrong_file_of_goals_is_told_before_torch_is_imported(tmp_path, verb):
    (tmp_path / "goals.csv").touch()
    result = run_alone(*verb, "--goals", tmp_path / "goals.cvs", "--out", tmp_path / "out")
    assert result.returncode == 2 and "Did you mean" in result.stderr
    assert result.stdout == "False\n" and not (tmp_path / "out").exists()


VERBS = [
    ["attack"],
    ["probe", "prefill"],
    ["probe", "mirror"],
    ["probe", "ask"],
    ["probe", "gcg"],
    ["probe", "order"],
    ["dynamics"],
    ["utility", "--tasks", "sums"],
    ["guard", "eval"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_an_out_that_cant_be_is_told_before_torch_is_imported(tmp_path, verb):
    (tmp_path / "file").touch()
    code = "import sys\nfrom midward.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code, *verb, "--model", "/nowhere", "--out", tmp_path / "file" / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert result.returncode == 2 and "is a file; give another path" in result.stderr
    assert result.stdout == "False\n"
