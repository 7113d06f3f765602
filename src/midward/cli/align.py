"""`midward align`: an adapter that makes a model refuse, at its opening or in its middle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from midward._flags import Flag
from midward.alignment import AlignConfig
from midward.cli._options import Given, ModelOptions, Overwrite
from midward.cli._show import bar, say
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.models import LanguageModel

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
) -> None:
    """Train a LoRA adapter with the MOSA objective. Run again, it goes on where it stopped.

    Works under torchrun and accelerate launch too (configs/accelerate).
    """
    at_home = model.at_home
    data = data or ("sandbox" if at_home else None)
    if data is None:
        raise InputError(f"--data is needed for --model {model.model}: a .csv or .jsonl file of harmful prompts.")
    if benign is None and data == "sandbox":
        benign = "sandbox"
    given = config.values | _settings(set_ or [])
    harmful = _prompts(data, column, "harmful")
    calm = None if benign is None else _prompts(benign, benign_column or column, "benign")

    method = given.get("method", AlignConfig.method)
    lists = _sentences(sentences or ("sandbox" if data == "sandbox" else None), method)

    from midward import alignment
    from midward.sampling import Sampling

    settings: dict[str, Any] = {}
    if data == "sandbox":
        from midward.world import ALIGNMENT

        settings |= ALIGNMENT.get(given.get("recipe", AlignConfig.recipe), {})
    settings |= given
    loaded = model.load(**_use(settings, benign=calm is not None))
    # What is trained is what will be sampled.
    settings = {"length": Sampling.for_model(loaded).length, **settings}
    resolved = alignment.resolve(settings)
    say(f"align     {method}, {resolved.recipe}: {len(harmful)} harmful and {len(calm or [])} benign prompts")
    told = [f"{name} {value}" for name, value in resolved.to_dict().items() if name not in ("method", "recipe")]
    say(f"          {', '.join(told)}")
    _run(loaded, harmful, calm, out, lists, overwrite, processes, settings)


def _use(settings: dict[str, Any], benign: bool) -> dict[str, Any]:
    """What `ModelOptions.load` makes its estimate of. Raises AlignError for settings that can't be, before loading."""
    from midward import alignment

    # The model's own length isn't known yet, so any window fits.
    config = alignment.resolve({"length": 2**20, **settings})
    share = config.micro_batch or max(1, config.batch_size // int(os.environ.get("WORLD_SIZE", "1")))
    return {
        "batch": share * (1 + (config.benign_per_prompt if benign else 0)),
        "length": min(config.length, 1024) + 64,
        "training": True,
        "checkpointing": config.gradient_checkpointing,
        "rank": config.lora_rank,
    }


def _run(
    model: LanguageModel,
    harmful: list,
    benign: list | None,
    out: Path,
    sentences: dict[str, list[str]],
    overwrite: bool,
    processes: int | None,
    settings: dict[str, Any],
) -> None:
    import warnings

    from midward import alignment

    with bar() as progress:
        task = progress.add_task("align", total=None)

        def show(row: dict[str, float]) -> None:
            values = [f"{short} {row[name]:.3g}" for name, short in SHOWN.items() if name in row]
            line = f"step {row['step']:>5}  {'  '.join(values)}"
            steps = json.loads((out / "align.json").read_text(encoding="utf-8"))["steps"]
            progress.update(task, completed=row["step"], total=steps, description=line)
            if progress.disable:
                say(line)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", alignment.RewardWarning)  # it is told below
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about its own next version
            result = alignment.align(
                model,
                harmful,
                out,
                benign=benign,
                sentences=alignment.SentenceSet(**sentences),
                overwrite=overwrite,
                on_log=show,
                on_start=lambda line: say(f"          {line}"),
                processes=processes,
                **settings,
            )
    if result.reused:
        say(f"{result.adapter} is finished already ({result.steps} steps)")
        return
    begun = f", from step {result.resumed_from}" if result.resumed_from else ""
    say(f"{result.steps} steps{begun}; adapter and reward.csv are in {result.adapter}")
    for message in result.warnings:
        say(f"warning: {message}")


def _prompts(source: str, column: str | None, kind: Literal["harmful", "benign"]) -> list[Any]:
    """Prompts as `alignment.align` takes them: (prompt, answer) where there is an answer."""
    if source == "sandbox":
        from midward import world as sandbox

        if kind == "harmful":
            return list(sandbox.alignment_prompts())
        return list(sandbox.instructions())
    from midward._tables import read_table
    from midward.goals.columns import text_column

    rows = read_table(source)
    column = text_column(rows, source, column, first="prompt")
    found = []
    for index, row in enumerate(rows):
        prompt = row.get(column)
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise InputError(f"{source}: row {index} has an empty {column!r}; remove it.")
        answer = row.get("answer") if column != "answer" else None
        found.append((prompt, answer) if answer else prompt)
    return found


def _sentences(source: str | None, method: str) -> dict[str, list[str]]:
    """The lists `safe` and `harmful`; nothing where the built-in ones are meant."""
    import yaml

    if source is None:
        return {}
    if source == "sandbox":
        from midward.world import sentences

        safe, harmful = sentences(opening=method == "initial")
        return {"safe": safe, "harmful": harmful}
    try:
        content = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source} is no YAML: {error}") from None
    if not isinstance(content, dict) or set(content) != {"safe", "harmful"}:
        raise InputError(f"{source} must hold the lists `safe` and `harmful`; received {content!r}.")
    return content


def _settings(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE -> its value, read as YAML. Raises InputError."""
    import yaml

    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE; received {pair!r}.")
        try:
            settings[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {name}: {text!r} is no value.") from None
    return settings
