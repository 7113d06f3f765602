"""Where the fixture checkpoints are, and small helpers to make others."""

import shutil
from pathlib import Path

import torch

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
