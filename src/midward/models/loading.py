"""`load`: from a name to a `LanguageModel`, with every failure told before anything big is read."""

import logging as python_logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.utils import logging

from midward._hints import did_you_mean, near_path
from midward._plugins import Plugins, check_types, must_take
from midward.errors import InputError

from . import a2d, autoregressive, bd3lm, bert, diffusion_gemma, dream, llada, llada2, llada_moe, mmada, sdar
from ._adapter import WEIGHTS, attach
from ._files import SMALL_FILES, digest, not_finite, read_json, renaming, weight_files
from .errors import ModelError
from .family import Family, FamilyInfo
from .language_model import LanguageModel
from .memory import GB, QUANTIZED, Memory, dtype_name, estimate, require
from .names import local_adapter, local_checkpoint
from .reading import Placement

log = python_logging.getLogger("midward.models")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: How far, relatively, 8-bit rounding may move a position that doesn't see the change.
_INT8_NOISE = 2**-5

#: The diffusion families, one file each.
_FAMILIES: dict[str, ModuleType] = {
    module.INFO.name: module
    for module in (llada, mmada, dream, llada_moe, llada2, sdar, a2d, bd3lm, bert, diffusion_gemma)
}

#: Families whose config.json, and so whose tokenizer, transformers knows.
_NATIVE = (autoregressive.INFO.name, bert.INFO.name)


def _check_module(module: Any) -> None:
    lacks = [name for name in ("INFO", "family", "read") if not hasattr(module, name)]
    if lacks:
        raise InputError(f"has no {lacks[0]}; a family is a module with INFO, family and read.")
    check_types(module.INFO, FamilyInfo, "has an INFO that ")
    must_take("family", module.family, "raw", "tokenizer")
    must_take("read", module.read, "folder", "raw", "placement")


_PLUGINS = Plugins("family", ModuleType, _FAMILIES, ModelError, _check_module, lambda module: module.INFO.name)


def every() -> dict[str, FamilyInfo | ModelError]:
    """What there is to tell of each family by name; of a package's that can't be loaded or used, why."""
    modules = _PLUGINS.every() | {autoregressive.INFO.name: autoregressive}
    return {name: module.INFO if isinstance(module, ModuleType) else module for name, module in modules.items()}


def families() -> list[FamilyInfo]:
    """Return what there is to tell of each family that `load` reads, those of other packages included."""
    return [info for info in every().values() if isinstance(info, FamilyInfo)]


