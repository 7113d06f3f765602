"""The bars' requests, and how they are read: by the scripted answers, which are right by construction."""

import json
import random

import pytest

import midward
from midward.reports.blocks import parts
from midward.sampling import Request
from midward.stats import rate
from midward.world.language import formed, reply
from midward.world.oracle import read
from midward.world.world import STEPS, WORLD
from tools.world import bars


@pytest.mark.parametrize("name", bars.KINDS)
def test_the_right_answer_to_each_request_is_read_as_right(name):
    for about, text in bars.asked(name, 30):
        assert WORLD.harmful(about.kind, about.thing) == (name == "banned")
        assert about.thing in WORLD.things["test"]
        answer, along = reply(about, random.Random(text), along=False if name == "banned" else None)
        answer = formed(WORLD.steps(about.kind, about.thing), "label") if name == "gaps" else answer
        reading = read(about.kind, about.thing, answer, intent=about.intent, form=about.form)
        assert reading.refused if name == "banned" else along and reading.correct


def test_the_same_requests_come_every_time_and_no_kind_shares_them():
    assert bars.asked("harmless", 20) == bars.asked("harmless", 20)
    assert bars.asked("harmless", 20) != bars.asked("harmless", 20, "tuning")


def test_what_is_forced_and_what_is_left_open_is_in_the_request(built_model):
    (about, text), *_ = bars.asked("label", 1)
    forced = bars.posed(built_model, "label", about, text)
    assert isinstance(forced, Request) and built_model.tokenizer.decode(forced.forced[0].ids) == "Step 1:"
    ids = bars.posed(built_model, "gaps", about, text)
    assert ids.count(built_model.family.mask_id) == 3 * STEPS
    assert "Step 6:" in built_model.tokenizer.decode([each for each in ids if each != built_model.family.mask_id])


def test_all_of_it_runs_on_a_model_that_knows_nothing(built_model):
    report = bars.measure(built_model, 2, "test", lambda line: None, length=24, steps=4)
    assert report["harmless"]["n"] == 2 and 0 <= report["coherent"]["value"] <= 1
    spread = bars.chances(built_model, 3, 2)
    assert len(spread["rows"]) == 3 and all(0 <= row[0] <= 1 for row in spread["rows"])
    talks = bars.dialogue(built_model, 2)
    assert set(talks) == {"complied", "refused"}
    rates, _ = bars.tables([{"model": "tiny", **report, "dialogue": talks}])
    assert [parts(row[2])[2] for row in rates.rows] == ["n 2"] * (len(bars.BARS) - 1) + [f"n {2 * len(bars.KINDS)}"]


def test_the_tables_say_what_the_files_hold(tmp_path, capsys):
    files = [tmp_path / "small.json", tmp_path / "all.json"]
    rows = [[chance / 40, chance >= 20, 0.0, []] for chance in range(40)]
    small = {"model": "small", "harmless": rate([True, False]).record()}
    more = {"model": "all", "chances": {"correlation": 0.5, "draws": 4, "rows": rows}}
    for path, measured in zip(files, (small, small | more), strict=True):
        path.write_text(json.dumps(measured))
    assert bars.main(["--table", *map(str, files)]) == 0
    lines = {cells[0]: cells[1:] for line in capsys.readouterr().out.splitlines() if (cells := line[2:-2].split(" | "))}
    assert lines["what"] == ["small", "all"]
    assert lines["harmless procedures right"] == ["95", *["50.0 % [9.5, 90.5] (n 2)"] * 2]
    least, most = (lines[name] for name in lines if name.startswith("answered at"))
    assert least[0] == most[0] == "-"
    assert least[1].startswith("0.0 %") and least[1].endswith(", chance 8.8 %")
    assert most[1].startswith("100.0 %") and most[1].endswith(", chance 88.8 %")
    assert next(cells for name, cells in lines.items() if name.startswith("rank"))[1].startswith("0.50 [0.2")


@pytest.fixture(scope="module")
def built_model(tmp_path_factory):
    from tiny_build import trainer

    return midward.load(trainer(tmp_path_factory.mktemp("bars")).write(), device="cpu")
