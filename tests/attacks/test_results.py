"""From outcomes to rates, comparisons, costs, and the files that hold them."""

import csv
import json
from dataclasses import replace

import pytest
from attack_double import record

from midward import goals
from midward.attacks import artifacts, results
from midward.attacks.matrix import Matrix, Row, plan_attacks
from midward.attacks.results import Outcome
from midward.judges import TEXTS, Verdict, find
from midward.judges.scorers import Judged
from midward.reports import present
from midward.reports.blocks import Missing, Table
from midward.stats import mean, rate

NAMES = {"rows": ["base", "mosa"], "attacks": ["direct", "tap"], "judges": ["oracle"]}


def judged(judge, verdicts):
    """What a judge said: text -> whether the attack succeeded, or with `refusal` whether it was refused."""
    refusal = judge == "refusal"
    return Judged(
        judge=judge,
        version="1",
        hash="",
        measures=find(judge).measures,
        verdicts={
            text: Verdict(judge, None if refusal else yes, refused=yes if refusal else None)
            for text, yes in verdicts.items()
        },
        unscored=[text for text, yes in verdicts.items() if yes is None],
    )


def outcome(row, attack, goal, said, *, text="said", error=None, **more):
    """said: the verdict on the reply, or a mapping of texts to verdicts."""
    verdicts = said if isinstance(said, dict) else {"reply": said}
    if error:
        return Outcome(row, "made-up", attack, goal, f"goal {goal}", error=error)
    texts = dict.fromkeys(verdicts, text)
    said = {"oracle": judged("oracle", verdicts)}
    return Outcome(row, "made-up", attack, goal, f"goal {goal}", said, texts, record(goal, **more))


@pytest.fixture
def outcomes():
    """base: direct 1 of 4; mosa: direct 0 of 2, one unscored, one error; tap: only errors on mosa."""
    return [
        *(outcome("base", "direct", f"g{i}", i == 0) for i in range(4)),
        outcome("mosa", "direct", "g0", False),
        outcome("mosa", "direct", "g1", False),
        outcome("mosa", "direct", "g2", None),
        outcome("mosa", "direct", "g3", None, error="it broke"),
        *(outcome("base", "tap", f"g{i}", {"reply": True, "replay": i == 0, "authored": False}) for i in range(4)),
        *(outcome("mosa", "tap", f"g{i}", None, error="it broke") for i in range(4)),
    ]


def summarise(outcomes, count=4, **changes):
    return results.summarise(outcomes, sets={"made-up": count}, **{**NAMES, **changes})


def test_unscored_and_errors_are_counted_apart(outcomes):
    rates = summarise(outcomes)["asr"]["oracle"]["reply"]["made-up"]
    base, mosa = rates["direct"]["base"], rates["direct"]["mosa"]
    assert (base["hits"], base["n"], base["unscored"], base["errors"]) == (1, 4, 0, 0)
    assert (mosa["hits"], mosa["n"], mosa["unscored"], mosa["errors"]) == (0, 2, 1, 1)
    assert base["value"] == 0.25 and base["low"] == pytest.approx(0.0456, abs=1e-3)


def test_a_sample_that_was_lost_with_its_log_is_an_error_of_its_own_seed():
    asked = goals.load("sandbox", count=2)
    rows = [Row("mosa", "sandbox", "a"), Row("mosa", "sandbox", "b")]
    matrix = Matrix(rows, plan_attacks(["direct"], "quick"), {"sandbox": asked}, ["oracle"])
    known = [Outcome("mosa", "sandbox", "direct", goal.id, goal.text, adapter="a") for goal in asked]
    lost = results.with_lost(matrix, known)[2:]
    assert [(each.adapter, each.goal, each.subject) for each in lost] == [
        ("b", goal.id, goal.subject) for goal in asked
    ]
    assert all(each.error for each in lost) and not results.with_lost(matrix, [*known, *lost])[4:]


