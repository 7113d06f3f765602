"""`LanguageModel`: a checkpoint behind one interface, whatever its family.

Shapes: B rows, L positions, D hidden size, V vocabulary rows.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from torch.distributed.tensor import DTensor

from midward._peft import ADAPTED, BaseTunerLayer, LoraConfig, PeftModel, get_peft_model_state_dict
from midward.errors import InputError

from ._last_layer import Read, reading, take
from .errors import ModelError
from .family import Family

Message = Mapping[str, str]

# Entries of the backbone's config, and of an adapter's, that say nothing about what the model computes.
_CONFIG_NOISE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}
_ADAPTER_NOISE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}


class LanguageModel:
    """A tokenizer, a network and the `Family` record that says how to use them.

    Gradients flow through `hidden` and `head`.

    Attributes:
        name: What it was loaded by.
        family: Ids, attention and default sampling.
        tokenizer: transformers' own.
        network: A transformers causal (or masked) LM module or the `PeftModel` around it; it may be replaced (alignment
            wraps it), everything below follows it.
        adapter: Folder or Hub id of the adapter, None without one.
        stored: Digest of the base's weights as its folder stores them (the same for every dtype), None where it wasn't
            read from one.
    """

    def __init__(
        self, name: str, family: Family, tokenizer: Any, network: torch.nn.Module, adapter: str | None = None
    ) -> None:
        self.name = name
        self.family = family
        self.tokenizer = tokenizer
        self.network: Any = network
        self.adapter = adapter
        self.stored: str | None = None
        self._base_hash: str | None = None

    def __repr__(self) -> str:
        adapter = f", adapter={self.adapter!r}" if self.adapter else ""
        return (
            f"{type(self).__name__}({self.name!r}, family={self.family.name!r}{adapter}, {self.device}, {self.dtype})"
        )

    # --- the network ---------------------------------------------------------------------------------

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, out of its adapter wrapper if it has one."""
        return self.network.get_base_model() if isinstance(self.network, PeftModel) else self.network

    @cached_property  # a step asks
    def is_encoder(self) -> bool:
        """Whether it is one of transformers' masked language models (BERT), which keep no keys and values."""
        return self.family.kind == "diffusion" and not self.causal_lm.can_generate()

    @cached_property
    def _softcap(self) -> float | None:
        """What Gemma 2 and 3 bound their logits by."""
        softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        return softcap

    @property
    def config(self) -> Any:
        """The transformers config of the backbone (of a model with images as well, its text half)."""
        config = self.causal_lm.config
        return getattr(config, "text_config", config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.causal_lm.get_output_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed in."""
        return self.causal_lm.get_output_embeddings().weight.dtype

    @property
    def quantized(self) -> str | None:
        """ "8bit" or "4bit" where the linear layers were quantised on loading, else None."""
        kinds = (kind for kind in ("8bit", "4bit") if getattr(self.causal_lm, f"is_loaded_in_{kind}", False))
        return next(kinds, None)

    @cached_property  # a step asks
    def vocab_size(self) -> int:
        """V: rows of the output head (may exceed the tokenizer's own count)."""
        return self.causal_lm.get_output_embeddings().weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """D: the width of a hidden state."""
        return self.config.hidden_size

    @property
    def max_positions(self) -> int:
        """The longest prompt + response the checkpoint's position encoding was made for, in tokens."""
        return self.config.max_position_embeddings

    def hidden(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: Any | None = None,
        columns: torch.Tensor | None = None,
        read: Read | None = None,
    ) -> torch.Tensor:
        """Return the hidden states [B, L, D] after the final norm.

        Args:
            ids: [B, L] long.
            mask: [B, L], 1 at real tokens and 0 at padding (either side), or None. Positions are cumsum(mask) - 1, so
                padding on the left shifts nothing.
            cache: A transformers `Cache` to read and extend; the mask then covers all positions that it gives back.
                Block-causal attention needs a mask with it.
            columns: [B or 1, L] where `ids` stand among those positions; by default behind what the cache holds.
            read: what is wanted of the states: some columns of `ids`, [B, n, D] then, or single positions, [N, D], by
                row [N] and column [N]. What the last layer would do for others alone is left out. For inference: not
                under gradient checkpointing.
        """
        if self.family.kind == "canvas":
            raise ModelError(
                f"{self.name!r} denoises canvases of random tokens and has no states of a response with masks; "
                "it can be sampled, traced, attacked and guarded, not aligned or scored."
            )
        if columns is None:
            seen = cache.get_seq_length() if cache is not None else 0
            columns = torch.arange(seen, seen + ids.shape[1], device=ids.device)[None]
        positions = columns
        if mask is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp_(min=0).gather(1, columns.expand(len(mask), -1))
        shape = (len(ids), ids.shape[1])
        with nullcontext() if read is None else reading(self.causal_lm, read, shape) as reads:
            output = self.causal_lm.base_model(
                input_ids=ids,
                attention_mask=self._visible(columns, mask),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        states: torch.Tensor = output.last_hidden_state.to(ids.device)  # layers may be spread over several
        if read is None or reads is None:
            return states
        states = states if reads.is_cut else take(states, read)
        return states if isinstance(read, slice) else states.reshape(-1, states.shape[-1])

    def _visible(self, columns: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """What columns [B or 1, L] see of all K [B or 1, 1, L, K], or what transformers makes that of: under
        block-causal attention their own block and those before, else all; no padding."""
        if self.family.attention == "full" and mask is not None and self.family.kind == "diffusion":
            if self.is_encoder:  # whose layers may see windows, which transformers adds
                return mask
            # Whole, since transformers would wait for the device to see whether anything is masked.
            return mask.bool()[:, None, None, :].expand(-1, -1, columns.shape[1], -1)
        if self.family.attention != "block":
            return mask
        size = self.family.attention_block or 1
        if mask is None:
            blocks = columns // size  # [1, L]: there is no cache
            return (blocks[:, None, :] <= blocks[:, :, None])[:, None]
        places = (mask.long().cumsum(-1) - 1).clamp_(min=0)  # [B, K]
        if self.family.blocks_from == "response":  # padding, which sees nothing, is taken to be where the prompt begins
            every = torch.arange(mask.shape[1], device=mask.device)
            places = torch.maximum(every, mask.argmax(-1, keepdim=True))
        blocks = places // size
        own = blocks.gather(1, columns.expand(len(mask), -1))  # [B, L]
        return (blocks[:, None, :] <= own[:, :, None])[:, None] & mask.bool()[:, None, None, :]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the raw logits [..., V] of hidden states [..., D]."""
        if self.is_encoder:  # a prediction head of several layers stands behind the body
            body = self.causal_lm.base_model
            for module in self.causal_lm.children():
                hidden = hidden if module is body else module(hidden)
            return hidden
        logits = self.causal_lm.get_output_embeddings()(hidden)
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    @property
    def head_weight(self) -> torch.Tensor | None:
        """The weight [V, D] of a head that multiplies by it and does nothing else; None of any other."""
        module = None if self.is_encoder or self._softcap is not None else self.causal_lm.get_output_embeddings()
        if type(module) is not torch.nn.Linear or module.bias is not None or "forward" in vars(module):
            return None
        return None if module._forward_hooks or module._forward_pre_hooks else module.weight

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The same weights with the adapter off, for the length of a `with` block.

        Raises ModelError if there is no adapter, or one that has changed the base's own biases.
        """
        if not isinstance(self.network, PeftModel):
            raise ModelError(f"{self.name!r} has no adapter, so it is its own reference; load it with adapter=FOLDER.")
        bias = getattr(self.network.active_peft_config, "bias", "none")
        if bias != "none":
            raise ModelError(
                f"the adapter {self.adapter} was trained with bias={bias!r}: the base's biases are changed for good, "
                f"so it can't be turned off. Load {self.name!r} without it as the reference."
            )
        if not isinstance(self.network.active_peft_config, LoraConfig):
            with self.network.disable_adapter():
                yield
            return
        # As PEFT does, but for asking every layer's state and setting flags of gradients, which take a quarter of all
        # the Python in a training step at 32 layers.
        adapted = [module for module in self.network.modules() if isinstance(module, ADAPTED)]
        before = [module.disable_adapters for module in adapted]
        try:
            for module in adapted:
                module._disable_adapters = True
            yield
        finally:
            for module, disabled in zip(adapted, before, strict=True):
                module._disable_adapters = disabled

    def fold_adapter(self) -> None:
        """Add the adapter to the float32 weights it goes on: the same outputs up to rounding, for the price of the bare
        model. For using a model, not for training it. Nothing is done in half precision or quantised, where rounding
        would tell, without an adapter, and with one that isn't a sum of weights alone.
        """
        if self._foldable:
            _ = self.fingerprint  # of the weights as they were loaded
            self.network.merge_adapter()

    @contextmanager
    def folded(self) -> Iterator[None]:
        """The same for the length of a `with` block, at the price of a copy of the weights that are adapted; afterwards
        each is what it was to the bit, so that an adapter can be sampled from while it is trained."""
        layers = [module for module in self.network.modules() if isinstance(module, BaseTunerLayer)]
        weights = [weight for layer in layers for weight in layer.get_base_layer().parameters(recurse=False)]
        if not self._foldable or any(layer.merged for layer in layers):
            yield
            return
        _ = self.fingerprint  # of the weights as they are
        kept = [weight.data for weight in weights]
        for weight in weights:
            weight.data = weight.data.clone()
        try:
            self.network.merge_adapter()
            yield
        finally:
            try:
                self.network.unmerge_adapter()
            finally:
                for weight, data in zip(weights, kept, strict=True):
                    weight.data = data

    @property
    def _foldable(self) -> bool:
        if not isinstance(self.network, PeftModel) or self.dtype != torch.float32 or self.quantized:
            return False
        if any(isinstance(parameter, DTensor) for parameter in self.network.parameters()):  # shared out by FSDP
            return False
        config = self.network.active_peft_config
        # Where two modules share weights, and one of them has an adapter, folding would change both.
        ends = (self.causal_lm.get_input_embeddings(), self.causal_lm.get_output_embeddings())
        tied = self.family.kind == "canvas" or (
            self.config.tie_word_embeddings and any(isinstance(each, BaseTunerLayer) for each in ends)
        )
        return isinstance(config, LoraConfig) and not config.lora_bias and not tied

    # --- text ----------------------------------------------------------------------------------------

    def encode(self, messages: str | Sequence[Message]) -> list[int]:
        """Return the prompt's ids: one user turn (str) or a conversation, through the chat template.

        The template's generation prompt is appended. Special tokens written out in the text (a mask, say) become those
        tokens.

        Raises:
            ModelError: There is no chat template, or a broken one.
            TypeError, InputError: It is no conversation, or one that the template can't follow.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(messages, Sequence) or not messages:
            raise InputError(f"a prompt is a text or a non-empty list of messages; received {messages!r}.")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise TypeError(f'a message is {{"role": ..., "content": ...}}; received {message!r}.')
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(f"{self.name!r} has no chat template (a base model?); pass token ids or add one.")
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template of {self.name!r} is broken (line {error.lineno}: {error.message}); mend "
                "chat_template.jinja or tokenizer_config.json in its folder."
            ) from error
        except Exception as error:  # a template says no by raising whatever it likes
            raise InputError(
                f"the chat template of {self.name!r} can't follow this conversation ({error}); change its turns."
            ) from error

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text alone, without special tokens added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Return the text up to and without the first end token, special tokens stripped."""
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        return self.text(ids[: self.end_of(ids)])

    def end_of(self, ids: Sequence[int]) -> int | None:
        """Where a response ends in these ids: at its first end token, or where an end that is no token of its own
        begins to be spelt; None where neither stands."""
        end = next((i for i, token in enumerate(ids) if token in self.family.end_ids), None)
        for spelt in self.family.end_texts:
            before, found, _ = self.text(ids[:end]).partition(spelt)
            if found:  # the last token that is still whole before it
                end = max(n for n in range(len(ids[:end])) if before.startswith(self.text(ids[:n])))
        return end

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, past any end token, special tokens stripped."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # --- identity ------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all that changes results: weights, config, family, tokenizer, chat template, and the
        adapter with its whole config. Equal means same outputs (up to rounding: devices and attention kernels don't
        count, dtype and quantisation do).

        Computed on first use (it reads every weight once); the base weights' and the tokenizer's part is then kept, the
        adapter's is read afresh each time, so training an adapter changes the fingerprint.
        """
        adapted = isinstance(self.network, PeftModel)
        if self._base_hash is None:
            weights = self.network.state_dict()
            if adapted:
                weights = _base_weights(weights, self.network.base_model.prefix)
            self._base_hash = _hash_tensors(weights) + _hash_tokenizer(self.tokenizer)
        config = {k: v for k, v in self.causal_lm.config.to_dict().items() if k not in _CONFIG_NOISE}
        parts = [config, repr(self.family), getattr(self.tokenizer, "chat_template", None), self._base_hash]
        if self.family.kind == "canvas":  # sampled by its own `generate`
            parts.append(self.causal_lm.generation_config.to_dict())
        if adapted:
            name = self.network.active_adapter
            tensors = get_peft_model_state_dict(self.network, adapter_name=name, save_embedding_layers=False)
            settings = self.network.peft_config[name].to_dict().items()
            parts += [_hash_tensors(tensors), {k: v for k, v in settings if k not in _ADAPTER_NOISE}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _base_weights(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The base's own weights of a PeftModel under their own names. prefix: of the adapter's, which are left out."""
    return {
        _WRAPPED.sub(".", name.removeprefix("base_model.model.")): tensor
        for name, tensor in weights.items()
        if not any(part.startswith(prefix) or part in _BESIDE for part in name.split("."))
    }


# What PEFT puts into the name of a weight that it has wrapped, and of those that it keeps beside.
_WRAPPED = re.compile(r"\.(?:base_layer|original_module|token_adapter\.base_layer)\.")
_BESIDE = {"modules_to_save", "trainable_tokens_delta", "trainable_tokens_original"}


def _plain(value: Any) -> Any:
    """As JSON: sets have no order of their own."""
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def _hash_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts = {"vocab": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    else:
        parts = json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # of the last call
            parts.pop(state, None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
