"""GCG on masked diffusion: a suffix of the user's turn that makes a phrase likely at any place of the response.

The search is the greedy coordinate gradient of Zou et al. (2307.15043); its use at the start against the middle of a
response is MOSA's (2508.12398, figure 4). MOSA says no more of it than phrase, place and number of iterations, so the
loss is ours: the mean cross entropy of the phrase with the response fully masked, or over partly revealed drafts.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from midward.errors import InputError
from midward.goals import Goal
from midward.judges.bench import Bench, judging, reading
from midward.models import LanguageModel, ModelError
from midward.probes._candidates import Suffix, SuffixPrompt, start_of, swaps
from midward.probes.phrases import Phrases, phrase_for, span
from midward.probes.prefill import check_positions
from midward.sampling import Forced, Request, Response, Sampling, Span, sample, span_gradient, span_log_probs
from midward.store import RowFile, hold, key_of, write_text

VERSION = "1"  # raised whenever a row may come out otherwise
CHUNK = 32  # responses between two writes
Count = Annotated[int, Field(ge=1)]
Draft = tuple[Forced, ...]

#: What fits the embedded model on a laptop, where the reference width of 512 would take hours: docs/findings.md.
SANDBOX: dict[str, Any] = {"width": 4, "top": 64}


@checked(frozen=True, config={"extra": "forbid"})
class Gcg:
    """Settings of a search; the defaults are the published ones.

    tokens: of the suffix. iterations: at most. width: single swaps that are evaluated in one. top: tokens of steepest
    descent that they are drawn from, at each slot. stop_loss: nats a token at which a search ends early. drafts: 0
    takes the loss on a fully masked response; J the mean over J random subsets of the model's own response to the
    unoptimised prompt. seed: of swaps, drafts and phrases.
    """

    tokens: Count = 20
    iterations: Count = 100
    width: Count = 512
    top: Count = 256
    stop_loss: Annotated[float, Field(ge=0)] = 0.05
    drafts: Annotated[int, Field(ge=0)] = 0
    seed: int = 0


@dataclass(frozen=True)
class Aim:
    """A phrase that is to stand at a response position, as text and as the model's tokens."""

    position: int
    phrase: str
    ids: tuple[int, ...]


@dataclass
class Search:
    """Where a search stands. loss: of `best`, the suffix of the least loss so far. curve: the present suffix's loss at
    the start and after each iteration, in nats a token. dropped: swaps that weren't read back as they are."""

    current: Suffix
    best: Suffix
    loss: float
    curve: list[float] = field(default_factory=list)
    evaluated: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Search:
        """From its JSON."""
        return cls(**{**record, "current": tuple(record["current"]), "best": tuple(record["best"])})


def require_gradients(model: LanguageModel) -> None:
    """Raise InputError unless the model is a diffusion model whose weights carry gradients."""
    if model.family.kind != "diffusion":
        raise InputError(
            f"{model.name!r} is autoregressive: nothing stands to the right of what it writes, so there is no "
            "middle to aim at. The probe takes diffusion models."
        )
    whole = {str(p.dtype) for p in model.network.parameters() if not p.is_floating_point()}
    if whole or getattr(model.causal_lm, "is_quantized", False):
        raise InputError(
            f"{model.name!r} is quantised ({', '.join(sorted(whole)) or 'packed weights'}) and gives no gradients; "
            "load weights in bfloat16 or float32."
        )


def aims_of(
    model: LanguageModel,
    goal: Goal,
    positions: Sequence[int],
    texts: Phrases,
    length: int,
    *,
    own: Mapping[int, str] | None = None,
    seed: int = 0,
) -> list[Aim]:
    """What is aimed at for a goal: an affirmative phrase at token 0, a procedural one elsewhere.

    They come out of `texts` (kind -> phrases), the same for every model; own: position -> a text instead.

    Raises InputError for a position outside the response's `length` tokens, and for a phrase that ends behind it.
    """
    check_positions(positions, length)
    aims = []
    for position in positions:
        kind = "procedural" if position else "affirmative"
        phrase = (own or {}).get(position) or phrase_for(goal, kind, position, texts[kind], seed)
        aims.append(Aim(position, phrase, span(model, phrase, position, length).ids))
    return aims