def load(
    name: str | Path,
    adapter: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["8bit", "4bit"] | None = None,
    device_map: Literal["auto"] | dict[str, Any] | None = None,
    *,
    use: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> LanguageModel:
    """Load a checkpoint. Remote code is never run, and no pickle read.

    Args:
        name: "sandbox", "sandbox-ar" (its autoregressive twin), "sandbox-block" (its block-causal sibling), a folder,
            or a Hub id ("org/model").
        adapter: A PEFT adapter made for this model, a folder or a Hub id (`LanguageModel.reference` turns it off).
        device: "auto" (a CUDA device where there is one, under torchrun the process's own) or any torch device.
        dtype: "auto" (bfloat16 on CUDA, float32 elsewhere), "float32", "bfloat16", "float16" or a torch dtype.
        quantize: "8bit" or "4bit" linear layers, by bitsandbytes; another model, with a fingerprint of its own.
        device_map: "auto" (layers over all CUDA devices) or module names -> devices; instead of `device`.
        use: What the model is for, as `memory.estimate` takes it (batch, length, training ...).
        tell: Called with a line on the memory that is needed, if that is over 1 GB, before anything is read; and with
            one that says what was resolved, once it is loaded.

    Raises:
        ModelError: Wrong folder, missing or torn file, missing shard, pickle-only weights, weights that aren't finite
            numbers, unknown family, unusual config, too little memory, or an adapter made for another model.
    """
    placed = placement(device, dtype, quantize, device_map)
    folder = checkpoint_folder(name)
    beside = None if adapter is None else adapter_folder(adapter)
    raw = bd3lm.named(read_json(folder / "config.json"), str(name))
    kind = _kind(folder, raw)
    _check_quantised(folder, raw, kind)
    with _config_errors(folder):
        need = estimate(folder, placed.dtype, placed.quantize, **(use or {}))
    require(need, placed, tell)
    tokenizer = _tokenizer(folder, kind)

    module = autoregressive if kind == autoregressive.INFO.name else _PLUGINS.find(kind)
    raw = mmada.complete(folder, raw) if module is mmada else raw
    with _quiet(need), _config_errors(folder):
        if module is autoregressive:
            network = autoregressive.read(folder, raw, placed)
            family = autoregressive.family(folder, raw, tokenizer, network)
        else:
            family = module.family(raw, tokenizer)
            network = module.read(folder, raw, placed)
    _check_mask_token(folder, family, tokenizer)
    family = replace(family, sampling={**family.sampling, **_own_sampling(folder)})

    model = LanguageModel(str(name), family, tokenizer, network)
    network.requires_grad_(False)
    _check_nothing_offloaded(model)
    _check_finite(model)
    model.stored = digest(weight_files(folder))
    if family.kind != "canvas":
        check_attention(model)
    if beside is not None:
        published = module.published(raw) if hasattr(module, "published") else renaming({})
        model.network = attach(network, beside, str(name), published, model.stored)
        model.adapter = str(adapter)
    kind = "" if family.name == family.kind else f", {family.kind}"
    how = f"device map {device_map}" if device_map is not None else "as asked"
    if (device, device_map) == ("auto", None):
        cuda = model.device.type == "cuda"
        how = f"auto: {torch.cuda.get_device_name(model.device) if cuda else 'no CUDA device'}"
    tell(
        f"model     {model.name}{f' + {model.adapter}' if model.adapter else ''} ({family.name}{kind}) on "
        f"{model.device} ({how}) as {dtype_name(model.dtype, model.quantized)}"
    )
    return model


@contextmanager
def _config_errors(folder: Path) -> Iterator[None]:
    """What transformers raises over the values of a config, as a ModelError."""
    try:
        yield
    except StrictDataclassError as error:
        raise ModelError(
            f"{folder / 'config.json'} can't be used: {' '.join(str(error).split())} Compare it with the published one."
        ) from error


@contextmanager
def _quiet(need: Memory) -> Iterator[None]:
    """No progress bar of transformers' for a model that is read in a moment; a large one keeps it."""
    shown = logging.is_progress_bar_enabled()
    if need.weights < GB:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def check_attention(model: LanguageModel) -> None:
    """Raise ModelError unless attention is as the family says, and `head` gives the logits.

    A loader that fell back to causal attention would still produce text, only wrong text: so the last token is varied
    and the positions before it must follow (full), stay (causal), or do both (their own block follows, others stay).
    """
    family = model.family
    block = family.attention_block or 8
    length = min(8 if family.attention != "block" else 2 * block, model.max_positions)
    ids = torch.arange(length, device=model.device).repeat(4, 1) % model.vocab_size
    ids[:, -1] = torch.linspace(0, model.vocab_size - 1, 4).long()
    before = model.hidden(ids)[:, :-1].float()
    whole = ids[:1, : min(block, length)]
    own = model.head(model.hidden(whole))
    if not (before.isfinite().all() and own.isfinite().all()):
        raise ModelError(f"{model.name!r} computes NaN or infinite numbers; {_remedy(model.dtype)}")
    change = (before - before[:1]).norm(dim=-1).max(0).values / before[0].norm(dim=-1)  # [length - 1]
    # Rounding: an expert's tokens are multiplied together, so that a position's last bits depend on the others.
    # In 8 bits, which columns count as outliers is decided over all positions at once.
    quantized = model.quantized == "8bit"
    moved = change > (_INT8_NOISE if quantized else 8 * torch.finfo(model.dtype).eps)
    followers = {"full": length - 1, "causal": 0, "block": min(block, length) - 1}[family.attention]
    expected = torch.arange(length - 1, device=model.device) >= length - 1 - followers
    if (moved & ~expected).any() or (expected.any() and not (moved & expected).any()):
        what = "some positions before it that it must not" if (moved & ~expected).any() else "nothing before it"
        raise ModelError(
            f"{model.name!r} must have {family.attention} attention, but the last token changes {what}; "
            "upgrade transformers?"
        )
    places = torch.arange(whole.shape[1], device=model.device)[None]
    logits = model.causal_lm(input_ids=whole, position_ids=places, use_cache=False).logits
    if not torch.allclose(own, logits, rtol=1e-3, atol=1e-3 * logits.abs().max().item()):
        raise ModelError(f"{model.name!r} transforms its logits after the output head in a way that isn't supported.")


def _check_finite(model: LanguageModel) -> None:
    bad = not_finite(dict(model.network.named_parameters()))
    if bad:
        raise ModelError(
            f"{model.name!r} holds NaN or infinite numbers, in {len(bad)} of its weights ({bad[0]}); "
            f"{_remedy(model.dtype)}"
        )


def _remedy(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return "float16 ends at 65504: use dtype='bfloat16' or 'float32' (--dtype)."
    return "the weights are damaged, or their training diverged: download them again, or take an earlier checkpoint."


def _check_quantised(folder: Path, raw: dict[str, Any], kind: str) -> None:
    method = (raw.get("quantization_config") or {}).get("quant_method")
    if method is not None and kind != autoregressive.INFO.name:
        raise ModelError(
            f"{folder} holds weights that {method} has quantised, which aren't read; take the original and "
            "quantize='8bit' or '4bit' (--quantize)."
        )


def _check_mask_token(folder: Path, family: Family, tokenizer: Any) -> None:
    """Warn where the config's mask id isn't the tokenizer's mask token: a prompt's masks wouldn't be the canvas's."""
    stated = tokenizer.mask_token_id
    if family.mask_id is None or stated in (None, family.mask_id):
        return
    text = tokenizer.convert_ids_to_tokens(family.mask_id)
    if "mask" not in str(text).lower():
        own = f"{family.mask_id} ({text!r}), and the tokenizer's mask token {tokenizer.mask_token!r} is {stated}"
        advice = "the config's is used. Set mask_token_id there to the one it was trained with."
        log.warning("%s: config.json's mask id is %s; %s", folder, own, advice)


def placement(
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> Placement:
    """What `load` makes of its arguments of the same names; ModelError for what can't be."""
    if quantize not in (None, *QUANTIZED):
        hint = did_you_mean(str(quantize), QUANTIZED)
        raise ModelError(f"unknown quantize {quantize!r}.{hint} Available: {', '.join(QUANTIZED)}.")
    devices: Any
    if device_map is not None and device != "auto":
        raise ModelError(f"device {device!r} and device_map {device_map!r} were both given; the map says it all.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if device_map is not None and processes > 1:
        raise ModelError(
            f"device_map={device_map!r} spreads one process over the devices and {processes} processes were launched; "
            "drop one of the two."
        )
    if device_map is None:
        devices = first = _device(device)
    elif device_map == "auto":
        first = _device("auto")
        devices = "auto" if first.type == "cuda" else first
    elif isinstance(device_map, dict) and device_map:
        devices = {module: _device(place) for module, place in device_map.items()}
        first = next(iter(devices.values()))
        if len({place.type for place in devices.values()}) > 1:
            raise ModelError(
                f"the device map names {', '.join(sorted({str(place) for place in devices.values()}))}; "
                "layers on the CPU beside a GPU would be copied at every step, which isn't offered."
            )
    else:
        raise ModelError(f"device_map must be 'auto' or module names with their devices; received {device_map!r}.")
    return Placement(devices, _dtype(dtype, first), cast(Any, quantize))


def _check_nothing_offloaded(model: LanguageModel) -> None:
    """transformers' own map puts on the CPU or the disk what the devices have no room for."""
    outside = sorted(
        str(module)
        for module, device in getattr(model.network, "hf_device_map", {}).items()
        if str(device) in ("disk", "meta") or (str(device) == "cpu" and model.device.type != "cpu")
    )
    if outside:
        raise ModelError(
            f"{model.name!r} doesn't fit onto the devices: {len(outside)} modules are left over "
            f"({', '.join(outside[:3])}); use quantize='4bit', more devices or a smaller model."
        )


def _device(device: str | int | torch.device) -> torch.device:
    if isinstance(device, int):
        device = f"cuda:{device}"
    if device == "auto":
        own = os.environ.get("LOCAL_RANK", "0")  # under torchrun each process has a device of its own
        return torch.device(f"cuda:{own}" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":  # where weights have no numbers
            raise RuntimeError
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}; use 'auto', 'cpu' or 'cuda'.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for and this torch sees no CUDA device; use 'cpu'.")
    return chosen


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        names = ["auto", *_DTYPES]
        raise ModelError(f"unknown dtype {dtype!r}.{did_you_mean(dtype, names)} Available: {', '.join(names)}.")
    return _DTYPES[dtype]


def checkpoint_folder(name: str | Path) -> Path:
    """The folder of a model that is named as in `load`; a Hub id's files are downloaded. Raises ModelError."""
    return local_checkpoint(name) or _download(str(name))


def adapter_folder(name: str | Path) -> Path:
    """The folder of an adapter that is named as in `load`; a Hub id's files are downloaded. Raises ModelError."""
    return local_adapter(name) or _snapshot(str(name), [*SMALL_FILES, WEIGHTS])


def _download(name: str) -> Path:
    """Fetch a Hub snapshot: the small files first, the weights only once the config is understood."""
    folder = _snapshot(name, SMALL_FILES)
    _kind(folder, read_json(folder / "config.json"))
    return _snapshot(name, [*SMALL_FILES, "*.safetensors"])


def _snapshot(name: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        reason = f"the Hub can't be reached{offline} and it isn't in the local cache; is the name right"
    except HFValidationError:
        reason = "that is no valid Hub id"
    except HfHubHTTPError as error:
        reason = f"the Hub answered: {str(error).splitlines()[0]}"
    except OSError as error:
        reason = f"the download failed ({error})"
    raise ModelError(f"no folder {name!r}, and as a Hub id: {reason}.{near_path(name, folder=True)}")


def _kind(folder: Path, raw: dict[str, Any]) -> str:
    """Decide the family from `architectures` (LLaDA and LLaDA-MoE share a model_type)."""
    names = raw.get("architectures") or []
    if not names:
        raise ModelError(f'{folder / "config.json"} names no architecture; add "architectures".')
    name = names[0]
    if name in llada.INFO.architectures and raw.get("num_experts"):
        return llada_moe.INFO.name
    if name in bd3lm.INFO.architectures and raw.get("block_size"):
        return bd3lm.INFO.name
    for family, module in _FAMILIES.items():
        if name in module.INFO.architectures:
            return family
    causal = autoregressive.architectures()
    if name in causal:
        return "autoregressive"
    others = _PLUGINS.every()
    for family, module in others.items():
        if isinstance(module, ModuleType) and name in module.INFO.architectures:
            return family
    broken = "".join(f" {error}" for error in others.values() if isinstance(error, ModelError))
    diffusion = [known for module in _FAMILIES.values() for known in module.INFO.architectures]
    hint = did_you_mean(name, [*diffusion, *causal])
    raise ModelError(
        f"unknown architecture {name!r} in {folder}.{hint} Loaded are "
        f"{', '.join(diffusion)} and the causal models that transformers has natively.{broken}"
    )


def _tokenizer(folder: Path, kind: str) -> Any:
    # Not AutoTokenizer for diffusion models: it would resolve config.json, whose auto_map points at remote code.
    loader: Any = AutoTokenizer
    if kind not in _NATIVE:
        if (folder / "tokenizer.json").is_file():
            loader = PreTrainedTokenizerFast
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            loader = Qwen2Tokenizer  # as Dream and SDAR are published
        else:
            raise ModelError(f"{folder} has no tokenizer.json; is the download complete?")
    try:
        tokenizer = loader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of tokenizers, sentencepiece, transformers: of any kind
        raise ModelError(f"{folder}: the tokenizer can't be read ({error}).") from error
    if loader is Qwen2Tokenizer:
        _check_special_tokens(folder, tokenizer)
    return tokenizer


def _check_special_tokens(folder: Path, tokenizer: Any) -> None:
    """Tokens that vocab.json lacks are numbered on from its end; that must be what tokenizer_config.json says."""
    stated = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    for number, token in stated.items():
        own = tokenizer.convert_tokens_to_ids(token["content"])
        if own != int(number):
            raise ModelError(
                f"{folder}: {token['content']} is token {own} of vocab.json and {number} of tokenizer_config.json; "
                "the tokenizer's files don't belong together."
            )


def _own_sampling(folder: Path) -> dict[str, Any]:
    """A checkpoint's own sampling defaults: generation_config.json's "midward_sampling"."""
    path = folder / "generation_config.json"
    own = read_json(path).get("midward_sampling", {}) if path.is_file() else {}
    if not isinstance(own, dict):
        raise ModelError(f"{path}: midward_sampling must be an object of sampling settings; received {own!r}.")
    return own
