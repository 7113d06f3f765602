"""Where the fixture checkpoints are, and small helpers to make others, and adapters."""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def copy_tokenizer(folder: Path) -> None:
    """Put the tiny LLaDA fixture's tokenizer (512 tokens) into a checkpoint folder."""
    for name in TOKENIZER_FILES:
        shutil.copy(FIXTURES / "llada-tiny" / name, folder)


def random_llada(folder: Path, seed: int, **sizes: int) -> Path:
    """Make `folder` a LLaDA-layout checkpoint with large random weights and the fixture's tokenizer.

    sizes: as in `llada_config`; those that the tokenizer decides are set.
    """
    from tools.world import layout

    config = layout.llada_config(vocab_size=512, mask_id=2, end_id=1, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = layout.build(config)
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.data.normal_(std=0.3)
    layout.save(network, config, folder)
    copy_tokenizer(folder)
    return folder


def random_causal(folder: Path, kind: str, **sizes: object) -> Path:
    """Make `folder` a random autoregressive checkpoint of a kind of transformers, with the fixture's tokenizer."""
    shape = {"vocab_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **ids, **sizes})).save_pretrained(
            folder
        )
    copy_tokenizer(folder)
    return folder


def lora(model, folder: Path | None = None, targets=("q_proj", "v_proj"), rank: int = 2):
    """Put a random LoRA adapter on a model; with a folder, save it there and return the folder."""
    config = LoraConfig(r=rank, target_modules=list(targets), init_lora_weights=False)
    model.network = get_peft_model(model.network, config)
    if folder is not None:
        model.network.save_pretrained(folder, save_embedding_layers=False)
    return folder
