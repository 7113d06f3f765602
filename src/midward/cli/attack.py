"""`midward attack`: models against attacks, one table."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from midward._flags import Flag
from midward.attacks.config import AttackConfig
from midward.cli._options import Placement, SamplingOptions, labelled, say_harm
from midward.cli._run import Result, finish, listing, run_folder
from midward.cli._show import console, is_quiet, say
from midward.errors import InputError
from midward.goals import says_harm
from midward.guards.config import guard_file
from midward.models.names import adapter_name


def attack(
    sampling: SamplingOptions,
    config: AttackConfig,
    placement: Placement,
    out: Annotated[Path, Flag(free=True)] = Path("attack"),
) -> Result:
    """Attack a model, and adapters of it, with published attacks; judge, count, compare.

    The same command again goes on where it stopped. inspect view --log-dir OUT/logs shows every conversation.
    Ends with status 1 where every sample of a row failed, or a judge scored nothing.

    Args:
        out: Folder of logs and tables.
    """
    if config.listing:
        from midward.attacks.profiles import table

        columns, rows, text = table()
        short = listing(columns[:-2], [row[:-2] for row in rows], text)
        return replace(short, data=[dict(zip(columns, row, strict=True)) for row in rows])
    folder = run_folder(out)
    adapters = labelled("--adapter", config.adapter, adapter_name)
    guards = labelled("--guard", config.guard, guard_file)
    say_harm(config.goals, config.column)
    for name in config.harmless:
        says_harm(name, config.column)  # a wrong name or file is told at once
    config.check_names()
    from midward.judges import ranked

    ranked(config.judges)
    from midward.attacks import evalset, results
    from midward.attacks.matrix import matrix_of, rows_of

    if config.endpoint and placement != Placement():
        raise InputError("--device, --dtype, --quantize and --device-map are the server's: give them to midward serve.")
    place = {} if config.endpoint else vars(placement)
    given = {**place, **sampling.values, "batch_size": config.batch_size, "seed": None}
    arguments = {name: value for name, value in given.items() if value is not None}
    matrix = matrix_of(config, rows_of(config, adapters, guards, arguments), sampling.seed)
    for line in matrix.notes(config.roles):
        say(line)
    if config.plan:
        return listing(*evalset.cost(matrix))
    about: dict[str, Any] = {"judges": matrix.judge_records(), "goals": matrix.sizes, "seed": matrix.seed}
    display = os.environ.get("INSPECT_DISPLAY") or ("rich" if console().is_terminal and not is_quiet() else "none")
    logs = evalset.run(matrix, out, display=display, begin=lambda models: folder.start(models, **about), tell=say)
    outcomes = results.with_lost(matrix, results.read(logs))
    summary = results.of_matrix(matrix, outcomes) | {"verdict": config.verdict}
    results.write_samples(out, outcomes, [*summary["judges"], *matrix.refusal_judges])
    for name in results.write_learned(out, outcomes):
        say(f"{out / name}: what an attack learned here, to be used on other goals")
    if config.export:
        guards_of = {label: row["guard"] and Path(row["guard"]).stem for label, row in summary["models"].items()}
        about = {"date": str(folder.run.started)[:10], "defenses": guards_of}
        say(f"{config.export}: {results.export(config.export, outcomes, matrix.success_judges[0], **about)}")
    failures, why = results.trouble(matrix, outcomes, config.verdict)
    if failures:
        say(failures)
    files = f"table.md, summary.json, samples.csv; inspect view --log-dir {out / 'logs'}"
    return finish(folder, summary, why, files)
