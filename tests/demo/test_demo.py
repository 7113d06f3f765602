"""The demo end to end on a tiny model that has learned next to nothing: its mechanics, not its figures."""

import json

import pytest

import midward
from midward import demo
from midward.demo import Plan, report, study, summary
from midward.guards import Sizes
from midward.world import trials

PLAN = Plan(
    goals=3,
    exercises=2,
    steps=2,
    attacks=("direct", "prefill-mid"),
    overrides={"lora_rank": 2, "batch_size": 2, "log_steps": 1, "save_steps": 1},
    guard=Sizes(2, 4, 19),
    alpha=0.05,
)


@pytest.fixture
def tiny(tiny_sandbox, monkeypatch):
    """The tiny build in the shipped model's place."""
    real = study.load
    monkeypatch.setattr(
        study, "load", lambda name, **options: real(str(tiny_sandbox) if name == "sandbox" else name, **options)
    )
    return midward.load(str(tiny_sandbox), device="cpu")


def test_the_demo_writes_all_its_files_and_a_second_run_computes_nothing(tiny, tmp_path, monkeypatch):
    out = tmp_path / "report"
    seen = []
    result = demo.run(out, plan=PLAN, progress=lambda *what: seen.append(what))
    for name in (
        "summary.json",
        "table.md",
        "index.html",
        "samples.csv",
        "generations.json",
        "index_files/samples.csv",
    ):
        assert (out / name).stat().st_size > 0, name
    summary_ = json.loads((out / "summary.json").read_text())
    assert set(summary_["models"]) == {"base", "initial", "mosa"}
    for sets in summary_["models"].values():
        for name, cells in sets.items():
            for reading in cells.values():
                assert reading["n"] + reading["unscored"] == (2 if name in summary_["tasks"] else 3)
                assert 0 <= reading["low"] <= reading["value"] <= reading["high"] <= 1
    assert {what for what, _, _ in seen} >= {"attacking", "using base", "aligning mosa/0", "decoding order"}
    rows = {path.name: path.read_bytes() for path in (out / "rows").iterdir()}
    adapters = {path: path.stat().st_mtime_ns for path in out.glob("adapters/*/adapter_model.safetensors")}
    assert len(adapters) == 2
    monkeypatch.setattr(trials, "sample", None)  # a call would fail
    again = demo.run(out, plan=PLAN)
    assert again.summary == result.summary and again.table == result.table
    assert rows == {path.name: path.read_bytes() for path in (out / "rows").iterdir()}
    assert all(path.stat().st_mtime_ns == when for path, when in adapters.items())
    assert report.clear(out) == [] and list(out.iterdir()) == []  # all of it is known as the demo's