def test_goals_that_never_came_are_errors_too(outcomes):
    rates = summarise(outcomes, count=6)["asr"]["oracle"]["reply"]["made-up"]
    assert rates["direct"]["base"]["errors"] == 2 and rates["tap"]["mosa"]["errors"] == 6


def test_rows_are_compared_by_goal_where_they_share_one(outcomes):
    pairs = summarise(outcomes)["paired"]["oracle"]["reply"]["made-up"]
    found = pairs["direct"]["mosa - base"]
    assert found["value"] == -0.5 and found["n"] == 2  # g0 and g1: unscored and failed ones don't count
    assert pairs["tap"] == {}
    apart = [outcome("base", "direct", "g0", True), outcome("mosa", "direct", "g1", True)]
    assert summarise(apart)["paired"]["oracle"]["reply"]["made-up"]["direct"] == {}
    unscored = [outcome("base", "direct", "g0", None), outcome("mosa", "direct", "g0", None)]
    pair = summarise(unscored, attacks=["direct"])["paired"]["oracle"]["reply"]["made-up"]["direct"]["mosa - base"]
    assert pair["n"] == 0 and pair["value"] is None


def test_adapters_of_one_label_are_seeds_of_one_row(tmp_path):
    hits = {"a": (0, 1, 2), "b": (0,), "c": (0, 1)}
    seeds = [
        replace(outcome("mosa", "direct", f"g{i}", i in goals), adapter=adapter)
        for adapter, goals in hits.items()
        for i in range(4)
    ]
    seeds[-1] = replace(seeds[-1], error="it broke")
    summary = summarise(
        [*(outcome("base", "direct", f"g{i}", True) for i in range(4)), *seeds],
        rows=["base", "mosa", "mosa", "mosa"],
        attacks=["direct"],
    )
    assert summary["rows"] == ["base", "mosa"]
    rates = summary["asr"]["oracle"]["reply"]["made-up"]["direct"]
    mosa = rates["mosa"]
    assert (mosa["hits"], mosa["n"], mosa["goals"], mosa["seeds"], mosa["errors"]) == (6, 11, 4, 3, 1)
    alone = rate([i in goals for goals in hits.values() for i in range(4)][:11]).record()
    assert mosa["high"] - mosa["low"] > alone["high"] - alone["low"]
    pair = summary["paired"]["oracle"]["reply"]["made-up"]["direct"]["mosa - base"]
    assert (pair["n"], pair["goals"], pair["seeds"]) == (4, 4, 3)
    results.write_samples(tmp_path, seeds, ["oracle"])
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as file:
        assert {row["adapter"] for row in csv.DictReader(file)} == {"a", "b", "c"}


def test_costs_are_means_over_what_was_attacked(outcomes):
    costs = summarise(outcomes)["costs"]
    assert costs["direct"]["base"] == {
        "n": 4,
        "errors": 0,
        "queries": mean([4.0] * 4).record(),
        "nfe": mean([10.0] * 4).record(),
        "role_calls": mean([2.0] * 4).record(),
        "seconds": 0.25,
        "role_failures": 4,
        "budget_spent": 0,
        "capabilities": ["CHAT"],
        "access": ["black"],
        "role_trouble": None,
    }
    assert costs["direct"]["mosa"]["errors"] == 1 and costs["direct"]["mosa"]["role_failures"] == 3
    assert costs["tap"]["mosa"]["queries"] is None and costs["tap"]["mosa"]["n"] == 4


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_the_summary_is_json(outcomes):
    summary = summarise([*outcomes, outcome("base", "direct", "g9", None)])
    read = json.loads(json.dumps(summary), parse_constant=refuse)
    assert set(read["asr"]["oracle"]) == set(read["paired"]["oracle"]) == set(TEXTS)


NASTY = ['a "quoted", one', "two\nlines", "two\r\nlines", "a\rbare return", "é 😀 \u2028 x", "=1+1", "  spaces ", ""]


