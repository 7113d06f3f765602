"""Where the fixture checkpoints are, and small helpers to make others."""

import shutil
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def copy_tokenizer(folder: Path) -> None:
    """Put the tiny LLaDA fixture's tokenizer (512 tokens) into a checkpoint folder."""
    for name in TOKENIZER_FILES:
        shutil.copy(FIXTURES / "llada-tiny" / name, folder)
