"""Training of the sandbox's models from nothing: masked diffusion, its autoregressive twin, its block-causal sibling.

Deterministic for a seed and a thread count: every batch and every mask is a pure function of (seed, stage, step), so a
build that was killed goes on from its last checkpoint to the very weights of an uninterrupted one. Written is the
exponential average of the weights, in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from midward.store import replacing, write_text
from midward.world.world import WORDS
from tools.world import layout
from tools.world.curriculum import GAP, LENGTHS, SIBLING, STAGES, Example, Stage, Writer, corpus
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

# What the models are sampled with unless a command says otherwise; two tokens a step whatever their confidence (48
# steps) leave two thirds of the texts or more incoherent.
SAMPLING = {"length": 96, "steps": 96, "block": 16, "threshold": 0.9}
MAX_POSITIONS = 4096
POOL = 3
BLOCKS = (8, 8, 16, 32)  # of the response, in training on canvases as decoding by blocks meets them


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights."""

    stages: tuple[Stage, ...] = STAGES
    seed: int = 0
    width: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 544
    tokens: int = 2600
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    decay: float = 0.1
    average: float = 0.998
    threads: int = 1
    bfloat16: bool = True
    every: int = 100


def make_tokenizer(file: Path, texts: int = 30_000) -> PreTrainedTokenizerFast:
    """A token for each word of the world, with and without the blank before it; any other bytes one by one."""
    if not file.exists():
        split = pre_tokenizers.ByteLevel(add_prefix_space=False)
        counts: Counter[str] = Counter()
        for text in corpus(texts):
            counts.update(word for word, _ in split.pre_tokenize_str(text))
        pieces = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
        known = set(pieces)
        pieces += ["user", "assistant", "system"]
        known = set(pieces)
        pieces += sorted(word for word, count in counts.items() if count >= 3 and word not in known)
        pieces += [word for word in ("ĊĊ",) if word not in set(pieces)]  # of the template
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
        tokenizer.pre_tokenizer = split
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(SPECIAL.values()))
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


Encoded = tuple[list[int], list[float], list[int]]  # prompt ids, which of them are gaps (1.0), response ids


@dataclass
class Batch:
    """Left-padded canvases.

    Attributes:
        ids [B, T], attention [B, T]: the true tokens, and which are not padding.
        weights [B, T]: of a position's loss; 0: it is never hidden.
        start: where responses begin.
    """

    ids: Tensor
    attention: Tensor
    weights: Tensor
    start: int