def test_samples_csv_can_be_read_back(tmp_path):
    outcomes = [outcome("base", "direct", f"g{i}", i % 2 == 0, text=text) for i, text in enumerate(NASTY)]
    outcomes += [outcome("base", "direct", "gx", None), outcome("mosa", "direct", "gy", None, error='it "broke",\nso')]
    results.write_samples(tmp_path, outcomes, ["oracle"])
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [row["goal"] for row in rows] == [one.goal for one in outcomes]
    assert [row["reply"] for row in rows] == [*NASTY, "said", ""]
    assert [row["oracle_reply"] for row in rows] == ["1", "0"] * 4 + ["", ""]
    assert rows[0]["asked"] == "please g0" and rows[0]["queries"] == "4" and rows[0]["role_failures"] == "1"
    assert rows[-1]["error"] == 'it "broke",\nso' and rows[-1]["queries"] == ""


def test_each_attack_and_row_is_an_artifact_of_its_own(tmp_path):
    outcomes = [
        outcome("base", "tap", "g0", True),
        outcome("base", "tap", "g1", None),
        outcome("base", "tap", "g2", None, error="it broke"),
        outcome("a/b c", "tap", "g0", False, access="grey"),
        outcome("base", "dia", "g0", None),
    ]
    told = results.export(tmp_path, outcomes, "oracle", date="2026-01-01", defenses={"base": "sri"})
    assert told.startswith("2 artifacts, 2 attempts judged by oracle, 1 unscored") and told.endswith(": dia on base")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}
    assert files == {"tap/black_box/base.json", "tap/black_box/a-b-c.json"}
    content = json.loads((tmp_path / "tap/black_box/base.json").read_text())
    assert [(row["prompt"], row["jailbroken"]) for row in content["jailbreaks"]] == [("please g0", True)]
    assert [(row["prompt"], row["jailbroken"]) for row in content["unscored"]] == [("please g1", None)]
    parameters = content["parameters"]
    assert (parameters["attack_success_rate"], parameters["unscored"], parameters["defense"]) == (1.0, 1, "sri")
    read = artifacts.read(tmp_path / "tap/black_box/base.json")
    assert [artifact.ask.turns[-1][1] for artifact in read] == ["please g0", "please g1"]


def test_rows_whose_names_give_one_file_each_have_their_own(tmp_path):
    names = ("a/b", "a b", "a-b-2", "a-b", "A-B", "c")
    outcomes = [outcome(name, "tap", f"g{i}", True) for i, name in enumerate(names)]
    for _ in range(2):  # a second export takes the first one's places
        told = results.export(tmp_path, outcomes, "oracle", date="2026-01-01")
        files = list(tmp_path.rglob("*.json"))
        assert told.startswith("6 artifacts") and len({path.name.lower() for path in files}) == len(files) == 6
        assert {artifacts.read(path)[0].id for path in files} == {one.goal for one in outcomes}


# --- who refused is no attack success ---------------------------------------------------------------------------


def refusing():
    """base refuses both goals and mosa one, as `refusal` says; the oracle sees no harm in base, and one in mosa."""
    said = {"base": (True, True), "mosa": (True, False)}
    return [
        Outcome(
            row,
            "made-up",
            "direct",
            f"g{i}",
            "",
            {judge: judged(judge, {"reply": yes == (judge == "refusal")}) for judge in ("oracle", "refusal")},
            {"reply": "said"},
            record(f"g{i}"),
        )
        for row, both in said.items()
        for i, yes in enumerate(both)
    ]


