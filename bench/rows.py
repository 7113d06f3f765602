"""The rows of sampling, for any shape on any device: its speed, what isn't a forward, its guards.

A ratio is of seconds in the same rounds (`frame.Watch`), so "dual / official loop 3.00x" is three times as fast.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from frame import Row, Runs, Watch
from launches import in_words, profiled
from peers import SHAPES, frozen, official, random_model
from sri_overhead import Own, by_blocks, guard_of

import midward
from midward import LanguageModel, Sampling, sample
from midward.sampling._agreement import compare

warnings.simplefilter("ignore", FutureWarning)  # of transformers, about its own next version
MODES: dict[str, dict[str, Any]] = {"exact": {}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}}


@dataclass(frozen=True)
class Setting:
    """Rows of a batch, tokens of prompt and response, block and steps. few: steps of the official loop that are run,
    each of which costs the same, in place of all."""

    batch: int
    prompt: int = 32
    length: int = 64
    block: int = 32
    steps: int = 64
    few: int = 8

    def sampling(self, **more: Any) -> Sampling:
        return Sampling(**{"length": self.length, "steps": self.steps, "block": self.block, "end": "keep", **more})

    def plain(self, **more: Any) -> dict[str, Any]:
        return {"length": self.length, "steps": self.steps, "block": self.block, **more}

    def __str__(self) -> str:
        return f"B {self.batch}, {self.prompt} + {self.length} tokens, block {self.block}, {self.steps} steps"


def same(left: Any, right: Any) -> str:
    """How many tokens [B, L] agree, in words."""
    share = (torch.as_tensor(left).cpu() == torch.as_tensor(right).cpu()).float().mean().item()
    return f"{share:.1%} of tokens equal"


def raw(responses: Any) -> torch.Tensor:
    return torch.tensor([each.raw_ids for each in responses])


class Inside:
    """The time spent in the transformer's layers and in the output head, on the device's own clock."""

    def __init__(self, model: LanguageModel, watch: Watch) -> None:
        self.watch = watch
        self.spans: list[list[Any]] = []
        modules = (model.causal_lm.base_model, model.causal_lm.get_output_embeddings())
        self.handles = [each.register_forward_pre_hook(self._begin) for each in modules]
        self.handles += [each.register_forward_hook(self._end) for each in modules]

    def stamp(self) -> Any:
        if self.watch.device == "cpu":
            return self.watch.now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()  # on the stream: nothing waits
        return event

    def _begin(self, *_: Any) -> None:
        self.spans.append([self.stamp()])

    def _end(self, *_: Any) -> None:
        self.spans[-1].append(self.stamp())

    def outside(self, work: Callable[[], Any]) -> float:
        """The share of `work`'s time that isn't in them."""
        self.spans.clear()
        first = self.stamp()
        work()
        last = self.stamp()
        if self.watch.device == "cpu":
            return 1 - sum(end - begin for begin, end in self.spans) / (last - first)
        torch.cuda.synchronize()  # an event's time can be asked for once it has happened
        return 1 - sum(begin.elapsed_time(end) for begin, end in self.spans) / first.elapsed_time(last)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@dataclass
class Bench:
    """A random model of a shape, made when it is first asked for, and its rows. flops, bandwidth: what the device
    reaches, FLOP/s and bytes/s."""

    watch: Watch
    shape: str
    rounds: int = 3
    flops: float = 0.0
    bandwidth: float = 0.0
    _model: Any = field(default=None, repr=False)

    @property
    def device(self) -> str:
        return self.watch.device

    @property
    def size(self) -> dict[str, int]:
        return SHAPES[self.shape]

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def model(self) -> LanguageModel:
        if self._model is None:
            dtype = torch.bfloat16 if self.on_gpu else torch.float32
            self._model = random_model(self.size, self.device, dtype)
        return self._model

    def words(self, setting: Any) -> str:
        return f"V {self.size['vocab_size']:,}, {self.size['layers']} layers, {setting}"

    def prompts(self, setting: Setting, count: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        shape = (count or setting.batch, setting.prompt)
        return torch.randint(5, self.size["vocab_size"], shape, generator=generator).to(self.device)

    def weights(self) -> Iterator[Row]:
        count = sum(p.numel() for p in self.model.network.parameters())
        dtype = str(self.model.dtype).removeprefix("torch.")
        yield Row("random weights, billions", f"{self.words(self.shape)}, {dtype}", [count / 1e9], "{:.3g}")

    # --- sampling -------------------------------------------------------------------------------------------

    def modes(
        self,
        setting: Setting,
        *,
        bars: dict[str, float] | None = None,
        modes: tuple[str, ...] = ("exact", "prefix", "dual"),
        absolute: bool = False,
    ) -> Iterator[Row]:
        """Each mode against the official loop, and the dual cache against Fast-dLLM's. absolute: tokens/s too."""
        ids, model = self.prompts(setting), self.model
        short = replace(setting, steps=setting.few)
        jobs: dict[str, Callable[[], Any]] = {
            "official": lambda: official(model, ids, **short.plain()),
            "float64": lambda: official(model, ids, **short.plain(dtype=torch.float64)),
            **{
                mode: lambda mode=mode: sample(
                    model, ids.tolist(), setting.sampling(**MODES[mode]), batch_size=setting.batch
                )
                for mode in modes
            },
            "peer": lambda: frozen(model, ids, **setting.plain()),
        }

        def warm() -> Any:
            for mode in modes:
                given = sample(model, ids.tolist(), short.sampling(**MODES[mode]), batch_size=setting.batch)
                if mode == "exact":
                    exact = raw(given)
            frozen(model, ids, **replace(setting, steps=2 * (setting.length // setting.block)).plain())
            return exact

        exact = warm()
        runs = self.watch.interleaved(jobs, self.rounds)
        tokens = same(exact, runs["official"].result)
        if self.model.dtype == torch.float32 and not tokens.startswith("100.0%"):
            raise AssertionError(f"exact mode gave other tokens than the official loop: {tokens}")
        scale, words = setting.steps / setting.few, self.words(setting)
        words += "" if scale == 1 else f" ({setting.few} of the official loop's, scaled)"
        for mode in modes:
            note = tokens
            if mode != "exact":
                note = f"{compare(runs['exact'].result, runs[mode].result).token_share:.1%} of tokens as exact"
            ratio = runs["official"].over(runs[mode], scale)
            yield Row(f"{mode} / official loop", words, ratio, least=(bars or {}).get(mode), note=note)
        yield Row(
            "exact / official loop with a float64 softmax",
            words,
            runs["float64"].over(runs["exact"], scale),
            note=tokens,
        )
        yield Row(
            "dual / Fast-dLLM's dual cache, restated",
            words,
            runs["peer"].over(runs["dual"]),
            note=same(raw(runs["dual"].result), runs["peer"].result),
        )
        if absolute:
            yield from self._absolute(setting, runs, scale)

    def exact_tokens(self, setting: Setting) -> Iterator[Row]:
        """Exact sampling against the published algorithm in float32, whatever the device."""
        model, ids = random_model(self.size, self.device, torch.float32), self.prompts(setting)
        plain = official(model, ids, **setting.plain(dtype=torch.float64))
        ours = raw(sample(model, ids.tolist(), setting.sampling(), batch_size=setting.batch))
        share = 100 * (ours == plain.cpu()).double().mean().item()
        yield Row(
            "exact: tokens of the official loop", f"{self.words(setting)}, float32", [share], "{:.1f} %", least=100
        )

    def _absolute(self, setting: Setting, runs: dict[str, Runs], scale: float) -> Iterator[Row]:
        for name, each in runs.items():
            of_steps = scale if name in ("official", "float64") else 1.0
            seconds = [of_steps * second for second in each.seconds]
            step = statistics.median(seconds) / setting.steps
            note = f"{1e3 * step:.2f} ms a step"
            if name == "exact" and self.flops:
                note += f", {step / self._floor(setting):.2f}x the floor"
            if each.peak is not None:
                note += f", peak {each.peak:.1f} GB"
            name = {"official": "official loop", "float64": "official loop, float64", "peer": "Fast-dLLM's dual"}.get(
                name, name
            )
            rate = [setting.batch * setting.length / second for second in seconds]
            yield Row(f"{name}, tokens/s", self.words(setting), rate, "{:,.0f}", note=note)

    def outside(self, setting: Setting, *, modes: tuple[str, ...] = ("exact",), most: float | None = None):
        """The share of a generation that is neither in the transformer's layers nor in its output head."""
        ids = self.prompts(setting).tolist()
        for mode in modes:
            shares: list[float] = []
            inside, sampling = Inside(self.model, self.watch), setting.sampling(**MODES[mode])

            def work(it: Inside = inside, sampling: Sampling = sampling, shares: list[float] = shares) -> None:
                run = lambda: sample(self.model, ids, sampling, batch_size=setting.batch)  # noqa: E731
                shares.append(100 * it.outside(run))

            try:
                seconds = self.watch.interleaved({"": work}, self.rounds)[""].seconds
            finally:
                inside.close()
            ms = statistics.median(seconds) * statistics.median(shares) * 10 / setting.steps
            figure = f"outside the layers and the head, {mode}"
            yield Row(figure, self.words(setting), shares, "{:.2f} %", most=most, note=f"{ms:.2f} ms a step")

    def guards(self, setting: Setting | None, names: tuple[str, ...], most: float | None = None) -> Iterator[Row]:
        """What guards take of the time beside the rest, by their own clock. setting: None for the sandbox, at its own
        settings and on its prompts, in batches of 8."""
        if setting is None:
            from midward.goals import load

            model = midward.load("sandbox", device=self.device)
            sampling, prompts = Sampling.for_model(model), [goal.prompt for goal in load("sandbox-benign")[:8]]
            words = f"sandbox, B {len(prompts)}, its own settings"
        else:
            model, sampling, prompts = self.model, setting.sampling(), self.prompts(setting).tolist()
            words = self.words(setting)
        guards = {"sri": guard_of(model, sampling)}
        if names != ("sri",):
            guards |= by_blocks(model, sampling, prompts)
        owns = {name: [] for name in names}

        def behind(name: str) -> None:
            start = self.watch.now()
            with Own(guards[name], self.device).measured() as own:
                guards[name].sample(model, prompts, sampling, batch_size=len(prompts))
            owns[name].append(own.spent / (self.watch.now() - start - own.spent))

        sample(model, prompts, sampling, batch_size=len(prompts))
        self.watch.interleaved({name: lambda name=name: behind(name) for name in names}, self.rounds)
        for name in names:
            shares = [100 * share for share in owns[name]]
            yield Row(f"guard {name}, its own clock beside the rest", words, shares, "{:.2f} %", most=most)

    def profile(
        self, setting: Setting, mode: str = "exact", *, guarded: bool = False, bars: bool = False
    ) -> Iterator[Row]:
        """Waits for the device a step (on a CPU: numbers read out of tensors), launches and idle gaps in the notes; and
        with `guarded` the launches (on a CPU: operators) that SRI Guard adds."""
        ids, sampling = self.prompts(setting).tolist(), setting.sampling(**MODES[mode])
        ask: dict[str, Callable[..., Any]] = {mode: sample}
        if guarded:
            ask[f"{mode} behind SRI Guard"] = guard_of(self.model, sampling).sample
        reads = {}
        for name, run in ask.items():

            def work(run: Callable[..., Any] = run) -> Any:
                return run(self.model, ids, sampling, batch_size=setting.batch)

            read = reads[name] = profiled(work, self.model.causal_lm.base_model, self.device)
            waits = read["reads"] if read["waits"] is None else read["waits"]
            note, most = in_words(read), 1.0 if bars else None
            figure = f"waits for the device a step, {name}"
            yield Row(figure, self.words(setting), [waits], "{:.3g}", most=most, note=note, data=read)
        if guarded:
            bare, behind = (each["launches"] or each["operators"] for each in reads.values())
            what, most = "operators" if self.device == "cpu" else "launches", 3.0 if bars else None
            figure = f"{what} that SRI Guard adds a step"
            yield Row(figure, self.words(setting), [behind - bare], "{:.3g}", most=most)

    # --- the sandbox, and what stands apart ------------------------------------------------------------------

    def sandbox(self, batch: int = 8, each: int = 8) -> Iterator[Row]:
        """The shipped model on its own prompts at its own settings: official loop, exact, threshold, dual."""
        from midward.goals import load

        model = midward.load("sandbox", device=self.device)
        prompts = [model.encode(goal.prompt) for name in ("sandbox-benign", "sandbox") for goal in load(name)[:each]]
        exact = Sampling.for_model(model, order="low_confidence", threshold=None)
        modes = {"exact": exact, "threshold .9": replace(exact, threshold=0.9), "dual": replace(exact, cache="dual")}

        def by_official() -> list[list[int]]:
            rows = []
            for start in range(0, len(prompts), batch):
                part = prompts[start : start + batch]
                most = max(map(len, part))
                ids = torch.tensor([[0] * (most - len(ids)) + ids for ids in part])
                mask = torch.tensor([[0] * (most - len(ids)) + [1] * len(ids) for ids in part])
                plain = {"length": exact.length, "steps": exact.steps, "block": exact.block or exact.length}
                rows += official(model, ids, **plain, mask=mask, dtype=torch.float64).tolist()
            return rows

        jobs = {"official": by_official}
        jobs |= {
            name: lambda it=sampling: sample(model, prompts, it, batch_size=batch) for name, sampling in modes.items()
        }
        runs = self.watch.interleaved(jobs, self.rounds)
        words = f"sandbox, {len(prompts)} of its prompts, B {batch}, {exact.length} tokens, block {exact.block}, "
        words += f"{exact.steps} steps (the official loop's softmax in float64)"
        bars = {"exact": 1.3, "threshold .9": 9.0}
        texts = [model.decode(row) for row in runs["official"].result]
        for name in modes:
            equal = sum(a == b.text for a, b in zip(texts, runs[name].result, strict=True))
            note = f"{equal} of {len(prompts)} texts equal"
            if name != "exact":
                note += f"; {compare(runs['exact'].result, runs[name].result).token_share:.1%} of tokens as exact"
            yield Row(
                f"{name} / official loop", words, runs["official"].over(runs[name]), least=bars.get(name), note=note
            )

    def block_causal(self, setting: Setting) -> Iterator[Row]:
        """The exact cache: the same weights with block-causal attention, against whole forwards."""

        class Everything:
            """A watcher that wants the states of all positions, which turns the exact cache off."""

            needs_all_steps, needs_states = False, "response"

            def on_start(self, canvas: Any) -> None:
                pass

            on_step = on_end = on_start

        family = replace(self.model.family, attention="block", attention_block=setting.block)
        causal = LanguageModel("random", family, self.model.tokenizer, self.model.network)
        ids, sampling = self.prompts(setting).tolist(), setting.sampling()

        def run(*watchers: Any) -> Any:
            return sample(causal, ids, sampling, batch_size=setting.batch, watchers=watchers)

        runs = self.watch.interleaved({"whole": lambda: run(Everything()), "cached": run}, self.rounds)
        note = f"{compare(runs['whole'].result, runs['cached'].result).token_share:.1%} of tokens equal"
        ratio = runs["whole"].over(runs["cached"])
        yield Row("block-causal: exact cache / whole forwards", self.words(setting), ratio, note=note)

    # --- what the device reaches, and what a step needs ---------------------------------------------------------

    def ceilings(self, edge: int, copied: int) -> Iterator[Row]:
        """A large product of random numbers, and a copy within memory."""
        left = torch.randn(edge, edge, device=self.device, dtype=self.model.dtype)
        source = torch.empty(copied, device=self.device, dtype=torch.uint8).random_()
        target = torch.empty_like(source)
        jobs = {"product": lambda: left @ left, "copy": lambda: target.copy_(source)}
        runs = self.watch.interleaved(jobs, 10, warm=lambda: [job() for job in jobs.values()])
        rates = [2 * edge**3 / seconds for seconds in runs["product"].seconds]
        copies = [2 * copied / seconds for seconds in runs["copy"].seconds]
        self.flops, self.bandwidth = statistics.median(rates), statistics.median(copies)
        dtype = str(self.model.dtype).removeprefix("torch.")
        yield Row("a product, TFLOP/s", f"{edge} x {edge}, {dtype}", [r / 1e12 for r in rates], "{:,.3g}")
        words = f"{copied / 1e9:.2g} GB, read and written"
        yield Row("a copy, TB/s", words, [copy / 1e12 for copy in copies], "{:,.3g}")

    @property
    def body(self) -> int:
        """Numbers in the matrices of the transformer's layers: multiplied by every token."""
        weights = self.model.causal_lm.base_model.named_parameters()
        embedded = self.model.causal_lm.get_input_embeddings().weight.numel()  # looked up, not multiplied
        return sum(p.numel() for name, p in weights if p.dim() == 2 and "lora_" not in name) - embedded

    def _floor(self, setting: Setting) -> float:
        """The least seconds of an exact step: its FLOPs, or its weights read once. Behind its attention the last layer
        computes the block alone."""
        width, tokens = self.size["hidden_size"], setting.prompt + setting.length
        head = width * self.size["vocab_size"]
        open_ = (setting.block + 1) / 2  # masks of a block, on average
        body = tokens * (2 * self.body + 4 * tokens * width * self.size["layers"])
        last = self.model.causal_lm.base_model.layers[-1]
        behind = [last.self_attn.o_proj.weight, *last.mlp.parameters()]
        body -= (tokens - setting.block) * 2 * sum(p.numel() for p in behind if p.dim() == 2)
        flops = setting.batch * (body + open_ * 2 * head)
        return max(flops / self.flops, (self.body + head) * self.model.dtype.itemsize / self.bandwidth)
