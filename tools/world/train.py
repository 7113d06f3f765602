"""Train the sandbox model from nothing: tokenizer, three stages, a checkpoint folder in LLaDA's layout.

Deterministic for a seed and a thread count: every batch and every mask is a pure function of (seed, stage, step), so a
build that was killed goes on from its last checkpoint to the very weights of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from midward.errors import MidwardError
from midward.store import replacing, write_text
from tools.world import layout
from tools.world.curriculum import CONVERSATIONS, LENGTHS, STAGES, Example, Messages, Stage, Writer, corpus
from tools.world.muon import Muon

SPECIAL = {
    "bos": "<|startoftext|>",
    "end": "<|endoftext|>",
    "mask": "<|mdm_mask|>",
    "turn": "<|eot_id|>",
    "header": "<|start_header_id|>",
    "header_end": "<|end_header_id|>",
}
# Llama-3-shaped headers as LLaDA-8B-Instruct has them; the assistant's header opens only when asked for.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SAMPLING = {"length": 96, "steps": 24, "block": 32}  # the model's own default, in its generation_config.json
MAX_POSITIONS = 16_384
Batch = tuple[Tensor, Tensor, Tensor, int]  # ids [B, P + L], attention mask, loss weights [B, L], and P
POOL = 3  # batches that are written together and sorted by length; one of them is trained on
EXTRA = 6  # how many times `check_every` steps a stage may go on past its own to reach its gate


class BuildError(MidwardError, RuntimeError):
    """A build that cannot go on: another recipe's checkpoint in the folder, or a gate that was not reached."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights. Sizes are counts; rates are the optimisers' step sizes."""

    stages: tuple[Stage, ...] = STAGES
    seed: int = 0
    vocabulary: int = 1280
    width: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    tokens: int = 2400  # canvas tokens a batch, about
    muon_rate: float = 0.03
    adam_rate: float = 3e-3
    threads: int = 2
    corpus: int = 40_000  # texts that train the tokenizer
    check_every: int = 100  # steps between checkpoints and gate readings

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def trainer(self) -> type[Trainer]:
        """Who trains such a model."""
        return Trainer


def build(
    out: str | Path, recipe: Recipe | None = None, *, progress: Callable[[dict[str, Any]], None] = lambda row: None
) -> Path:
    """Train and write the checkpoint folder `out`; a second call on the same folder goes on, or returns what is done.

    progress: called with each log row (stage, step, loss, seconds, exact shares). Rows are also appended to
    `out/build.jsonl`. Raises BuildError when `out` holds the work of another recipe, or a gate is missed.
    """
    recipe, out = recipe or Recipe(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    done = out / "recipe.json"
    if done.exists():
        if json.loads(done.read_text())["digest"] != recipe.digest():
            raise BuildError(f"{out} holds a model of another recipe; give another folder or remove it.")
        return out
    work = out / "build"
    work.mkdir(exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        tokenizer = _tokenizer(work, recipe)
        learner = recipe.trainer()
        trainer = learner(recipe, tokenizer, work / "checkpoint.safetensors", out / "build.jsonl", progress)
        trainer.run()
    finally:
        torch.set_num_threads(threads)
    tokenizer.save_pretrained(out)
    trainer.save(out)
    write_text(done, json.dumps({"digest": recipe.digest(), **asdict(recipe)}, indent=1) + "\n")
    shutil.rmtree(work)
    return out


def _tokenizer(work: Path, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's text: any bytes at all can be encoded."""
    file = work / "tokenizer.json"
    if not file.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=20,
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus(recipe.corpus, seed=recipe.seed), trainer)
        write_text(file, tokenizer.to_str())
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token=SPECIAL["bos"],
        eos_token=SPECIAL["end"],
        pad_token=SPECIAL["end"],
        mask_token=SPECIAL["mask"],
        additional_special_tokens=[SPECIAL["turn"], SPECIAL["header"], SPECIAL["header_end"]],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