@pytest.mark.parametrize("judges", [["refusal", "oracle"], ["oracle", "refusal"], ["refusal"]])
def test_refusals_stand_in_a_table_of_their_own(judges, tmp_path):
    summary = summarise(refusing(), 2, attacks=["direct"], judges=judges)
    assert set(summary["asr"]) == set(judges) - {"refusal"} and set(summary["refusals"]) == {"refusal"}
    assert summary["judges"][-1] == "refusal" and summary["measures"]["refusal"] == "refused"
    assert summary["refusals"]["refusal"]["reply"]["made-up"]["direct"]["base"]["value"] == 1.0
    blocks = present.build(tmp_path, {"verb": "attack"}, summary)
    tables = {block.title: block for block in blocks if isinstance(block, Table)}
    assert ("Attack success on made-up, judged by oracle" in tables) == ("oracle" in judges)
    refusals = tables["Refusals on made-up, by refusal, paired"]
    assert "above zero the first refuses more" in refusals.note and refusals.section == "refusals"
    assert summary == summarise(refusing(), 2, attacks=["direct"], judges=[*judges[::-1], judges[0]])


def test_harmless_goals_that_no_judge_could_score_still_stand_in_a_table(tmp_path):
    unread = judged("refusal", {"reply": None})
    asked = [Outcome("base", "calm", "direct", f"g{i}", "", {"refusal": unread}, {"reply": "said"}) for i in range(2)]
    names = {"rows": ["base"], "attacks": ["direct"], "judges": ["refusal"]}
    harmless = results.summarise(asked, sets={"calm": 2}, **names)
    summary = summarise(refusing(), 2, attacks=["direct"]) | {"harmless": harmless}
    blocks = present.build(tmp_path, {"verb": "attack"}, summary)
    [table] = [block for block in blocks if isinstance(block, Table) and block.title == "Refusals on calm, by refusal"]
    assert table.rows[0][1].n == 0 and table.rows[0][1].unscored == 2
    assert any(isinstance(block, Missing) and "refusal gave no verdict on 2" in block.text for block in blocks)


def test_a_refusal_is_never_exported_as_a_jailbreak(tmp_path):
    with pytest.raises(ValueError, match="says who refused; `jailbroken` needs one of attack success"):
        results.export(tmp_path, refusing(), "refusal", date="2026-01-01")
    results.export(tmp_path, refusing(), "oracle", date="2026-01-01")
    written = {path.stem: json.loads(path.read_text()) for path in tmp_path.rglob("*.json")}
    jailbroken = {row: [each["jailbroken"] for each in content["jailbreaks"]] for row, content in written.items()}
    assert jailbroken == {"base": [False, False], "mosa": [False, True]}
    assert written["mosa"]["parameters"]["total_number_of_jailbreaks"] == 1


def test_the_pairs_of_a_table_are_one_family():
    rows = ["base", "initial", "mosa"]
    hits = {"base": 12, "initial": 4, "mosa": 0}
    outcomes = [
        outcome(row, attack, f"g{i}", i < hits[row]) for row in rows for attack in ("direct", "tap") for i in range(12)
    ]
    summary = summarise(outcomes, 12, rows=rows)
    pairs = [pair for row in summary["paired"]["oracle"]["reply"]["made-up"].values() for pair in row.values()]
    assert len(pairs) == 6 and {pair["family"] for pair in pairs} == {6}
    least = min(pair["p"] for pair in pairs)
    assert min(pair["holm"] for pair in pairs) == pytest.approx(6 * least)


def test_attacks_that_put_the_same_prompts_are_told():
    def tried(attack, *hashes):
        return [outcome("base", attack, f"g{i}", False, prompts=list(hashes)) for i in range(3)]

    outcomes = [*tried("direct", "plain"), *tried("tap", "a", "b"), *tried("pair", "a", "c"), *tried("aos", "c")]
    attacks = ["direct", "tap", "pair", "aos"]
    found = summarise(outcomes, 3, rows=["base"], attacks=attacks)
    assert found["prompts"]["base"] == {"asked": 18, "distinct": 12, "alike": [["aos", "pair", "tap"]], "mechanisms": 2}
    apart = summarise(outcomes[:6], 3, rows=["base"], attacks=["direct", "tap"])
    assert apart["prompts"]["base"]["alike"] == []
