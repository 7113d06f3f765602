"""The tables of the trajectory runs: what they count, over which seeds, and that missing parts are left out."""

import json

from midward.reports.blocks import text
from tools.trajectory import anchor_tables, attack_tables


def _anchor(folder, name, adapter, verdicts):
    run = folder / "anchor" / name
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"models": [{"adapter": adapter}]}))
    keys = ("success", "own_success", "refused", "coherent", "correct")
    rows = [
        {"goal": str(goal), "harmful": True, "source": "own" if fraction else "none", "fraction": fraction}
        | dict.fromkeys(keys, verdict)
        for fraction, verdict in verdicts.items()
        for goal in range(30)
    ]
    (run / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_anchor_tables_pair_adapters_with_the_base_model_over_seeds(tmp_path):
    for seed in (0, 1):
        _anchor(tmp_path, f"base-{seed}", None, {0: False, 0.125: True})
        _anchor(tmp_path, f"closed-{seed}", "closed", {0: False, 0.125: False})
    rates, gaps = list(anchor_tables(tmp_path))[:2]
    rows = {row[0]: [text(cell) for cell in row[1:]] for row in rates.rows}
    assert [cell.split(" %")[0] for cell in rows["base"]] == ["0", "100"]
    assert [cell.split(" %")[0] for cell in rows["closed"]] == ["0", "0"]
    assert "2 seeds" in rates.note
    [(label, none, most)] = [[text(cell) for cell in row] for row in gaps.rows]
    assert label == "closed" and none.startswith("+0 points") and "*" not in none
    assert most.startswith("-100 points") and most.endswith("*")


def test_what_was_not_run_makes_no_table(tmp_path):
    assert list(anchor_tables(tmp_path)) == list(attack_tables(tmp_path)) == []
