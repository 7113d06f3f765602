"""`midward align`: an adapter that makes a model refuse, at its opening or in its middle."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from midward._flags import Flag
from midward.alignment import AlignConfig, resolve
from midward.cli._options import Given, ModelOptions, Overwrite, pairs
from midward.cli._run import Result, finish
from midward.cli._show import bar, say
from midward.errors import InputError
from midward.sampling import Sampling

SHOWN = {"reward": "reward", "positive": "pos", "negative": "neg", "kl": "KL", "over_refusal": "over-refusal"}


def align(
    model: ModelOptions,
    config: Given[AlignConfig],
    out: Annotated[Path, Flag("Folder for the adapter, the reward curve and the record.")],
    data: Annotated[str | None, Flag("Harmful prompts: a .csv or .jsonl file, or `sandbox`.")] = None,
    benign: Annotated[str | None, Flag("Benign prompts: the same; answers are taken from a column `answer`.")] = None,
    column: Annotated[
        str | None, Flag("The column of --data that holds the prompts (prompt, goal or behavior).")
    ] = None,
    benign_column: Annotated[str | None, Flag("The column of --benign; by default --column.")] = None,
    sentences: Annotated[
        str | None, Flag("YAML file of the lists `safe` and `harmful`, or `sandbox`; default: built in, or the data's.")
    ] = None,
    set_: Annotated[
        list[str] | None, Flag("A setting below, as YAML, null included; repeat it.", name="--set", metavar="KEY=VALUE")
    ] = None,
    processes: Annotated[
        int | None, Flag("Fail unless torchrun or accelerate launch started this many processes.", min=1)
    ] = None,
    overwrite: Overwrite = False,
) -> Result:
    """Train a LoRA adapter with the MOSA objective. Run again, it goes on where it stopped.

    Works under torchrun and accelerate launch too (configs/accelerate).
    """
    from midward.alignment import sources

    data = data or (sources.SANDBOX if model.at_home else None)
    if data is None:
        raise InputError(f"--data is needed for --model {model.model}: a .csv or .jsonl file of harmful prompts.")
    own = sources.SANDBOX if data == sources.SANDBOX else None
    benign, given = benign or own, config.values | pairs("--set", set_)
    harmful = sources.prompts(data, column, harmful=True)
    calm = sources.prompts(benign, benign_column or column, harmful=False) if benign else None
    lists = sources.sentences(sentences or own, given.get("method", AlignConfig.method))
    settings = {**sources.defaults(data, given.get("recipe", AlignConfig.recipe)), **given}
    # The model's own length isn't known yet, so any window fits.
    plan = resolve({"length": 2**20, **settings})
    loaded = model.load(**plan.memory(benign=calm is not None, processes=int(os.environ.get("WORLD_SIZE", "1"))))
    from midward.alignment import RewardWarning, SentenceSet, run
    from midward.runs.run import RECORD, Measured, RunFolder

    settings = {"length": Sampling.for_model(loaded).length, **settings}  # what is trained is what will be sampled
    plan = resolve(settings)
    say(f"align     {plan.method}, {plan.recipe}: {len(harmful)} harmful and {len(calm or [])} benign prompts")
    numbers = [f"{name} {value}" for name, value in plan.to_dict().items() if name not in ("method", "recipe")]
    say(f"          {', '.join(numbers)}")
    if overwrite:
        (out / RECORD).unlink(missing_ok=True)
    folder = RunFolder(out, "align", plan.to_dict(), grows=["save_steps", "micro_batch"])
    counts = {"harmful": len(harmful), "benign": len(calm or [])}

    def start(line: str) -> None:
        say(f"          {line}")
        folder.start([Measured.of(loaded)], goals=counts, seed=plan.seed)

    with bar() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", RewardWarning)  # it is told below
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about its own next version
        task = progress.add_task("align", total=None)

        def show(row: dict[str, float]) -> None:
            values = [f"{short} {row[name]:.3g}" for name, short in SHOWN.items() if name in row]
            line = f"step {row['step']:>5}  {'  '.join(values)}"
            steps = json.loads((out / "align.json").read_text(encoding="utf-8"))["steps"]
            progress.update(task, completed=row["step"], total=steps, description=line)
            if progress.disable:
                say(line)

        trained = run.align(
            loaded,
            harmful,
            out,
            benign=calm,
            sentences=SentenceSet(**lists),
            overwrite=overwrite,
            on_log=show,
            on_start=start,
            processes=processes,
            **settings,
        )
    for message in trained.warnings:
        say(f"warning: {message}")
    record = {"adapter": str(trained.adapter), "steps": trained.steps, "history": trained.history}
    if trained.reused:
        return Result(record, files=f"{trained.adapter} is finished already ({trained.steps} steps)")
    begun = f", from step {trained.resumed_from}" if trained.resumed_from else ""
    shown = finish(folder, {"finished": True, "steps": trained.steps, "warnings": trained.warnings})
    written = f"{trained.steps} steps{begun}; adapter, reward.csv and its figure are in {trained.adapter}"
    return replace(shown, data={**record, "warnings": trained.warnings}, files=written)