class Trainer:
    """Trains a masked-diffusion model as a recipe says; what differs for other kinds of model is in few methods."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerFast,
        checkpoint: Path,
        log: Path,
        progress: Callable[[dict[str, Any]], None],
    ):
        self.recipe, self.tokenizer, self.checkpoint, self.log = recipe, tokenizer, checkpoint, log
        self.progress = progress
        self.end, self.mask = (tokenizer.vocab[SPECIAL[key]] for key in ("end", "mask"))
        torch.manual_seed(recipe.seed)
        self.network = self.make()
        self.network.train()
        inside: list[Tensor] = []
        outside: list[Tensor] = []
        for name, weight in self.network.named_parameters():
            (inside if weight.ndim == 2 and "layers." in name else outside).append(weight)
        self.optimizers = [
            Muon(inside, lr=recipe.muon_rate),
            torch.optim.AdamW(outside, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.stage, self.step = 0, 0
        self.seconds = 0.0
        self._restore()

    # --- what is particular to masked diffusion

    def make(self) -> Any:
        """The network, with random weights."""
        recipe = self.recipe
        self.config = layout.llada_config(
            vocab_size=len(self.tokenizer),
            hidden_size=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            feed_forward=recipe.feed_forward,
            max_length=MAX_POSITIONS,
            mask_id=self.mask,
            end_id=self.end,
            rope_theta=10_000.0,
        )
        return layout.build(self.config)

    def save(self, out: Path) -> None:
        """Write weights, config and default sampling."""
        layout.save(self.network, self.config, out)
        write_sampling(out, SAMPLING)

    def loss(self, batch: Batch, stage: Stage, noise: torch.Generator) -> Tensor:
        """Mean cross entropy at the positions that are hidden."""
        ids, attention, weights, start = batch
        size, length = weights.shape
        masked = _masking(size, length, noise, stage.early)
        canvas = ids.clone()
        canvas[:, start:][masked] = self.mask
        logits = self._logits(canvas, attention, start, masked)
        losses = F.cross_entropy(logits, ids[:, start:][masked], reduction="none")
        weights = weights[masked]
        return (losses * weights).sum() / weights.sum()

    def guess(self, batch: Batch) -> Tensor:
        """The likeliest token of every response position [B, L], in one forward over a fully masked response."""
        ids, attention, weights, start = batch
        canvas = ids.clone()
        canvas[:, start:] = self.mask
        everywhere = torch.ones_like(weights, dtype=torch.bool)
        return self._logits(canvas, attention, start, everywhere).argmax(-1).view(weights.shape)

    # --- the loop

    def run(self) -> None:
        stages, every = self.recipe.stages, self.recipe.check_every
        while self.stage < len(stages):
            stage = stages[self.stage]
            planned = stage.steps + stage.tail
            if stage.fresh and not self.step:
                for optimizer in self.optimizers:
                    optimizer.state.clear()
            limit = planned + EXTRA * every
            while True:
                started = time.perf_counter()
                loss = self._learn(stage)
                self.seconds += time.perf_counter() - started
                self.step += 1
                due = self.step >= planned
                if not due and self.step % every:
                    continue
                if due and (self.step - planned) % every:
                    continue
                exact = self.exact(stage.gate, max(stage.lengths))
                missed = [kind for kind, least in stage.gate.items() if exact[kind] < least]
                self._report(stage, loss, exact)
                if due and not missed:
                    break
                if self.step >= limit:
                    raise BuildError(
                        f"stage {stage.name!r} did not learn {', '.join(missed)}: "
                        f"{exact} after {self.step} steps, wanted {stage.gate}."
                    )
                self._save()
            self.stage, self.step = self.stage + 1, 0
            self._save()

    def _rate(self, stage: Stage) -> float:
        """Warm up over 20 steps, hold, and fall to 4 % over the stage's last part."""
        left = (stage.steps - self.step) / (stage.steps * stage.fall) if stage.fall else 1.0
        return stage.rate * min(1.0, (self.step + 1) / 20) * min(1.0, max(0.04, left))

    def _learn(self, stage: Stage) -> float:
        key = f"{self.recipe.seed}-{stage.name}-{self.step}"
        rng, noise = random.Random(key), torch.Generator().manual_seed(_number(key))
        length = rng.choices(list(stage.lengths), list(stage.lengths.values()))[0]
        fits = {kind: share for kind, share in stage.mix.items() if LENGTHS[kind] <= length}
        size = max(8, self.recipe.tokens // (32 + length))
        kinds = rng.choices(list(fits), list(fits.values()), k=POOL * size)
        writer, conversation = Writer(), rng.random() < CONVERSATIONS
        pool = [writer.write(kind, rng, conversation=conversation) for kind in kinds]
        # Neighbours in length, so that little of the canvas is padding.
        pool.sort(key=lambda example: sum(len(message["content"]) for message in example[0]))
        first = rng.randrange(POOL) * size
        loss = self.loss(self._collate(pool[first : first + size], length), stage, noise)
        rate = self._rate(stage)
        for optimizer, full in zip(self.optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = full * rate
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def _logits(self, ids: Tensor, attention: Tensor, start: int, chosen: Tensor) -> Tensor:
        """ids [B, T] -> logits [N, V] at the N positions of `chosen` [B, L] in the response."""
        positions = (attention.long().cumsum(1) - 1).clamp(min=0)
        hidden = self.network.model(
            ids, attention_mask=attention, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.network.lm_head(hidden[:, start:][chosen])

    def _collate(self, examples: Sequence[Example], length: int) -> Batch:
        """Left-padded canvases [B, P + length], their mask, loss weights [B, length], and P.

        The response is padded with end tokens, as LLaDA's is; those after the first weigh a tenth, for there are many.
        """
        prompts = [self._prompt(m) for m, _ in examples]
        responses = [self.tokenizer.encode(text, add_special_tokens=False)[:length] for _, text in examples]
        start = max(map(len, prompts))
        ids = torch.full((len(examples), start + length), self.end)
        attention = torch.ones_like(ids, dtype=torch.bool)
        weights = torch.full((len(examples), length), 0.1)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids[row, start - len(prompt) : start] = torch.tensor(prompt)
            ids[row, start : start + len(response)] = torch.tensor(response)
            attention[row, : start - len(prompt)] = False
            weights[row, : len(response) + 1] = 1.0
        return ids, attention, weights, start

    def _prompt(self, messages: Messages) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer.encode(text, add_special_tokens=False)

    @torch.no_grad()
    def exact(self, kinds: Iterable[str], length: int, count: int = 96) -> dict[str, float]:
        """kind -> share of fresh tuning-split examples whose response `guess` gets right to the last token.

        length: of the response. A short canvas may give the answer away, where it holds only one kind of answer.
        """
        out = {}
        for kind in kinds:
            rng, writer = random.Random(f"gate-{kind}"), Writer(split="tuning")
            batch = self._collate([writer.write(kind, rng) for _ in range(count)], length)
            ids, _, weights, start = batch
            right = (self.guess(batch) == ids[:, start:]) | (weights < 1)
            out[kind] = round(right.all(1).float().mean().item(), 3)
        return out

    # --- what survives a kill

    def _report(self, stage: Stage, loss: float, exact: dict[str, float]) -> None:
        row = {
            "stage": stage.name,
            "step": self.step,
            "of": stage.steps,
            "loss": round(loss, 4),
            "seconds": round(self.seconds, 1),
            "exact": exact,
        }
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.progress(row)

    def _save(self) -> None:
        tensors = {f"weight.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in state.items()}
        place = {"stage": str(self.stage), "step": str(self.step), "seconds": str(self.seconds)}
        with replacing(self.checkpoint) as part:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                part,
                metadata={"digest": self.recipe.digest(), **place},
            )

    def _restore(self) -> None:
        if not self.checkpoint.exists():
            return
        try:
            with safe_open(self.checkpoint, "pt") as file:
                place = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise BuildError(f"{self.checkpoint} cannot be read ({error}); remove it to start over.") from None
        if place["digest"] != self.recipe.digest():
            raise BuildError(f"{self.checkpoint} is of another recipe; give another folder or remove it.")
        self.stage, self.step, self.seconds = int(place["stage"]), int(place["step"]), float(place["seconds"])
        prefix = "weight."
        self.network.load_state_dict(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer.{number}."):
                    _, _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_sampling(out: Path, sampling: dict[str, Any]) -> None:
    """The checkpoint's own default sampling, where `midward.load` reads it."""
    write_text(out / "generation_config.json", json.dumps({"midward_sampling": sampling}, indent=1) + "\n")


def _masking(size: int, length: int, noise: torch.Generator, early: float = 0.0) -> Tensor:
    """Which response positions to hide, [B, L]: all (30 %), all behind a revealed opening (15 %), else each with a rate
    drawn per row (as in LLaDA's training; the fully masked canvas is where every decoding starts). A share `early` of
    the rows instead hides all but up to 60 % of the first block."""
    way = torch.rand(size, 1, generator=noise)
    rate = torch.rand(size, 1, generator=noise)
    scattered = torch.rand(size, length, generator=noise) < rate
    places = torch.arange(length)[None]
    behind = places >= rate * length * 0.9
    chosen = torch.where(way < 0.30, torch.ones_like(scattered), torch.where(way < 0.45, behind, scattered))
    if early:
        shown = torch.rand(size, length, generator=noise) < 0.6 * rate
        begun = ~shown | (places >= SAMPLING["block"])
        chosen = torch.where(torch.rand(size, 1, generator=noise) < early, begun, chosen)
    chosen[:, -1] = True  # never an empty row
    return chosen


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])