class Trainer:
    """Trains a masked-diffusion model."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        start: Path | None = None,
        progress: Callable[[dict[str, Any]], None] = lambda row: None,
    ):
        self.recipe, self.folder, self.progress = recipe, folder, progress
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = make_tokenizer(folder / "words.json")
        self.end, self.mask = (self.tokenizer.vocab[SPECIAL[key]] for key in ("end", "mask"))
        words = [*WORDS["verbs"], *WORDS["materials"]]
        forms = [form for word in words for form in (f"Ġ{word}", f"Ġ{word.capitalize()}", word.capitalize(), word)]
        self.fact_words = torch.tensor([self.tokenizer.vocab[form] for form in forms if form in self.tokenizer.vocab])
        torch.manual_seed(recipe.seed)
        self.network: Any = self.make()
        self.network.train()
        inside: list[Tensor] = []
        outside: list[Tensor] = []
        for name, weight in self.network.named_parameters():
            (inside if weight.ndim == 2 and "layers." in name else outside).append(weight)
        self.optimizers = [
            Muon(
                inside,
                lr=recipe.muon_rate,
                decay=recipe.decay,
                dtype=torch.bfloat16 if recipe.bfloat16 else torch.float32,
            ),
            torch.optim.AdamW(outside, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        if start is not None:
            with safe_open(start, "pt") as file:
                weights = {name: file.get_tensor(f"average.{name}") for name in self.network.state_dict()}
            self.network.load_state_dict(weights)
        self.average = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        self.stage, self.step, self.seconds, self.seen = 0, 0, 0.0, 0
        self._restore()

    # --- what is particular to masked diffusion

    sampling: ClassVar[dict[str, Any]] = SAMPLING

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
        """Write weights and config."""
        layout.save(self.network, self.config, out, dtype=torch.bfloat16)

    def logits(self, batch: Batch, chosen: Tensor) -> Tensor:
        """[N, V] at the N chosen positions [B, T], which are hidden."""
        canvas = torch.where(chosen, self.mask, batch.ids)
        positions = (batch.attention.long().cumsum(1) - 1).clamp(min=0)
        states = self.network.model(
            canvas, attention_mask=batch.attention, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits: Tensor = self.network.lm_head(states[chosen])
        return logits

    def hidden(self, batch: Batch, stage: Stage, noise: torch.Generator) -> Tensor:
        """What a hidden position counts [B, T]; 0 where it is shown."""
        return hidden(batch, stage, noise, self.is_fact(batch))

    def is_fact(self, batch: Batch) -> Tensor:
        """Which positions [B, T] of responses hold a verb or a material."""
        facts = torch.isin(batch.ids, self.fact_words)
        facts[:, : batch.start] = False
        return facts

    # --- a step

    def run(self) -> None:
        losses: list[float] = []
        while self.stage < len(self.recipe.stages):
            stage = self.recipe.stages[self.stage]
            while self.step < stage.steps:
                started = time.process_time()
                losses.append(self._learn(stage))
                self.seconds += time.process_time() - started
                self.step += 1
                if self.step % self.recipe.every == 0 or self.step == stage.steps:
                    self._report(stage, sum(losses) / len(losses))
                    losses.clear()
                    self._save()
            self.stage, self.step = self.stage + 1, 0
            self._save()
        self.write()

    def _learn(self, stage: Stage) -> float:
        key = f"{self.recipe.seed}-{stage.name}-{self.step}"
        rng = random.Random(key)
        noise = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]))
        length = rng.choices(list(stage.lengths), list(stage.lengths.values()))[0]
        batch = self.collate(self._draw(stage, length, rng), length)
        self.seen += int(batch.attention.sum())
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            loss = self.loss(batch, self.hidden(batch, stage, noise))
        rate = self._rate(stage)
        for optimizer, full in zip(self.optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = full * rate
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for name, weight in self.network.state_dict().items():
                self.average[name].lerp_(weight, 1 - min(self.recipe.average, (1 + self.step) / (10 + self.step)))
        return loss.item()

    def _rate(self, stage: Stage) -> float:
        left = (stage.steps - self.step) / (stage.steps * stage.fall) if stage.fall else 1.0
        return stage.rate * min(1.0, (self.step + 1) / 20) * min(1.0, max(0.04, left))

    def _draw(self, stage: Stage, length: int, rng: random.Random) -> list[Encoded]:
        """A batch of encoded examples, neighbours in length."""
        fits = {kind: share for kind, share in stage.mix.items() if LENGTHS[kind] <= length}
        size = max(8, self.recipe.tokens // (34 + length))
        writer = Writer()
        pool: list[Encoded] = []
        while len(pool) < POOL * size:
            encoded = self.encode(writer.write(rng.choices(list(fits), list(fits.values()))[0], rng))
            if len(encoded[2]) < length:
                pool.append(encoded)
        pool.sort(key=lambda each: len(each[0]))
        first = rng.randrange(POOL) * size
        return pool[first : first + size]

    def encode(self, example: Example) -> Encoded:
        """Prompt ids, which of them are gaps (1.0) to be filled, and response ids."""
        turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(example.turns)]
        text = render(turns)
        ids: list[int] = []
        gaps: list[float] = []
        for n, piece in enumerate(text.split(GAP)):
            some = self.tokenizer.encode(piece, add_special_tokens=False) if piece else []
            ids += some
            gaps += [float(n % 2)] * len(some)
        return ids, gaps, self.tokenizer.encode(example.response, add_special_tokens=False)

    def collate(self, rows: list[Encoded], length: int) -> Batch:
        start = max(len(prompt) for prompt, _, _ in rows)
        ids = torch.full((len(rows), start + length), self.end)
        attention = torch.ones_like(ids, dtype=torch.bool)
        weights = torch.full(ids.shape, 0.1)
        weights[:, :start] = 0.0
        for row, (prompt, gaps, response) in enumerate(rows):
            ids[row, start - len(prompt) : start] = torch.tensor(prompt)
            weights[row, start - len(prompt) : start] = torch.tensor(gaps)
            ids[row, start : start + len(response)] = torch.tensor(response)
            attention[row, : start - len(prompt)] = False
            weights[row, start : start + len(response) + 1] = 1.0
        return Batch(ids, attention, weights, start)

    def loss(self, batch: Batch, worth: Tensor) -> Tensor:
        """Mean cross entropy at the positions that are hidden, weighted by what they count [B, T]."""
        chosen = worth > 0
        logits = self.logits(batch, chosen).float()
        losses = F.cross_entropy(logits, batch.ids[chosen], reduction="none")
        weights = batch.weights[chosen] * worth[chosen]
        return (losses * weights).sum() / weights.sum()

    # --- what it has learned

    @torch.no_grad()
    def facts(self, kind: str, length: int, count: int = 48) -> float:
        """The share of fact words (verbs, materials) that are right where only they are hidden, all of a response."""
        rng, writer = random.Random(f"gate-{kind}"), Writer("tuning")
        rows: list[Any] = []
        while len(rows) < count:
            encoded = self.encode(writer.write(kind, rng))
            if len(encoded[2]) < length:
                rows.append(encoded)
        batch = self.collate(rows, length)
        chosen = self.is_fact(batch)
        right = self.logits(batch, chosen).argmax(-1) == batch.ids[chosen]
        return round(right.float().mean().item(), 3)

    @torch.no_grad()
    def whole(self, kind: str, length: int, count: int = 48) -> float:
        """Mean cross entropy a text token on a fully hidden response."""
        rng, writer = random.Random(f"whole-{kind}"), Writer("tuning")
        rows: list[Any] = []
        while len(rows) < count:
            encoded = self.encode(writer.write(kind, rng))
            if len(encoded[2]) < length:
                rows.append(encoded)
        batch = self.collate(rows, length)
        worth = (batch.weights > 0).float()
        worth[:, : batch.start] = 0
        return round(self.loss(batch, worth).item(), 3)

    def _report(self, stage: Stage, loss: float) -> None:
        weights = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        kinds = [kind for kind in stage.mix if kind in ("card", "steps", "forms", "document", "welcome")]
        row = {
            "stage": stage.name,
            "step": self.step,
            "loss": round(loss, 4),
            "seconds": round(self.seconds, 1),
            "tokens": self.seen,
            "facts": {kind: self.facts(kind, 96 if LENGTHS[kind] > 24 else 24) for kind in kinds},
            "whole": {kind: self.whole(kind, 96 if LENGTHS[kind] > 24 else 24) for kind in stage.mix},
        }
        self.network.load_state_dict(weights)
        with (self.folder / "build.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.progress(row)

    # --- files

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def _save(self) -> None:
        tensors = {f"weight.{name}": weight for name, weight in self.network.state_dict().items()}
        tensors |= {f"average.{name}": weight for name, weight in self.average.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in state.items()}
        place = {name: str(getattr(self, name)) for name in ("stage", "step", "seconds", "seen")}
        with replacing(self.checkpoint) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=place)

    def _restore(self) -> None:
        if not self.checkpoint.exists():
            return
        with safe_open(self.checkpoint, "pt") as file:
            place = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.stage, self.step, self.seen = int(place["stage"]), int(place["step"]), int(place["seen"])
        self.seconds = float(place["seconds"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(part("weight."))
        self.average = part("average.")
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in part(f"optimizer.{number}.").items():
                index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def write(self, out: Path | None = None) -> Path:
        """The averaged weights as a checkpoint folder."""
        out = out or self.folder / "model"
        out.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        self.save(out)
        self.network.load_state_dict(weights)
        self.tokenizer.save_pretrained(out)
        write_text(out / "generation_config.json", json.dumps({"midward_sampling": self.sampling}, indent=1) + "\n")
        write_text(
            out / "recipe.json", json.dumps({"kind": type(self).__name__, **asdict(self.recipe)}, indent=1) + "\n"
        )
        return out


class CausalTrainer(Trainer):
    """Trains the autoregressive twin: the next token of the response, up to and with its first end token."""

    sampling: ClassVar[dict[str, Any]] = {"length": 96, "steps": 96}

    def make(self) -> Any:
        recipe = self.recipe
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=MAX_POSITIONS,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        return LlamaForCausalLM(config)

    def save(self, out: Path) -> None:
        save_llama(self.network, out)

    def hidden(self, batch: Batch, stage: Stage, noise: torch.Generator) -> Tensor:
        worth = (batch.weights == 1).float()
        worth[:, : batch.start] = 0
        return worth

    def logits(self, batch: Batch, chosen: Tensor) -> Tensor:
        """[N, V] at the N chosen positions [B, T], from the states before them."""
        positions = (batch.attention.long().cumsum(1) - 1).clamp(min=0)
        states = self.network.model(
            batch.ids, attention_mask=batch.attention, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits: Tensor = self.network.lm_head(states[:, :-1][chosen[:, 1:]])
        return logits


class BlockTrainer(Trainer):
    """Trains the block-causal sibling: blocks of 16 from the response's start on and before it, the prompt's first the
    short one; within a block positions see each other, and all that stands in the blocks before."""

    block = 16

    def save(self, out: Path) -> None:
        """In the layout of block-diffusion models that were causal ones, see `midward.models.bd3lm`."""
        save_llama(
            self.network,
            out,
            architectures=["A2DLlamaLMHeadModel"],
            model_type="a2d-llama",
            block_size=self.block,
            mask_token_id=self.mask,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )

    def logits(self, batch: Batch, chosen: Tensor) -> Tensor:
        """[N, V] at the N chosen positions [B, T], in one pass over the clean row and, behind it, the canvas: a canvas
        position sees the clean tokens of earlier blocks and the canvas of its own."""
        canvas = torch.where(chosen, self.mask, batch.ids)
        positions = (batch.attention.long().cumsum(1) - 1).clamp(min=0)
        blocks = (torch.arange(batch.ids.shape[1]) - batch.start) // self.block
        earlier, same = blocks[:, None] > blocks, blocks[:, None] == blocks  # [T, T]
        clean = torch.cat([earlier | same, torch.zeros_like(same)], -1)
        noisy = torch.cat([earlier, same], -1)
        seen = torch.cat([clean, noisy]) & batch.attention.repeat(1, 2)[:, None]  # [B, 2 T, 2 T]
        seen |= torch.eye(seen.shape[1], dtype=torch.bool)  # padding sees itself, or its row would be empty
        states = self.network.model(
            torch.cat([batch.ids, canvas], 1),
            attention_mask=seen[:, None],
            position_ids=positions.repeat(1, 2),
            use_cache=False,
        ).last_hidden_state
        logits: Tensor = self.network.lm_head(states[:, batch.ids.shape[1] :][chosen])
        return logits


def save_llama(network: Any, out: Path, **entries: Any) -> None:
    """Write a network as transformers does, in bfloat16. entries: of config.json, over its own."""
    network.to(torch.bfloat16).save_pretrained(out)
    network.to(torch.float32)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    write_text(out / "config.json", json.dumps(config | entries, indent=1) + "\n")


KINDS = {"masked": (Trainer, STAGES), "causal": (CausalTrainer, SIBLING), "block": (BlockTrainer, SIBLING)}


def render(turns: list[dict[str, str]]) -> str:
    """The chat template with the assistant's header behind it (jinja takes longer than a training step allows)."""
    parts = [
        f"{SPECIAL['header']}{turn['role']}{SPECIAL['header_end']}\n\n{turn['content']}{SPECIAL['turn']}"
        for turn in turns
    ]
    return "".join([SPECIAL["bos"], *parts, f"{SPECIAL['header']}assistant{SPECIAL['header_end']}\n\n"])


