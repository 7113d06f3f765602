"""`MidwardLM`: our models as lm-evaluation-harness knows them (its `LM`), diffusion and autoregressive alike.

What was answered is kept, each answer under a hash of all that it depends on: weights and adapter, guard, every
sampling setting, prompt and continuation as ids, draws and seed. So no setting meets another's answers, and nothing is
asked twice. (The harness's own `use_cache` keys by the request alone: change the steps, and it gives the old text.)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from midward.errors import InputError
from midward.guards import Guard
from midward.models import LanguageModel, ModelError
from midward.sampling import Canvas, Request, Sampling, Span, Step, Watcher, sample, span_log_probs
from midward.store import RowFile, key_of

CHUNK = 64  # answers between two writes
#: What a task may say of a generation, and we follow.
_FOLLOWED = {"until", "max_gen_toks", "do_sample", "temperature"}

Ids = tuple[int, ...]
Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Generation:
    """A text that is wanted.

    Attributes:
        until: stop texts behind which nothing is wanted; the text may go on behind one, or end there.
        tokens: how many of the response's are wanted; None for all.
        seed: sets apart repeated samples of one prompt; 0 for the only one.
    """

    prompt: Ids
    sampling: Sampling
    until: tuple[str, ...] = ()
    tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Continuation:
    """Tokens, one or more, whose probability behind a prompt is wanted."""

    prompt: Ids
    ids: Ids


class MidwardLM(TemplateLM):
    """A `LanguageModel` with its guard, for `lm_eval.simple_evaluate(model=MidwardLM(...), tasks=[...])`.

    Args:
        model: what is measured; of a `Chat` also its guard.
        guard: a fitted guard in front of the generations, or None. Likelihoods are the model's own.
        sampling: settings by name that go before the task's; the others are the model's own. Without a `length` the
            response has the task's `max_gen_toks`, rounded up to whole blocks, at the model's own steps a token.
        folder: where answers are kept, a file a process (`answers-0.jsonl`); None keeps them in memory.
        draws: masks of a Monte-Carlo likelihood, 2 or more.
        seed: of these masks; sampling has its own.
        greedy: whether `loglikelihood` says if greedy decoding gives the continuation where that takes more forwards
            (a diffusion model, more than one token); otherwise it says no.
        progress: called with what is done ("64 texts"), how many are done, and of how many.
        say: called once about each thing that isn't done as the task has it.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        guard: Guard | None = None,
        sampling: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
        batch_size: int = 8,
        draws: int = 128,
        seed: int = 0,
        greedy: bool = True,
        progress: Callable[[str, int, int], None] = lambda what, done, of: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        if not isinstance(draws, int) or draws < 2:
            raise InputError(f"draws must be an integer, 2 or more; received {draws!r}.")
        self.model, self.tokenizer = model, model.tokenizer
        self.guard: Guard | None = guard or getattr(model, "guard", None)
        self.given = {**(self.guard.sampling if self.guard else {}), **(sampling or {})}
        self.base = Sampling.for_model(model, **self.given)
        self.batch_size, self.draws, self.seed, self.greedy = batch_size, draws, seed, greedy
        self.progress, self._say, self._said = progress, say, set[str]()
        self._chats = False
        self._device = model.device  # `device` itself is a property without a setter
        self._processes = PartialState(cpu=model.device.type == "cpu")
        self._rank, self._world_size = self._processes.process_index, self._processes.num_processes
        self.rows: dict[str, Row] = {}
        self.file: RowFile | None = None
        if folder is not None:
            for path in sorted(Path(folder).glob("answers-*.jsonl")):
                self.rows |= RowFile(path).rows
            self.barrier()  # nobody writes before all have read
            self.file = RowFile(Path(folder) / f"answers-{self.rank}.jsonl")

    # --- texts -----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Responses, cut at the first stop text; a flagged one is the guard's stub."""
        repeats: Counter[tuple[str, int | None, str]] = Counter()
        generations = []
        for request in requests:
            context, kwargs = request.args
            kwargs = normalize_gen_kwargs(kwargs)
            sampling = self._sampling(kwargs)
            seed = 0
            if sampling.temperature > 0:  # the harness asks again for every further sample
                sampled = (request.task_name or "", request.doc_id, context)
                seed, repeats[sampled] = repeats[sampled], repeats[sampled] + 1
            prompt = self._fitted(self.tok_encode(context) or [self.prefix_token_id], sampling.length)
            tokens = None if "length" in self.given else kwargs["max_gen_toks"]
            generations.append(Generation(tuple(prompt), sampling, tuple(kwargs["until"]), tokens, seed))
        texts = []
        for row, generation in zip(self.texts(generations), generations, strict=True):
            text = row["text"]
            if not row["flagged"]:
                if generation.tokens is not None and len(row["ids"]) > generation.tokens:
                    text = self.model.decode(row["ids"][: generation.tokens])
                text = cut(text, generation.until)
            texts.append(text)
        return texts

    def texts(self, generations: Sequence[Generation]) -> list[Row]:
        """A response to each: `text`, `ids` up to the first end token, `flagged` (the text is the guard's stub)."""
        guard = self.guard

        def respond(chunk: Sequence[Generation]) -> list[Row]:
            requests = [Request(each.prompt, seed=each.seed or None) for each in chunk]
            until = chunk[0].until
            # Not before a guard, who must see what it was fitted on, and not where what stands may fall again.
            ends = any(until) and guard is None and self.model.family.kind != "canvas"
            responses = (sample if guard is None else guard.sample)(
                self.model,
                requests,
                chunk[0].sampling,
                batch_size=self.batch_size,
                watchers=[Stops(self.model, until)] if ends else [],
            )
            return [
                {
                    "text": response.checked().text,  # a task can't be scored without
                    "ids": response.ids,
                    "flagged": response.verdict is not None and response.verdict.flagged,
                }
                for response in responses
            ]

        return self._kept(
            "texts",
            generations,
            respond,
            alike=lambda each: (str(each.sampling), each.until),
            length=lambda each: len(each.prompt),
            guard=guard and guard.digest,
        )

    def _sampling(self, kwargs: Mapping[str, Any]) -> Sampling:
        """The settings of a response that the task wants in this way."""
        for name in sorted(kwargs.keys() - _FOLLOWED):
            self.tell(f"the task's {name}={kwargs[name]!r} isn't followed")
        sampling = self.base
        if "temperature" not in self.given and self.model.family.kind != "canvas":  # that one needs to draw
            sampling = replace(sampling, temperature=float(kwargs.get("temperature") or 0.0))
        asked = int(kwargs["max_gen_toks"])
        if "length" in self.given:
            if asked != sampling.length:
                self.tell(f"responses have {sampling.length} positions as given, not the task's {asked}")
            return sampling
        if self.model.family.kind == "autoregressive":
            return replace(sampling, length=asked, block=None)
        length = asked if sampling.block is None else math.ceil(asked / sampling.block) * sampling.block
        steps = sampling.steps if "steps" in self.given else math.ceil(sampling.steps * length / sampling.length)
        self.tell(
            f"max_gen_toks {asked}: {length} response positions"
            + (f", {steps} steps" if sampling.threshold is None else "")
            + (f", in blocks of {sampling.block}" if sampling.block else "")
        )
        return replace(sampling, length=length, steps=steps)

    # --- log-probabilities -------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        if self.model.family.kind == "canvas":
            raise InputError(f"{self.model.name!r} has no likelihood that tasks could score: it answers, no more.")
        if self.guard is not None:
            self.tell("likelihoods are the model's own: a guard answers, it doesn't score")
        wanted = [
            Continuation(tuple(self._fitted(context or [self.prefix_token_id], len(ids))), tuple(ids))
            for _, context, ids in requests
        ]
        scores = iter(self.log_probs([each for each in wanted if each.ids]))
        # Nothing is certain, and the greedy choice of nothing.
        rows = [next(scores) if each.ids else {"total": 0.0, "greedy": True} for each in wanted]
        return [(row["total"], bool(row["greedy"])) for row in rows]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability (nats) of whole texts, in windows as long as the model's positions allow."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.max_positions - 1,
                context_len=1,
            ):
                context, continuation = make_disjoint_window(window)
                windows.append(Continuation(tuple(context), tuple(continuation)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, row in zip(owners, self.log_probs(windows, greedy=False), strict=True):
            totals[owner] += row["total"]
        return totals

    def log_probs(self, continuations: Sequence[Continuation], *, greedy: bool | None = None) -> list[Row]:
        """How probable each continuation is behind its prompt, with nothing behind itself.

        An autoregressive model: exactly. A diffusion model: the mean over masked counts l of n / l times the masked
        tokens' log-probability (LLaDA, Nie et al. 2025, eq. 6), over all masks where there are no more than `draws`,
        else over `draws` random ones with even counts. Masks are seeded by the request alone. The guard has no say.

        Args:
            greedy: in place of the model's `greedy`, see there.

        Returns:
            Rows of `total` (nats), `stderr` over the drawn masks, and `greedy`, None where nobody asked.

        Raises:
            ModelError: for logits that aren't finite.
        """
        decodes = self.greedy if greedy is None else greedy

        def exact(each: Continuation) -> bool:
            return 2 ** len(each.ids) - 1 <= self.draws

        def score(chunk: Sequence[Continuation]) -> list[Row]:
            scores = span_log_probs(
                self.model,
                [Span(each.prompt, 0, each.ids) for each in chunk],
                mode="all" if exact(chunk[0]) else "even",
                length=None,
                samples=self.draws,
                seed=self.seed,
                batch_size=self.batch_size,
            )
            if any(math.isnan(score.total) for score in scores):
                raise ModelError(f"{self.model.name!r} computes NaN or infinite numbers, so tasks can't be scored.")
            # One look at the model tells of one token, and of an autoregressive model's.
            clear = [self.model.family.kind == "autoregressive" or len(each.ids) == 1 for each in chunk]
            unclear = [each for each, known in zip(chunk, clear, strict=True) if not known]
            decoded = self._decoded(unclear) if decodes else {}
            return [
                {"total": score.total, "stderr": score.stderr, "greedy": score.top if known else decoded.get(each)}
                for each, score, known in zip(chunk, scores, clear, strict=True)
            ]

        key = {"draws": self.draws, "seed": self.seed, "greedy": decodes}
        return self._kept("likelihoods", continuations, score, alike=exact, length=lambda each: 0, **key)

    def _decoded(self, continuations: Sequence[Continuation]) -> dict[Continuation, bool]:
        """Whether decoding greedily, a token a step, gives just the continuation."""
        by_length = defaultdict(list)
        for each in continuations:
            by_length[len(each.ids)].append(each)
        greedy: dict[Continuation, bool] = {}
        exact: dict[str, Any] = {"temperature": 0.0, "guidance": 0.0, "cache": None, "end": "keep"}
        for length, alike in by_length.items():
            sampling = Sampling.for_model(self.model, length=length, steps=length, **exact)
            requests = [Request(each.prompt) for each in alike]
            responses = sample(self.model, requests, sampling, batch_size=self.batch_size)
            decoded = [tuple(response.raw_ids) for response in responses]
            greedy |= {each: ids == each.ids for each, ids in zip(alike, decoded, strict=True)}
        return greedy

    def _kept(
        self,
        what: str,
        items: Sequence[T],
        answer: Callable[[Sequence[T]], list[Row]],
        *,
        alike: Callable[[T], Any],
        length: Callable[[T], int],
        **key: Any,
    ) -> list[Row]:
        """The rows of all items, in order: those kept, and those that `answer` gives, CHUNK at a time.

        Args:
            alike: items of one chunk agree in it.
            length: items are asked in its order, so that chunks make full batches.
            key: what else an answer depends on.
        """
        keys = [key_of(kind=what, model=self.model.fingerprint, **key, **vars(item)) for item in items]
        groups = defaultdict(list)
        for name, item in {n: item for n, item in zip(keys, items, strict=True) if n not in self.rows}.items():
            groups[alike(item)].append((name, item))
        done = len(keys) - sum(map(len, groups.values()))
        self.progress(f"{len(keys)} {what}", done, len(keys))
        for group in groups.values():
            group.sort(key=lambda pair: length(pair[1]))
            for start in range(0, len(group), CHUNK):
                names, chunk = zip(*group[start : start + CHUNK], strict=True)
                rows = [{"key": name, **row} for name, row in zip(names, answer(chunk), strict=True)]
                if self.file is not None:
                    self.file.append(*rows)
                self.rows |= {row["key"]: row for row in rows}
                done += len(rows)
                self.progress(f"{len(keys)} {what}", done, len(keys))
        return [self.rows[name] for name in keys]

    # --- tokens ----------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.model.family.end_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the token that begins texts, or else the one that ends them."""
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else begins

    @property
    def tokenizer_name(self) -> str:
        template = key_of(template=getattr(self.tokenizer, "chat_template", None))
        return f"{self.model.name.replace('/', '__')}-{template}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text. By default a rendered conversation gets no special tokens added (as in
        `LanguageModel.encode`), and a text that begins with them none either."""
        if add_special_tokens is None:
            begins = self.tokenizer.bos_token
            add_special_tokens = not self._chats and not (begins and string.startswith(begins))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as one text; without a generation prompt its last turn is left open."""
        self._chats = True
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _fitted(self, prompt: Sequence[int], behind: int) -> list[int]:
        """The prompt's last tokens, as many as the model's positions leave.

        Args:
            behind: positions that the response or continuation takes.

        Raises:
            InputError: they leave none.
        """
        room = self.model.max_positions - behind
        if room < 1:
            raise InputError(
                f"{self.model.name!r} has {self.model.max_positions} positions, and {behind} behind the prompt leave "
                "none for it. Give a shorter --length, or tasks that ask for less."
            )
        if len(prompt) > room:
            self.tell(f"prompts longer than {room} tokens lose their beginning ({self.model.max_positions} positions)")
        return list(prompt[-room:])

    def tell(self, text: str) -> None:
        """Say something, once."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    # --- several processes (torchrun, accelerate launch) -------------------------------------------------------

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, in each of them."""
        return gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes in process `dst`, None in the others."""
        objects = gather_object([obj])
        return objects if self.rank == dst else None

    def barrier(self) -> None:
        """Wait for all processes."""
        self._processes.wait_for_everyone()


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop texts; empty ones are none."""
    for stop in filter(None, until):
        text = text.split(stop, 1)[0]
    return text


class Stops(Watcher):
    """Ends a row once what stands before its first mask holds a stop text: the cut text is the same as without."""

    needs_all_steps = False
    needs_states = "none"

    def __init__(self, model: LanguageModel, until: Sequence[str]) -> None:
        self.model, self.until = model, until
        self.standing: dict[int, int] = {}  # request -> tokens before its first mask, when last looked at

    def on_start(self, canvas: Canvas) -> None:
        self.standing.clear()

    def on_step(self, step: Step) -> None:
        standing = step.committed.long().cumprod(-1).sum(-1).tolist()
        for place, (row, count) in enumerate(zip(step.rows, standing, strict=True)):
            if count > self.standing.get(row, 0):
                self.standing[row] = count
                text = self.model.decode(step.ids[place, step.response][:count])
                if cut(text, self.until) != text:
                    step.stopped.add(row)

    def on_end(self, canvas: Canvas) -> None:
        pass