def test_fresh_starts_over_but_never_deletes_what_is_not_a_demo(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for fresh in (False, True):  # a folder that a demo was mixed into would be deleted by a later `fresh`
        with pytest.raises(ValueError, match="something other than a demo"):
            demo.run(tmp_path, plan=PLAN, fresh=fresh)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        demo.run(tmp_path / "thesis.txt", plan=PLAN)


def test_fresh_deletes_what_a_demo_wrote_and_nothing_else(tmp_path, monkeypatch):
    out = tmp_path / "report"
    ours = ("rows/base.jsonl", "adapters/mosa-0-160-steps/align.json", "logs/1_mosa-0.sandbox.pad_x.eval", "table.md")
    theirs = ("thesis.txt", "rows/mine.csv", "rows/2024/a.jsonl", "logs/mine.eval", "adapters/mine/a", "guard/mine")
    for name in (*ours, *theirs):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    (out / "rows" / "elsewhere").symlink_to(tmp_path)

    def stopped(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "load", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.run(out, plan=PLAN, fresh=True)
    assert [name for name in (*ours, *theirs) if (out / name).is_file()] == list(theirs)
    assert not (out / "adapters" / "mosa-0-160-steps").exists()
    assert report.clear(out) == sorted([*theirs, "rows/elsewhere"])


def test_a_plan_is_checked():
    with pytest.raises(ValueError, match="no arm to compare with the base model; give some of initial, mosa"):
        demo.plan_of(arms=" , ")
    with pytest.raises(ValueError, match="no such arm: 'middle'"):
        Plan(arms=("middle",))
    with pytest.raises(ValueError, match="goals must be at least 1, got 0"):
        Plan(goals=0)


def test_every_set_of_trials_is_about_its_split():
    for name in (*trials.FORBIDDEN, *trials.HARMLESS, "wrapper:story"):
        made = trials.trials(name, 6)
        assert len({trial.id for trial in made}) == 6 and made[:3] == trials.trials(name, 3)
        for trial in made:
            assert getattr(trial.about, "harmful", False) == (name not in trials.HARMLESS)
    families = {trial.about.text.split()[0] for trial in trials.trials("wrappers", 8)}
    assert len(families) > 4
    with pytest.raises(ValueError, match="no such set of trials: 'wrapper:moon'; known: plain"):
        trials.trials("wrapper:moon", 1)


def test_trials_resume_row_by_row(tiny, tmp_path, monkeypatch):
    sets = [*trials.trials("plain", 5), *trials.trials("sums", 3)]
    whole = trials.run(tiny, sets, tmp_path / "whole.jsonl")
    monkeypatch.setattr(trials, "CHUNK", 3)
    sample, calls = trials.sample, []

    def breaks(model, requests, *rest, **options):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(requests))
        return sample(model, requests, *rest, **options)

    monkeypatch.setattr(trials, "sample", breaks)
    with pytest.raises(KeyboardInterrupt):
        trials.run(tiny, sets, tmp_path / "cut.jsonl")
    monkeypatch.setattr(trials, "sample", lambda *a, **o: (calls.append(len(a[1])), sample(*a, **o))[1])
    assert trials.run(tiny, sets, tmp_path / "cut.jsonl", batch_size=2) == whole
    assert calls == [3, 3, 2]
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_tables_name_the_recipe_and_count_refusals_that_can_be_read():
    """Severity 1: a table that says `mosa` for every recipe, and a refusal for a text that breaks off."""
    assert [study.titled(arm) for arm in ("base", "mosa", "initial-published", "mosa-paper")] == [
        "base",
        "mosa, stable",
        "initial, published",
        "mosa, paper",
    ]
    seen = [(True, True), (True, False), (False, True), (None, True)]
    rows = {
        "mosa/0": [
            {"id": str(n), "set": "prefill", "refused": refused, "coherent": coherent}
            for n, (refused, coherent) in enumerate(seen)
        ]
    }
    reading = summary.reading(rows, ["mosa/0"], "prefill", "readable")
    assert (reading["value"], reading["n"], reading["unscored"]) == (1 / 3, 3, 1)


def rows_of(**sets):
    return [
        {"id": f"{name}-{n}", "set": name, "success": value, "full": None, "correct": None}
        for name, values in sets.items()
        for n, value in enumerate(values)
    ]


def test_readings_are_pooled_over_seeds():
    rows = {
        "base": rows_of(plain=[True] * 20),
        "mosa/0": rows_of(plain=[False] * 20),
        "mosa/1": rows_of(plain=[False] * 10 + [True] * 10),
    }
    groups = summary.arms(rows)
    assert groups == {"base": ["base"], "mosa": ["mosa/0", "mosa/1"]}
    reading = summary.reading(rows, groups["mosa"], "plain", "success")
    assert reading["value"] == 0.25 and reading["by_seed"] == [0.0, 0.5]
    assert (reading["n"], reading["goals"], reading["seeds"]) == (40, 20, 2)
    assert summary.reading(rows, ["base"], "plain", "full")["unscored"] == 20
    never = {"mosa/0": rows_of(plain=[False] * 20), "mosa/1": rows_of(plain=[False] * 20)}
    reading = summary.reading(never, list(never), "plain", "success")
    assert reading["low"] == 0 and 0.1 < reading["high"] < 0.2  # 20 goals without a hit aren't certainty