def losses(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    aim: Aim,
    *,
    length: int,
    drafts: Sequence[Draft] = ((),),
    batch_size: int = 64,
) -> list[float]:
    """Mean cross entropy of the aim's tokens, in nats, after each prompt (ids); the mean over drafts.

    batch_size: rows (prompts x drafts) a forward; the head runs on the aim's positions alone.
    """
    spans = [Span(ids, aim.position, aim.ids, draft) for ids in prompts for draft in drafts]
    scores = span_log_probs(model, spans, mode="parallel", length=length, batch_size=batch_size)
    # What isn't finite is never the least.
    means = [math.inf if math.isnan(score.total) else -score.total / len(aim.ids) for score in scores]
    return [sum(means[i : i + len(drafts)]) / len(drafts) for i in range(0, len(means), len(drafts))]


def drafts_of(
    model: LanguageModel, prompt: Sequence[int], aim: Aim, settings: Gcg, sampling: Sampling, key: str
) -> list[Draft]:
    """The drafts that a search averages over: nothing revealed, or random subsets of the response to `prompt` (ids).

    A subset's size is drawn evenly, its positions at random; the aim's own places and masks are never in it.
    """
    if not settings.drafts:
        return [()]
    [response] = sample(model, [Request(prompt)], sampling)
    response.checked()
    taken = range(aim.position, aim.position + len(aim.ids))
    free = [p for p, token in enumerate(response.raw_ids) if p not in taken and token != model.family.mask_id]
    drafts = []
    for number in range(settings.drafts):
        rng = random.Random(f"{settings.seed}:{key}:{aim.position}:draft {number}")
        shown = sorted(rng.sample(free, rng.randint(0, len(free))))
        drafts.append(tuple(Forced(p, (response.raw_ids[p],)) for p in shown))
    return drafts


def search(
    model: LanguageModel,
    prompt: SuffixPrompt,
    aim: Aim,
    settings: Gcg,
    *,
    length: int,
    key: str = "",
    drafts: Sequence[Draft] = ((),),
    batch_size: int = 64,
    state: Search | None = None,
    watch: Callable[[Search], None] = lambda state: None,
) -> Search:
    """Optimise a suffix; the result's `best` is the best it ever had.

    state: where an earlier call stood (it is changed). Draws depend on the settings' seed, `key`, position and
    iteration alone, so that a search that goes on from there ends where an uninterrupted one does. `watch` is called
    with the state after each iteration.
    """
    run: dict[str, Any] = {"length": length, "drafts": drafts, "batch_size": batch_size}
    if state is None:
        start = start_of(prompt, settings.tokens)
        [loss] = losses(model, [prompt.ids(start)], aim, **run)
        if not math.isfinite(loss):
            raise ModelError(f"{model.name!r} computes NaN or infinite numbers, so nothing can be searched for.")
        state = Search(start, start, loss, [loss])
    while len(state.curve) <= settings.iterations and state.loss > settings.stop_loss:
        rng = random.Random(f"{settings.seed}:{key}:{aim.position}:{len(state.curve)}")
        placed = prompt.place(state.current)
        assert placed is not None  # every candidate was read back
        ids, start_slot = placed
        slots = range(start_slot, start_slot + len(state.current))
        slope = span_gradient(model, Span(ids, aim.position, aim.ids), slots, **run)
        found, dropped = swaps(slope, prompt, state.current, width=settings.width, top=settings.top, rng=rng)
        state.dropped += dropped
        if not found:  # nor would there be another time
            break
        values = losses(model, [one for _, one in found], aim, **run)
        state.evaluated += len(found)
        least = min(range(len(values)), key=values.__getitem__)
        state.current = found[least][0]  # as published: also where it is no better
        state.curve.append(values[least])
        if values[least] < state.loss:
            state.best, state.loss = found[least][0], values[least]
        watch(state)
    return state


@dataclass(frozen=True)
class Cost:
    """What a run takes at most. rows: evaluated suffixes (times drafts), gradients: forwards with a backward pass.
    seconds: at the rate that two iterations had on this machine."""

    searches: int
    rows: int
    gradients: int
    seconds: float


