"""`midward dynamics`, run in this process."""

import json

import pytest

from midward.dynamics import NothingToAverage
from midward.probes import recovery

BAD = [
    (["--samplers", "native,gredy"], "Did you mean 'greedy'"),
    (["--attacked", "sums"], "is a task"),
    (["--attacked", "wrapers"], "no set of goals"),
    (["--reading", "genrated"], "genrated"),
    (["--judges", "orcle"], "orcle"),
    (["--judges", "refusal"], "never success"),
    (["--harmless", "missing.csv"], "missing.csv"),
]


@pytest.mark.parametrize(("flags", "told"), BAD, ids=[told for _, told in BAD])
def test_bad_input_comes_before_the_model(midward, flags, told, monkeypatch):
    import midward as package

    monkeypatch.setattr(package, "load", lambda *args, **options: pytest.fail("the model was loaded"), raising=False)
    result = midward("dynamics", *flags)
    assert result.exit_code == 2 and told in result.stderr


def test_too_few_prompts_to_fit_on_are_told_before_the_model_is_loaded(midward, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("prompt,harmful\na,0\nb,0\nc,0\n")
    sets = "--attacked plain --harmless benign --fit-harmful plain --fit 2 --count 2 --fit-harmless"
    result = midward("dynamics", "--model", "some/model", *sets.split(), few)
    assert result.exit_code == 2 and "gives 3 prompts; --fit 2 takes 4 or more" in result.stderr


def test_another_world_needs_its_prompts(midward):
    result = midward("dynamics", "--model", "some/model")
    assert result.exit_code == 2 and "--attacked is needed" in result.stderr


def test_dynamics_on_the_sandbox(midward, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "SEEDS", range(1))
    out = tmp_path / "dynamics"
    sets = "--attacked wrappers,prefill:plain --harmless benign,banned --samplers native,dynamic"
    sizes = "--count 2 --fit 4 --train 4 --length 32 --steps 8"
    command = ["dynamics", "--device", "cpu", *sets.split(), *sizes.split(), "--out", out]
    result = midward(*command)
    assert result.exit_code == 0, result.stderr
    assert "Inner recovery" in result.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["cells"]["native"]) == {"wrappers", "prefill", "benign", "banned", "attacked"}
    assert summary["cells"]["dynamic"]["benign"]["right"]["n"] == 2
    native = [json.loads(line) for line in (out / "rows-native.jsonl").open()]
    assert {len(row["signals"]["last"]) for row in native} == {8} and len(native) == 12
    assert set(native[0]["signals"]) == {"first", "middle", "last", "last (generated)"}
    assert summary["cells"]["native"]["attacked"]["irr-0.5 (generated)"]["n"] == 4  # both readings, side by side


def test_a_sampler_in_which_nothing_is_refused_is_left_out(midward, tmp_path, monkeypatch, caplog):
    fit = recovery.fit_anchors

    def refuses_once(*given, kept, **named):
        if kept.name != "native":
            raise NothingToAverage("none of the 2 harmful prompts was refused")
        return fit(*given, kept=kept, **named)

    monkeypatch.setattr(recovery, "fit_anchors", refuses_once)
    monkeypatch.setattr(recovery, "SEEDS", range(1))
    sizes = "--attacked plain --harmless benign --count 2 --fit 2 --train 2 --length 32 --steps 8"
    sizes += " --samplers native,random"
    result = midward("dynamics", *sizes.split(), "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "sampler random is left out: none of the 2" in caplog.text
    assert (tmp_path / "rows-native.jsonl").exists() and not (tmp_path / "rows-random.jsonl").exists()