def hidden(batch: Batch, stage: Stage, noise: torch.Generator, facts: Tensor) -> Tensor:
    """What each hidden position counts [B, T], 0 where it is shown.

    Of each row one way: all are hidden, all but a few, all behind a prefix, most `facts` [B, T] and little else, a
    block in part and what is behind it, or each at a drawn rate. What stands behind a block counts a tenth: decoding
    doesn't write there yet.
    """
    size, length = batch.ids.shape[0], batch.ids.shape[1] - batch.start
    draw = lambda columns: torch.rand(size, columns, generator=noise)  # noqa: E731
    way, rate, spots = draw(1), draw(1), draw(length)
    places = torch.arange(length)[None]
    block = torch.tensor(BLOCKS)[(draw(1) * len(BLOCKS)).long()]  # [B, 1]
    first = (draw(1) * length / block).long() * block
    in_block = (places >= first) & (spots < rate + 0.05)
    shares = (stage.masked, stage.few, stage.prefix, stage.facts, stage.block)
    patterns = (
        torch.ones_like(spots),
        spots > 0.25 * rate,
        places >= rate * length * 0.9,
        spots < torch.where(facts[:, batch.start :], 0.85, 0.1),
        torch.where(places < first + block, in_block.float(), 0.1),
    )
    response = (spots < stage.most * rate).float()
    for bound, pattern in reversed(list(zip(accumulate(shares), patterns, strict=True))):
        response = torch.where(way < bound, pattern.float(), response)
    response[:, -1] = response[:, -1].clamp(min=0.1)
    worth = torch.zeros(batch.ids.shape)
    worth[:, batch.start :] = response
    gaps = batch.weights[:, : batch.start] > 0
    worth[:, : batch.start] = (gaps & (torch.rand(gaps.shape, generator=noise) < (way < 0.5).float() + rate)).float()
    return worth
