"""Run folders as the commands leave them, small, with texts of one's choice."""

import csv
import json

from midward.runs.run import Measured, Run
from midward.stats import Area, Mean, Paired, Rate


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
    lines = (json.dumps({"key": f"{n:016x}", **record}) + "\n" for n, record in enumerate(records))
    path.write_text("".join(lines), encoding="utf-8")


def run(folder, verb, summary, finished="2026-01-01T00:00:00+00:00", models=("base",), **more):
    """A run of `verb`, with its record."""
    measured = [Measured(name="org/base", label=name, adapter=None if name == "base" else name) for name in models]
    folder.mkdir(parents=True, exist_ok=True)
    record = Run(verb=verb, models=measured, finished=finished, **more)
    (folder / "run.json").write_text(record.model_dump_json(), encoding="utf-8")
    if summary is not None:
        write(folder / "summary.json", summary)
    return folder


def rate(value, n=60, low=None, high=None, unscored=0):
    low, high = max(0, value - 0.05) if low is None else low, min(1, value + 0.05) if high is None else high
    return Rate(value, low, high, n, n, hits=round(value * n), unscored=unscored).record()


#: What no rate of an attack can say.
CANNOT_BE = ({"value": 7.0}, {"low": 0.99}, {"n": -5}, {"n": 1.5}, {"unscored": -3}, {"errors": -1}, {"errors": 1.5})


def spoil(folder, **wrong):
    """Change the rates of an attack."""
    summary = json.loads((folder / "summary.json").read_text())
    for rates in summary["asr"]["oracle"]["reply"]["advbench"].values():
        rates.update({model: record | wrong for model, record in rates.items()})
    write(folder / "summary.json", summary)


def pair(value, n=60, p=0.001, wide=0.04, **more):
    return Paired(value, value - wide, value + wide, n, n, p=p).record() | more


def area(value, low, high, count=40):
    return Area(value, low, high, count, count, positives=count // 2, negatives=count // 2).record()


def mean(value, low, high, n=9):
    return Mean(value, low, high, n, n).record()


def attack(folder, *, goal="t30 t31 t32", asked="", reply="t40 t41 t42", success=0.9, aligned=0.0, attack="prefill"):
    """A finished `midward attack` of two models, one attack, one goal with texts."""
    models, texts = ("base", "mosa"), ("reply", "replay", "authored")
    cells = {"advbench": {attack: {"base": rate(success), "mosa": rate(aligned, high=0.06)}}}
    pairs = {"advbench": {attack: {"mosa - base": pair(aligned - success)}}}
    cost = {
        "n": 60,
        "errors": 0,
        "queries": mean(1.0, None, None),
        "nfe": mean(8.0, 7.0, 9.0),
        "seconds": 0.5,
        "role_failures": 0,
        "access": ["black"],
    }
    summary = {
        "rows": models,
        "goals": {"advbench": 60},
        "attacks": [attack],
        "judges": ["oracle"],
        "measures": {"oracle": "success"},
        "asr": {"oracle": dict.fromkeys(texts, cells)},
        "refusals": {},
        "paired": {"oracle": dict.fromkeys(texts, pairs)},
        "costs": {attack: dict.fromkeys(models, cost)},
        "models": {
            model: {"model": "/home/somebody/base", "adapter": adapter, "guard": None}
            for model, adapter in zip(models, (None, "mosa"), strict=True)
        },
    }
    run(folder, "attack", summary, models=models, settings={"profile": "quick", "goals": "/home/somebody/goals.csv"})
    about = {"goals": "advbench", "attack": attack, "goal": "advbench-0001", "prompt": goal}
    said = {"asked": asked or goal, "reply": reply, "error": ""}
    rows = [{"row": model, **about, "oracle_reply": int(model == "base"), **said} for model in models]
    table(folder / "samples.csv", rows)
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "2026_one.eval").write_bytes(b"a log")
    return folder


def adapter(folder, finished=True):
    run(folder, "align", {"finished": finished, "warnings": []}, settings={"recipe": "mosa"})
    table(folder / "reward.csv", [{"step": step, "reward": step / 2, "positive": -step} for step in range(5, 50, 5)])
    return folder


def prefill(folder):
    def cell(kind, position, asr):
        place = {"set": "harmful", "kind": kind, "position": position, "tokens": None}
        return {**place, "asr": rate(asr, n=100, low=asr - 0.1, high=asr + 0.1), "correct": None, "coherent": rate(0.9)}

    cells = [cell("none", None, 0.1)]
    cells += [cell(kind, at, at / 200 + 0.2) for kind in ("affirmative", "procedural") for at in (0, 40, 80)]
    summary = {"findings": ["A phrase at token 40 raises ASR."], "cells": cells, "compared": {}}
    return run(folder, "probe prefill", summary, sampling={"steps": 24})


