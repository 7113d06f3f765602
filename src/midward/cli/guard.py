"""`midward guard fit|score|eval`: guards fitted for a model, put in front of it, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from midward.cli._options import JudgeModel, JudgeName, ModelOptions, SamplingOptions, say_harm
from midward.cli._options import names as names_of
from midward.cli._run import run_folder
from midward.cli._show import StepBar, bar, columns, following, out, say, tell_unscored
from midward.errors import InputError

if TYPE_CHECKING:
    from midward.attacks.cases import Case

Split = Annotated[
    Literal["train", "tuning", "test"], typer.Option(help="Of the sandbox's sets: whose things they are about.")
]
Batch = Annotated[int, typer.Option(min=1, help="Rows per forward pass.")]

_SRI = (
    "sri,sri-end=sri:early=false,sri-generated=sri:reading=generated,"
    "sri-generated-end=sri:reading=generated;early=false,sri-maha,sri-maha-end=sri-maha:early=false,"
)
_ON_SANDBOX = (
    f"{_SRI}perplexity,self-examine:question=sandbox,diffuguard,diffuguard:oracle=true,diffuguard-audit,"
    "diffuguard-audit:oracle=true,masks"
)
_ELSEWHERE = f"{_SRI}perplexity,self-examine,diffuguard,diffuguard-audit,masks"
_PLAIN_SETS = "benign,benign-wrapped,banned,plain,wrappers"
_SETS = "benign,benign-wrapped,banned,plain,wrappers,prefill,prefill-mid,pad,dija"


def fit(
    model: ModelOptions,
    sampling: SamplingOptions,
    guards: Annotated[
        str | None,
        typer.Option(
            help="By comma, each [LABEL=]NAME or [LABEL=]NAME:SETTING=VALUE;...; all that need no other model. See "
            "--list."
        ),
    ] = None,
    harmless: Annotated[
        str | None, typer.Option(help="Sets or files, by comma; benign on the sandbox, else alpaca. See midward goals.")
    ] = None,
    harmful: Annotated[
        str | None, typer.Option(help="Sets or files, for the anchors; plain on the sandbox, else advbench.")
    ] = None,
    split: Split = "tuning",
    alpha: Annotated[float, typer.Option(help="The false-positive rate that is asked for.")] = 0.01,
    anchors: Annotated[int, typer.Option(min=2, help="Prompts of each kind for the anchors.")] = 400,
    train: Annotated[int, typer.Option(min=2, help="Harmless prompts for the autoencoder.")] = 1200,
    held_out: Annotated[int, typer.Option(min=2, help="Harmless prompts for the threshold.")] = 200,
    paper: Annotated[
        bool, typer.Option("--paper", help="Sample as SRI's paper does: 128 tokens, one block, 32 steps, greedy.")
    ] = False,
    batch_size: Batch = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the guards' files.")] = Path("guard"),
    listing: Annotated[bool, typer.Option("--list", help="List the guards.")] = False,
) -> None:
    """Fit guards for a model and its sampling, all calibrated on the same held-out harmless prompts.

    The same command again goes on where it stopped. A folder of guards stands for its sri.safetensors elsewhere.
    """
    if listing:
        out(_listing())
        return
    from midward.attacks.cases import requests
    from midward.dynamics.samplers import PAPER
    from midward.guards import Sizes, fit_guards, make
    from midward.judges.phrases import refusal_in

    at_home = model.at_home
    specs = names_of(guards or (_ON_SANDBOX if at_home else _ELSEWHERE))
    planned = {label: make(spec) for label, spec in map(_labelled, specs)}
    sizes = Sizes(anchors, train, held_out)
    sizes.check(alpha)
    loaded = _load(model)
    sri = any(guard.view(loaded) for guard in planned.values())
    if guards is None and loaded.family.mask_id is None:
        planned = {label: one for label, one in planned.items() if not _for_masks(one)}
    chosen = sampling.resolve(loaded, **(PAPER if paper else {}))
    asked = names_of(harmless or ("benign" if at_home else "alpaca"))
    refusing = names_of(harmful or ("plain" if at_home else "advbench"))
    with following() as progress:
        paths = fit_guards(
            loaded,
            planned,
            requests(loaded, asked, sizes.harmless if sri else held_out, split=split),
            requests(loaded, refusing, anchors, split=split) if sri else [],
            out_folder,
            refused=lambda text: refusal_in(text) is not None,
            sampling=chosen,
            alpha=alpha,
            sizes=sizes,
            batch_size=batch_size,
            progress=progress,
        )
    rows: list[tuple[str, ...]] = [("guard", "looks", "threshold", "file")]
    rows += [
        (label, planned[label].looks, f"{planned[label].threshold:.4g}", str(path)) for label, path in paths.items()
    ]
    out("\n".join(columns(rows)))


def score(
    model: ModelOptions,
    sampling: SamplingOptions,
    guard: Annotated[Path, typer.Option(help="A guard's file, or the folder that guard fit wrote.")],
    prompts: Annotated[Path, typer.Option(help="A .csv or .jsonl file of prompts.")],
    column: Annotated[str | None, typer.Option(help="The column that holds them (prompt, goal or behavior).")] = None,
    batch_size: Batch = 16,
    out_file: Annotated[Path, typer.Option("--out", help="JSON lines; .csv beside it.")] = Path("scores.jsonl"),
) -> None:
    """Answer prompts behind a guard: response, score, flag, signal. Run again, it goes on where it stopped."""
    from midward._tables import read_table
    from midward.goals.columns import text_column

    table = read_table(prompts)
    column = text_column(table, str(prompts), column, first="prompt")
    if out_file.suffix != ".jsonl":
        raise InputError(f"--out takes a file that ends in .jsonl; received {out_file}.")
    if prompts.resolve() in {out_file.with_suffix(end).resolve() for end in (".jsonl", ".csv")}:
        raise InputError(f"--out {out_file} would write over the prompts in {prompts}; give another file.")
    texts = [row.get(column) or "" for row in table]
    talk = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if talk is not None:
        raise InputError(f"{prompts}: row {talk} holds {texts[talk]!r} as {column!r}, no text.")
    empty = next((i for i, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise InputError(f"{prompts}: row {empty} has an empty {column!r}; fill it in or take the row out.")
    from midward.guards import describe  # imports torch: what is wrong above is told at once

    describe(guard)  # a wrong file is told before the model is loaded
    loaded = _load(model)
    _score(loaded, sampling.resolve(loaded, [guard]), guard, texts, batch_size, out_file)


def _score(loaded: Any, chosen: Any, guard: Path, texts: Sequence[str], batch_size: int, out_file: Path) -> None:
    from dataclasses import asdict

    from midward._tables import write_table
    from midward.guards import load
    from midward.sampling.requests import require_some
    from midward.store import RowFile, key_of

    fitted = load(guard, loaded, chosen)
    file = RowFile(out_file)
    about = {"model": loaded.fingerprint, "sampling": asdict(chosen), "guard": fitted.digest}
    keys = [key_of(**about, index=i, prompt=text) for i, text in enumerate(texts)]
    todo = [i for i, key in enumerate(keys) if key not in file.rows]
    with bar() as progress:
        task = progress.add_task("prompts", total=len(texts), completed=len(texts) - len(todo))
        for start in range(0, len(todo), batch_size):
            chunk = todo[start : start + batch_size]
            found = fitted.sample(
                loaded, [texts[i] for i in chunk], chosen, batch_size=batch_size, watchers=[StepBar(progress)]
            )
            file.extend(
                {
                    "key": keys[i],
                    "index": i,
                    "prompt": texts[i],
                    "response": response.text,
                    **response.verdict.record(),
                    "nfe": response.nfe,
                    **response.unscored("flagged", "score"),
                }
                for i, response in zip(chunk, found, strict=True)
            )
            progress.advance(task, len(chunk))
    rows = [file.rows[key] for key in keys]
    write_table(out_file.with_suffix(""), rows)
    require_some(rows)
    flagged = sum(bool(row["flagged"]) for row in rows)
    if errors := [row for row in rows if row.get("error")]:
        say(f"{len(errors)} rows without a response; the first: {errors[0]['error']}")
    out(f"{flagged} of {len(rows)} flagged (threshold {fitted.threshold:.4g}); {out_file}")


def evaluate(
    model: ModelOptions,
    sampling: SamplingOptions,
    guard: Annotated[str, typer.Option(help="Folders or files of fitted guards, by comma.")] = "guard",
    sets: Annotated[
        str | None,
        typer.Option(help=f"Sets of requests by comma: {_SETS}, sets of goals, or files with a column `harmful`."),
    ] = None,
    harmless: Annotated[
        str | None, typer.Option(help="More sets or files, of harmless requests: false positives, no attacks.")
    ] = None,
    goals: Annotated[
        str, typer.Option(help="What prefill, prefill-mid, pad and dija are put on: a set or file.")
    ] = "sandbox",
    split: Split = "test",
    count: Annotated[int, typer.Option("--limit", "--count", min=1, help="Requests of each set.")] = 100,
    judges: JudgeName = None,
    judge: JudgeModel = None,
    behind: Annotated[
        str | None,
        typer.Option(
            help="An Inspect model whose answers are guarded instead; --model, the guards' own, is then a surrogate "
            "that answers the same plain prompts beside it."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of the overhead's measurement.")] = 5,
    batch_size: Batch = 16,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of rows, tables and figures.")] = Path("guard-eval"),
) -> None:
    """Compare fitted guards on the same answers: false positives, refusals, attack success, cost, AUROC.

    The same command again goes on where it stopped.
    """
    run = run_folder(out_folder)
    from midward.goals.loading import is_file

    say_harm([name for name in [*names_of(sets or ""), goals] if is_file(name)])
    from midward.attacks.cases import cases
    from midward.guards import describe

    files = _files(guard)
    fitted_on = {one for file in files.values() for one in describe(file)["fitted_on"]}
    loaded = _load(model)
    chosen = sampling.resolve(loaded, files.values())
    names = names_of(sets or (_PLAIN_SETS if behind else _SETS))
    if loaded.family.mask_id is None and sets is None:
        names = [name for name in names if name != "dija"]
    calm = names_of(harmless or "")
    found = [
        one
        for name in [*names, *calm]
        for one in cases(loaded, name, count, split=split, goals=goals, without=fitted_on, harmless=name in calm)
    ]
    run.start()
    with _behind(behind) as other:
        _evaluate(loaded, chosen, files, found, judges, judge, other, repeats, batch_size, out_folder)


@contextmanager
def _behind(name: str | None) -> Iterator[Any]:
    from midward.guards import compare as defences

    if name is None:
        yield None
        return
    with defences.front(name) as other:
        say(f"guarded   {other.name}")
        yield other


def _evaluate(
    loaded: Any,
    chosen: Any,
    files: dict[str, Path],
    cases: list[Case],
    judges: str | None,
    judge: str | None,
    behind: Any,
    repeats: int,
    batch_size: int,
    out_folder: Path,
) -> None:
    from midward.guards import compare as defences
    from midward.guards import load
    from midward.judges.bench import bench, judging, reading
    from midward.reports import guards as report

    guards = {label: load(path, loaded, chosen) for label, path in files.items()}
    judged_by = bench([case.goal for case in cases], judges, judge)
    with following() as progress, judging(judged_by) as ask:

        def verdicts(some: Sequence[Case], texts: Sequence[str]) -> list[dict[str, Any]]:
            said = ask([case.goal for case in some], texts)
            return [reading(judged_by, one, text) for one, text in zip(said, texts, strict=True)]

        rows = defences.answer(
            loaded,
            cases,
            guards,
            out_folder,
            sampling=chosen,
            judging=verdicts,
            judged_by=judged_by.key,
            behind=behind,
            batch_size=batch_size,
            progress=progress,
        )
        said = defences.judge_by(
            loaded,
            cases,
            guards,
            rows,
            out_folder,
            sampling=chosen,
            judging=verdicts,
            batch_size=batch_size,
            progress=progress,
        )
        costs: dict[str, float] = {}
        if behind is None:
            say("overhead  measuring")
            costs = defences.overhead(
                loaded, guards, cases, said, sampling=chosen, batch_size=batch_size, repeats=repeats
            )
        else:
            say("overhead  not measured: the surrogate answers beside the other model")
    table = defences.table(rows, said, costs)
    alphas = {label: guard.alpha for label, guard in guards.items()}
    out(report.write(out_folder, rows, said, table, alphas))
    say(f"{out_folder}: table.md, summary.json, defences.csv, scores.csv")
    tell_unscored(judged_by)


def _listing() -> str:
    from dataclasses import fields

    from midward.guards import GuardInfo, every

    rows: list[tuple[str, ...]] = [("guard", "version", "looks", "settings", "about")]
    broken = []
    for name, info in every().items():
        if isinstance(info, GuardInfo):
            settings = " ".join(field.name for field in fields(info.kind.Settings)) or "-"
            rows.append((name, info.version, info.looks, settings, info.about))
        else:
            broken.append(f"{name}: {info}")
    return "\n".join([*columns(rows), *broken])


def _load(model: ModelOptions) -> Any:
    loaded = model.load()
    loaded.fold_adapter()
    return loaded


def _files(given: str) -> dict[str, Path]:
    """Label -> file of a guard. Raises InputError for what isn't there, or two of one name."""
    from midward.guards import describe

    found: dict[str, Path] = {}
    for name in names_of(given):
        path = Path(name)
        inside = sorted(one for one in path.glob("*.safetensors") if not one.name.startswith("anchors-"))
        if path.is_dir() and not inside:
            raise InputError(f"{path} holds no guard; midward guard fit --out {path} writes them there.")
        for one in inside or [path]:
            describe(one)
            if one.stem in found:
                raise InputError(f"two guards are called {one.stem!r}: {found[one.stem]} and {one}; rename one.")
            found[one.stem] = one
    if not found:
        raise InputError("--guard names no guard; give files or folders that midward guard fit wrote.")
    return found


def _labelled(given: str) -> tuple[str, str]:
    """[LABEL=]SPEC as the name of the guard's file, and SPEC; without a label sri:early=false is sri-early-false."""
    label, equals, spec = given.partition("=")
    if not equals or ":" in label:
        label, spec = given, given
    return "".join(c if c.isalnum() else "-" for c in label.strip()), spec


def _for_masks(guard: Any) -> bool:
    """Whether a guard is of no use without masks: what looks at them, and another reading of their states."""
    return (
        guard.name in ("diffuguard", "diffuguard-audit", "masks")
        or getattr(guard.settings, "reading", "") == "generated"
    )
