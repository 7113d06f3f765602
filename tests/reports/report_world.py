"""Run folders as the commands leave them, small, with texts of one's choice."""

import csv
import json


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"key": f"{n:016x}", **one}) + "\n" for n, one in enumerate(records))
    path.write_text("".join(lines), encoding="utf-8")


def rate(value, n=60, low=None, high=None, **more):
    low, high = max(0, value - 0.05) if low is None else low, min(1, value + 0.05) if high is None else high
    return {"value": value, "low": low, "high": high, "hits": round(value * n), "n": n, "unscored": 0, **more}


def pair(value, n=60, p=0.001):
    return {"value": value, "low": value - 0.04, "high": value + 0.04, "p": p, "n": n}


def attack(folder, *, goal="t30 t31 t32", asked="", reply="t40 t41 t42", success=0.9, aligned=0.0, attack="prefill"):
    """A finished `midward attack` of two models, one attack, one goal with texts."""
    models, texts = ("base", "mosa"), ("reply", "replay", "authored")
    cells = {"advbench": {attack: {"base": rate(success, errors=0), "mosa": rate(aligned, high=0.06, errors=0)}}}
    pairs = {"advbench": {attack: {"mosa - base": pair(aligned - success)}}}
    cost = {
        "n": 60,
        "errors": 0,
        "queries": 1.0,
        "nfe": 8.0,
        "seconds": 0.5,
        "role_failures": 0,
        "budget_spent": 0,
        "access": ["black"],
    }
    write(
        folder / "summary.json",
        {
            "rows": models,
            "goals": {"advbench": 60},
            "attacks": [attack],
            "judges": ["oracle"],
            "asr": {"oracle": dict.fromkeys(texts, cells)},
            "paired": {"oracle": dict.fromkeys(texts, pairs)},
            "costs": {attack: dict.fromkeys(models, cost)},
            "profile": "quick",
            "roles": {},
            "seed": 0,
        },
    )
    table(
        folder / "samples.csv",
        [
            {
                "row": model,
                "goals": "advbench",
                "attack": attack,
                "goal": "advbench-0001",
                "prompt": goal,
                "oracle_reply": int(model == "base"),
                "asked": asked or goal,
                "reply": reply,
                "error": "",
            }
            for model in models
        ],
    )
    header = {
        "eval": {
            "model": "midward/somewhere",
            "model_args": {"adapter": "/home/somebody/adapters/mosa"},
            "metadata": {"row": "base"},
            "packages": {"inspect_ai": "0.3.285"},
        }
    }
    write(folder / "logs" / "logs.json", {"one.eval": header})
    (folder / "logs" / "2026_one.eval").write_bytes(b"a log")
    return folder


def adapter(folder, finished=True):
    about = {"config": {"method": "mosa"}, "steps": 160, "versions": {"torch": "2.13.0"}, "model": "M"}
    write(folder / "align.json", {**about, "finished": finished, "warnings": []})
    table(folder / "reward.csv", [{"step": step, "reward": step / 2, "positive": -step} for step in range(5, 50, 5)])
    return folder


def prefill(folder):
    def cell(kind, position, asr):
        shares = {"asr": asr, "asr_low": asr - 0.1, "asr_high": asr + 0.1, "own_refusal": None, "correct": None}
        place = {"set": "harmful", "kind": kind, "position": position, "tokens": None, "n": 100, "unscored": 0}
        return {**place, **shares, "coherent": 0.9, "landed": None}

    cells = [cell("none", None, 0.1)]
    cells += [cell(kind, at, at / 200 + 0.2) for kind in ("affirmative", "procedural") for at in (0, 40, 80)]
    about = {"probe": "prefill", "model": "M", "adapter": None, "sampling": {"steps": 24}, "compared": {}}
    write(folder / "summary.json", {**about, "findings": ["A phrase at token 40 raises ASR."], "cells": cells})
    return folder


def guards(folder, *, prompt="t50 t51", reply="t60 t61"):
    """A finished `midward guard eval`."""

    def row(name, asr, flagged, auroc):
        return {
            "defence": name,
            "overhead": 0.01,
            "flags": {"benign": rate(flagged)},
            "refused": {"benign": rate(0.0)},
            "rr": {"plain": rate(0.1), "all": rate(0.1)},
            "asr": {"plain": rate(asr), "all": rate(asr)},
            "gain": pair(0.8 - asr),
            "caught": rate(flagged),
            "saved": 3.0,
            "saved_share": 0.1,
            "auroc": auroc,
        }

    found = [row("none", 0.8, 0.0, {}), row("sri", 0.3, 0.02, {"benign": [0.9, 0.85, 0.95]})]
    write(folder / "summary.json", found)
    scored, answers = [], []
    for n in range(20):
        bad = n % 2 == 0
        one = {"set": "plain" if bad else "benign", "id": str(n), "harmful": bad, "success": bad, "refused": False}
        scored.append({"guard": "sri", **one, "score": n / 20 + bad / 2, "flagged": bad, "step": ""})
        signal = {"d" * 16: [0.9, 0.5 + 0.02 * n, None if n == 3 else 0.7]}
        answers.append({**one, "prompt": prompt, "response": reply, "signals": signal})
    table(folder / "scores.csv", scored)
    rows(folder / "rows.jsonl", answers)
    return folder


def utility(folder, adapter=None, value=0.8, other=None):
    """A finished `midward utility`; other: the folder of another run that it was compared with."""
    cell = {"task": "sums", "subtask": "", "measure": "right", "flagged": 0}
    pairs = {str(other): [{"task": "sums", "subtask": "", "measure": "right", **pair(-0.1)}]} if other else {}
    about = {"verb": "utility", "model": "M", "adapter": adapter, "guard": None, "sampling": {"steps": 24}}
    cells = [{**cell, **rate(value)}, {**cell, "measure": "perplexity", "n": 9, "value": 12.5, "low": 11, "high": 14}]
    write(folder / "summary.json", {**about, "lm_eval": None, "cells": cells, "compared": pairs})
    return folder


def generations(folder, *, prompt="t30", word="t40", title="base"):
    """Two generations for the step player."""
    one = {
        "title": title,
        "prompt": prompt,
        "tokens": [[word, False], ["<end>", True]],
        "steps": [0, 1],
        "frames": [[0, -1, 1], [0, 0, 1]],
        "commit_step": [0, 1, 0],
        "confidence": [0.9, None, 0.8],
        "signal": None,
        "scores": None,
        "verdict": None,
        "note": "",
    }
    write(folder / "generations.json", {"generations": [one, {**one, "title": "mosa"}]})
    return folder