def cost(
    model: LanguageModel, aims: Mapping[Goal, Sequence[Aim]], settings: Gcg, sampling: Sampling, batch_size: int = 64
) -> Cost:
    """Measure two iterations for one aim, and multiply. aims: goal -> what is aimed at."""
    goal, [*_, aim] = next(iter(aims.items()))
    prompt = SuffixPrompt(model, goal.prompt)
    shown: list[Draft] = [()] * max(1, settings.drafts)
    few = Gcg(**{**asdict(settings), "iterations": 1, "stop_loss": 0.0})
    state = search(model, prompt, aim, few, length=sampling.length, drafts=shown, batch_size=batch_size)  # warm
    begun, few = time.perf_counter(), Gcg(**{**asdict(few), "iterations": 3})
    search(model, prompt, aim, few, length=sampling.length, drafts=shown, batch_size=batch_size, state=state)
    seconds = (time.perf_counter() - begun) / 2
    searches = sum(len(some) for some in aims.values())
    steps = searches * settings.iterations
    return Cost(searches, steps * settings.width * len(shown), steps * len(shown), steps * seconds)


def run_id(model: LanguageModel, settings: Gcg, sampling: Sampling, judged_by: Bench) -> str:
    """What all rows of a run share: weights, adapter, settings, judge."""
    return key_of(**_about(model, settings, sampling), judge=judged_by.key)


def run(
    model: LanguageModel,
    aims: Mapping[Goal, Sequence[Aim]],
    out: str | Path,
    settings: Gcg,
    *,
    judged_by: Bench,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    every: int = 10,
    workers: int = 1,
    progress: Callable[[int], None] = lambda iterations: None,
) -> list[dict[str, Any]]:
    """Search for every goal and aim, sample real responses with the suffixes found, and have them judged.

    aims: goal -> what is aimed at, made for this model. Returns a row for each goal and aim, and before them one a goal
    with position None: the control, the suffix that its searches start from. In folder `out`: searches.jsonl (searches
    that ended, whoever judges them), rows.jsonl (the rows), and of each search under way unfinished-KEY.json, written
    every `every` iterations: called again it goes on from there, to the same rows. workers: searches at a time, which
    share torch's threads among them; small models use few threads well. `progress` is called, from any thread, with the
    number of iterations just done, those that an early end saved included.
    Raises InputError before any forward: no goals, or a model without gradients.
    """
    if not any(aims.values()):
        raise InputError("there are no goals, or nothing is aimed at; give one or more of both.")
    require_gradients(model)
    sampling = sampling or Sampling.for_model(model)
    out, about = Path(out), _about(model, settings, sampling)
    out.mkdir(parents=True, exist_ok=True)
    claim = hold(out)  # what a search under way leaves is one process's
    searches = _searches(model, aims, out, about, settings, sampling, batch_size, every, workers, progress)
    run, todo = run_id(model, settings, sampling, judged_by), []
    for goal, records in searches.items():
        control = {"position": None, "phrase": None, "ids": None, "suffix_ids": records[0]["start_ids"]}
        for record in (control, *records):
            told = {name: value for name, value in record.items() if name not in ("key", "goal", "seconds")}
            todo.append((key_of(run=run, goal=asdict(goal), told=told), goal, told))
    file = RowFile(out / "rows.jsonl")
    missing = [one for one in todo if one[0] not in file.rows]
    with judging(judged_by) as judge:
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            prompts = [SuffixPrompt(model, goal.prompt).text(tuple(told["suffix_ids"])) for _, goal, told in chunk]
            responses = sample(model, [Request(text) for text in prompts], sampling, batch_size=batch_size)
            verdicts = judge([goal for _, goal, _ in chunk], [one.text for one in responses])
            file.extend(
                {
                    "key": key,
                    "run": run,
                    "goal": goal.id,
                    "source": goal.source,
                    "harmful": goal.harmful,
                    **told,
                    "prompt": prompt,
                    "response": response.text,
                    **_landed(told, response),
                    **reading(judged_by, verdict, response.text),
                    **response.unscored("hit", "anywhere", "success", "score", "refused", "coherent", "correct"),
                }
                for (key, goal, told), prompt, response, verdict in zip(
                    chunk, prompts, responses, verdicts, strict=True
                )
            )
    del claim
    return [file.rows[key] for key, _, _ in todo]


