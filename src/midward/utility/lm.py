"""`MidwardLM`: our models as lm-evaluation-harness knows them (its `LM`), diffusion and autoregressive alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from midward.errors import InputError
from midward.models import LanguageModel
from midward.sampling import Sampling
from midward.store import key_of
from midward.utility import processes
from midward.utility.answers import Answers, Question
from midward.utility.stops import cut

#: What a task may say of a generation, and we follow.
_FOLLOWED = {"until", "max_gen_toks", "do_sample", "temperature"}


class MidwardLM(TemplateLM):
    """A `LanguageModel` with its guard, for `lm_eval.simple_evaluate(model=MidwardLM(...), tasks=[...])`.

    sampling: settings by name that go before the task's; the others are the model's own. Without a `length` the
    response has the task's `max_gen_toks`, rounded up to whole blocks, at the model's own number of steps a token.
    answers: what keeps the answers; by default they are kept in memory, see `Answers`. Give it a folder instead of
    the harness's `use_cache`, whose key holds no setting of ours.
    greedy: whether `loglikelihood` says if greedy decoding gives the continuation, where that takes more forwards (a
    diffusion model, more than one token); otherwise it says no.
    say: told once about each thing that isn't done as the task has it.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        sampling: Mapping[str, Any] | None = None,
        answers: Answers | None = None,
        greedy: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.tokenizer
        self.given = dict(sampling or {})
        self.base = Sampling.for_model(model, **self.given)
        self.answers = answers or Answers(model)
        self.greedy = greedy
        self.batch_size = self.answers.batch_size
        self._device = model.device  # `device` itself is a property without a setter
        self._rank, self._world_size = processes.rank(), processes.world_size()
        self._say, self._said = say, set[str]()
        self._chats = False

    # --- texts -----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Responses, cut at the first stop text; a flagged one is the guard's stub."""
        seen: Counter[str] = Counter()
        questions, wishes = [], []
        for request in requests:
            context, kwargs = request.args
            wish = normalize_gen_kwargs(kwargs)
            sampling = self._sampling(wish)
            number = 0
            if sampling.temperature > 0:  # the harness asks again for every further sample
                one = key_of(context=context, wish=wish, task=request.task_name, doc=request.doc_id)
                number, seen[one] = seen[one], seen[one] + 1
            prompt = self._fitted(self.tok_encode(context) or [self.prefix_token_id], sampling.length)
            questions.append(Question(tuple(prompt), sampling, number, tuple(wish["until"])))
            wishes.append(wish)
        texts = []
        for wish, answer in zip(wishes, self.answers.texts(questions), strict=True):
            text = answer.text
            if not answer.flagged:
                if "length" not in self.given and len(answer.ids) > wish["max_gen_toks"]:
                    text = self.model.decode(answer.ids[: wish["max_gen_toks"]])
                text = cut(text, wish["until"])
            texts.append(text)
        return texts

    def _sampling(self, wish: Mapping[str, Any]) -> Sampling:
        """The settings of a response that the task wants in this way."""
        for name in sorted(wish.keys() - _FOLLOWED):
            self.tell(f"the task's {name}={wish[name]!r} isn't followed")
        found = self.base
        if "temperature" not in self.given and self.model.family.kind != "canvas":  # that one needs to draw
            found = replace(found, temperature=float(wish.get("temperature") or 0.0))
        asked = int(wish["max_gen_toks"])
        if "length" in self.given:
            if asked != found.length:
                self.tell(f"responses have {found.length} positions as given, not the task's {asked}")
            return found
        if self.model.family.kind == "autoregressive":
            return replace(found, length=asked, block=None)
        length = asked if found.block is None else math.ceil(asked / found.block) * found.block
        steps = found.steps if "steps" in self.given else math.ceil(found.steps * length / found.length)
        self.tell(
            f"max_gen_toks {asked}: {length} response positions"
            + (f", {steps} steps" if found.threshold is None else "")
            + (f", in blocks of {found.block}" if found.block else "")
        )
        return replace(found, length=length, steps=steps)

    # --- log-probabilities -----------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation, and whether it is the greedy one; see `Answers.log_probs`."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        if getattr(self.model, "guard", None):
            self.tell("likelihoods are the model's own: a guard answers, it doesn't score")
        pairs = []
        for _, context, continuation in requests:
            prompt = self._fitted(context or [self.prefix_token_id], len(continuation))
            pairs.append((tuple(prompt), tuple(continuation)))
        found = iter(self.answers.log_probs([pair for pair in pairs if pair[1]], greedy=self.greedy))
        # Nothing is certain, and the greedy choice of nothing.
        scores = [next(found) if continuation else None for _, continuation in pairs]
        return [(0.0, True) if one is None else (one.total, bool(one.greedy)) for one in scores]

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
                windows.append((tuple(context), tuple(continuation)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, self.answers.log_probs(windows, greedy=False), strict=True):
            totals[owner] += one.total
        return totals

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
        """The prompt's last tokens, as many as the model's positions leave. Raises InputError where they leave none."""
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

    # --- several processes -------------------------------------------------------------------------------------

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, in each of them."""
        return processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes in process 0, None in the others. Raises InputError for another `dst`."""
        if dst != 0:
            raise InputError(f"objects are gathered in process 0; received dst={dst}.")
        return processes.gather(obj)

    def barrier(self) -> None:
        """Wait for all processes."""
        processes.barrier()