def guards(folder, auroc=(0.9, 0.85, 0.95), gain=None):
    """A finished `midward guard eval`."""

    def row(name, asr, flagged, auroc):
        return {
            "defence": name,
            "overhead": 0.01,
            "flags": {"benign": rate(flagged)},
            "rr": {"plain": rate(0.1), "all": rate(0.1)},
            "asr": {"plain": rate(asr), "all": rate(asr)},
            "gain": gain or pair(0.8 - asr),
            "caught": rate(flagged),
            "saved": mean(3.0, 2.0, 4.0),
            "auroc": auroc,
        }

    bands = {
        name: {"n": 9, "low": [level - 0.1] * 3, "median": [level, None, level], "high": [level + 0.1] * 3}
        for name, level in (("benign", 0.9), ("jailbroken", 0.5))
    }
    summary = {
        "defences": [row("none", 0.8, 0.0, {}), row("sri", 0.3, 0.02, {"benign": area(*auroc)})],
        "alphas": {"sri": 0.01},
        "roc": {"sri": {"benign": [[0, 0], [0.1, 0.8], [1, 1]]}},
        "signals": {"last": bands},
    }
    return run(folder, "guard eval", summary)


def utility(folder, adapter=None, value=0.8, other=None):
    """A finished `midward utility`; other: the folder of another run that it was compared with."""
    cell = {"task": "sums", "subtask": "", "measure": "right"}
    pairs = {str(other): [{**cell, **pair(-0.1)}]} if other else {}
    cells = [
        {**cell, "score": rate(value), "flagged": 0},
        {**cell, "measure": "perplexity", "score": mean(12.5, 11, 14)},
    ]
    return run(folder, "utility", {"cells": cells, "compared": pairs}, models=[adapter or "base"])


def dynamics(folder):
    """A finished `midward dynamics`."""
    attacked = {"rr": rate(0.1), "asr": rate(0.6), "harm-on-the-way": rate(0.5), "hrr": rate(0.1), "frr": rate(0.05)}
    attacked |= {f"irr-{at}": rate(0.3) for at in ("0.5", "0.25", "0.1")}
    cells = {name: {"attacked": attacked, "benign": {"rr": rate(0.0), "right": rate(0.9)}} for name in ("native", "ar")}
    gains = [
        {"sampler": "native", "against": "ar", "set": where, "measure": measure, **pair(0.1)}
        for where, measure in (("attacked", "success"), ("attacked", "refused"), ("benign", "correct"))
    ]
    one = {"sampler": "native", "reading": "last", "detector": "autoencoder", "positive": "jailbroken"}
    points = [[0.0, 0.1], [1.0, 1.1]]
    found = {"sampler": "native", "layer": "last", "kinds": ["refused", "jailbroken"], "points": points}
    found |= {"accuracy": rate(0.8), "majority": rate(0.5), "begun": {"refused": mean(0.4, 0.3, 0.5)}}
    band = {"n": 9, "low": [0.4, 0.4], "median": [0.5, 0.5], "high": [0.6, 0.6]}
    summary = {
        "cells": cells,
        "gains": gains,
        "auroc": [{**one, "negative": "benign", "control": False, **area(0.7, 0.6, 0.8)}],
        "signals": {name: {"benign": band, "jailbroken": band} for name in cells},
        "maps": [found],
    }
    return run(folder, "dynamics", summary)


def order(folder):
    """A finished `midward probe order`."""
    middle = mean(5.0, 4.0, 6.0)
    summary = {
        "sets": {"sums": {"correlation": middle, "part_text": middle}},
        "steps": {"sums": [middle, None, middle]},
        "maps": {"sums": [[0.0, 1.0], [0.5, 0.5]]},
        "findings": ["The order is free."],
    }
    return run(folder, "probe order", summary)


def gcg(folder):
    """A finished `midward probe gcg`."""
    loss = mean(5.0, None, None, n=1)
    summary = {
        "cells": [{"position": None, "asr": rate(0.1)}, {"position": 30, "loss": loss, "asr": rate(0.2)}],
        "between": [{"position": 30, "minus": None, "measure": "success", **pair(0.1)}],
        "curves": [{"model": "base", "position": 30, "loss": [loss, loss]}],
        "findings": ["It is far."],
    }
    return run(folder, "probe gcg", summary)


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
    return run(folder, "trace", {"generations": [one, {**one, "title": "mosa"}]})