def _about(model: LanguageModel, settings: Gcg, sampling: Sampling) -> dict[str, Any]:
    return {"version": VERSION, "model": model.fingerprint, "settings": asdict(settings), "sampling": asdict(sampling)}


def _landed(told: Mapping[str, Any], response: Response) -> dict[str, bool | None]:
    """hit: the phrase's tokens stand at its place, before the end; anywhere: its text stands somewhere."""
    if told["ids"] is None:
        return {"hit": None, "anywhere": None}
    there = response.ids[told["position"] : told["position"] + len(told["ids"])]
    return {"hit": there == told["ids"], "anywhere": told["phrase"].strip() in response.text}


def _searches(
    model: LanguageModel,
    aims: Mapping[Goal, Sequence[Aim]],
    out: Path,
    about: Mapping[str, Any],
    settings: Gcg,
    sampling: Sampling,
    batch_size: int,
    every: int,
    workers: int,
    progress: Callable[[int], None],
) -> dict[Goal, list[dict[str, Any]]]:
    """What the search for each goal and aim came to, read where it was done before."""
    file, writing, stopped = RowFile(out / "searches.jsonl"), Lock(), Event()
    failed: list[BaseException] = []

    def one(goal: Goal, aim: Aim) -> dict[str, Any]:
        if stopped.is_set():
            raise _Stopped
        try:
            return searched(goal, aim)
        except _Stopped:
            raise
        except BaseException as error:
            failed.append(error)
            stopped.set()
            raise

    def searched(goal: Goal, aim: Aim) -> dict[str, Any]:
        key = key_of(**about, goal=goal.id, prompt=goal.prompt, position=aim.position, ids=aim.ids)
        if key in file.rows:
            progress(settings.iterations)
            return file.rows[key]
        prompt, unfinished = SuffixPrompt(model, goal.prompt), out / f"unfinished-{key}.json"
        state, seconds = _left_off(unfinished)
        begun = time.perf_counter() - seconds
        progress(0 if state is None else len(state.curve) - 1)

        def watch(state: Search) -> None:
            if stopped.is_set():
                raise _Stopped
            progress(1)
            if (len(state.curve) - 1) % every == 0:
                record = {"seconds": time.perf_counter() - begun, "state": asdict(state)}
                write_text(unfinished, json.dumps(record) + "\n")

        start = start_of(prompt, settings.tokens)
        drafts = drafts_of(model, prompt.ids(start), aim, settings, sampling, goal.id)
        state = search(
            model,
            prompt,
            aim,
            settings,
            length=sampling.length,
            key=goal.id,
            drafts=drafts,
            batch_size=batch_size,
            state=state,
            watch=watch,
        )
        row = {
            "key": key,
            "goal": goal.id,
            "position": aim.position,
            "phrase": aim.phrase,
            "ids": list(aim.ids),
            "start_ids": list(start),
            "suffix": model.tokenizer.decode(list(state.best), clean_up_tokenization_spaces=False),
            "suffix_ids": list(state.best),
            "start_loss": state.curve[0],
            "loss": state.loss,
            "curve": state.curve,
            "evaluated": state.evaluated,
            "dropped": state.dropped,
            "seconds": round(time.perf_counter() - begun, 3),
        }
        with writing:
            file.append(row)
        unfinished.unlink(missing_ok=True)
        progress(settings.iterations - (len(state.curve) - 1))
        return row

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        with ThreadPoolExecutor(workers) as pool:
            coming = {goal: [pool.submit(one, goal, aim) for aim in some] for goal, some in aims.items()}
            try:
                return {goal: [each.result() for each in some] for goal, some in coming.items()}
            except BaseException as error:  # Ctrl-C among them: no search goes on behind it
                stopped.set()
                pool.shutdown(cancel_futures=True)
                if isinstance(error, _Stopped) and failed:
                    raise failed[0] from None
                raise
    finally:
        torch.set_num_threads(threads)


class _Stopped(Exception):
    """Another search failed, or the user has had enough."""


def _left_off(path: Path) -> tuple[Search | None, float]:
    """The state of a search where it was left, and the seconds it had taken."""
    if not path.exists():
        return None, 0.0
    record = json.loads(path.read_text(encoding="utf-8"))
    return Search.of(record["state"]), record["seconds"]
