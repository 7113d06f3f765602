"""Runs of attacks, guards and tasks with verdicts of one's choice, as the verbs write them."""

import report_world as world

from midward.attacks import results
from midward.attacks.results import Outcome
from midward.judges import Verdict, find
from midward.judges.scorers import Judged
from midward.utility import readings

FAILED = "failed"  # in a verdict's place: the sample has an error instead


def share(hits, n, unscored=0, failed=0):
    """So many verdicts."""
    return [True] * hits + [False] * (n - hits) + [None] * unscored + [FAILED] * failed


def attack(folder, cells, goals="made-up", judge="oracle", warning=None):
    """A finished `midward attack`. cells: (model, attack) -> verdicts, or seed -> verdicts; where
    there are fewer than of another cell, the others failed."""
    outcomes, models = [], []
    cells = {cell: each if isinstance(each, dict) else {"": each} for cell, each in cells.items()}
    count = max(len(verdicts) for by_seed in cells.values() for verdicts in by_seed.values())
    for (model, name), by_seed in cells.items():
        models += [model] * (len(by_seed) if model not in models else 0)
        for seed, verdicts in by_seed.items():
            for n, verdict in enumerate([*verdicts, *[FAILED] * (count - len(verdicts))]):
                about = {"adapter": seed, "subject": f"thing {n}"}
                if verdict == FAILED:
                    outcomes.append(Outcome(model, goals, name, f"g{n}", "t", error="it broke", **about))
                    continue
                told = {"judge": judge, "version": "1", "hash": "", "measures": find(judge).measures}
                unscored = ["reply"] if verdict is None else []
                judged = Judged(**told, verdicts={"reply": Verdict(judge, verdict)}, unscored=unscored)
                outcomes.append(Outcome(model, goals, name, f"g{n}", "t", {judge: judged}, {"reply": "t"}, **about))
    attacks = list(dict.fromkeys(name for _, name in cells))
    how = {"rows": models, "sets": {goals: count}, "attacks": attacks, "judges": [judge]}
    summary = results.summarise(outcomes, **how) | {"warning": warning}
    world.run(folder, "attack", summary, models=models, goals={goals: count})
    results.write_samples(folder, outcomes, [judge])
    return folder


def guards(folder, flagged, success=(), guard="sri"):
    """A finished `midward guard eval` of one guard. flagged: of harmless requests; success: what comes through."""
    about = {"guard": guard, "refused": False, "score": 0.5, "step": ""}
    rows = [
        {**about, "set": "benign", "goal": f"b{n}", "harmful": False, "success": "", "flagged": flag}
        for n, flag in enumerate(flagged)
    ]
    rows += [
        {**about, "set": "plain", "goal": f"p{n}", "harmful": True, "success": bad, "flagged": False}
        for n, bad in enumerate(success)
    ]
    of = {"flags": {"benign": world.rate(0, len(flagged))}, "asr": {"plain": world.rate(0, len(success))}}
    world.run(folder, "guard eval", {"defences": [{"defence": "none"}, {"defence": guard, **of}]})
    world.table(folder / "scores.csv", rows)
    return folder


def utility(folder, **tasks):
    """A finished `midward utility` on the world's own tasks. tasks: name -> who was right."""
    about = {"harmful": False, "success": False, "refused": False}
    rows = [
        {**about, "set": task, "goal": f"{task}{n}", "subject": f"{task} {n}", "correct": right}
        for task, verdicts in tasks.items()
        for n, right in enumerate(verdicts)
    ]
    world.run(folder, "utility", {"cells": readings.cells(rows)})
    world.rows(folder / "rows.jsonl", rows)
    return folder


def probe(folder, success, correct=()):
    """A finished `midward probe prefill`: harmful goals, and harmless ones that may have a right answer."""
    world.run(folder, "probe prefill", {"cells": []})
    about = {"kind": "neutral", "position": 3, "tokens": None, "phrase": "p"}
    rows = [
        {**about, "set": name, "goal": f"{name}{n}", "subject": f"{name} {n}", "harmful": harmful}
        | {"success": verdict if harmful else False, "correct": None if harmful else verdict}
        for name, harmful, verdicts in (("harmful", True, success), ("harmless", False, correct))
        for n, verdict in enumerate(verdicts)
    ]
    world.rows(folder / "rows.jsonl", rows)
    return folder
