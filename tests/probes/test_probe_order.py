"""The order in which a response is committed: what a row keeps of it, and what is said of all."""

import numpy as np
import pytest

from midward.dynamics.order import correlation
from midward.errors import InputError
from midward.goals import Goal
from midward.probes.configs import Order
from midward.probes.order import cases, orders
from midward.sampling import Request, Sampling, Trace, sample

SAMPLING = Sampling(length=12, steps=6, block=12)
PROMPTS = [Goal(f"{name}-{n}", f"t{5 + n}", name, False) for name in ("a", "b") for n in range(3)]


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_a_row_keeps_the_steps_of_its_own_count_whatever_stands_beside_it(lively, measured, threshold):
    sampling = Sampling(length=12, steps=6, block=12, threshold=threshold)
    _, rows, summary = measured("order", lively, PROMPTS, Order(), sampling)
    for row in rows:
        trace = Trace(needs_all_steps=True)
        [response] = sample(lively, [Request(row["prompt"])], sampling, watchers=[trace])
        assert row["commit"] == trace.commit_step[0].tolist()
        ends = [at for at, token in enumerate(response.raw_ids) if token in lively.family.end_ids]
        assert row["end"] == min([*ends, 12])
    cells = summary["sets"]
    assert list(cells) == ["a", "b", "all"] and cells["a"]["correlation"]["n"] == 3
    whole = np.mean([correlation(order) for order in orders(rows)])
    assert cells["all"]["correlation"]["value"] == pytest.approx(whole)
    parts = [cells["all"][f"part_{name}"]["value"] for name in ("text", "padding", "between")]
    assert sum(parts) == pytest.approx(whole) and f"{whole:.2f}" in summary["findings"][0]
    assert ("6 steps" in summary["findings"][0]) is (threshold is None)
    assert np.array(summary["maps"]["a"]).sum() == pytest.approx(12, abs=0.01)


def test_prompts_are_of_sets_files_and_tasks(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("goal\nt30\nt31\n")
    goals = Order(sets=(str(path), "sums", "sandbox"), limit=2).load()
    assert [goal.source for goal in goals] == ["mine", "mine", "sums", "sums", "sandbox", "sandbox"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.csv").write_text("goal\nt30\n")
    for sets, why in (((str(tmp_path / "other" / "mine.csv"),), "at least two"), ((str(path), str(path)), None)):
        if why:
            with pytest.raises(InputError, match=why):
                Order(sets=sets, limit=2).load()
        else:
            assert len(Order(sets=sets, limit=2).load()) == 2


def test_a_model_that_writes_left_to_right_has_no_order_of_its_own(llama):
    with pytest.raises(InputError, match="commits nothing in an order of its own"):
        cases(llama, PROMPTS, Order(), SAMPLING)


def test_the_command_leaves_tables_and_a_sentence(midward, lively_folder, tmp_path, summary_of):
    flags = ["--model", lively_folder, "--device", "cpu", "--length", 12, "--steps", 6, "--block", 12]
    result = midward("probe", "order", *flags, "--sets", "sums,sandbox", "--limit", 2, "--out", tmp_path / "o")
    assert result.exit_code == 0, result.stderr
    assert "Over 4 prompts" in " ".join(result.stdout.split()) and list(summary_of(tmp_path / "o")["steps"]) == [
        "sums",
        "sandbox",
    ]


def test_a_set_that_is_none_is_told_before_the_model_is_read(midward):
    result = midward("probe", "order", "--model", "org/no-model", "--sets", "sandbx")
    assert result.exit_code == 2 and "no set of goals" in result.stderr
