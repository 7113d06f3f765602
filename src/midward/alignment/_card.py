"""The adapter folder's README.md: what the adapter is, what it was trained on, how to use it; no path of a machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ABOUT = {
    "mosa": "makes the middle of an answer to a harmful request a refusal (MOSA, arXiv 2508.12398)",
    "initial": "makes an answer to a harmful request begin with a refusal (the baseline of MOSA, arXiv 2508.12398)",
}


def base_of(name: str) -> str:
    """What to call a model that was loaded by this name: a Hub id as it is, a folder by its own name alone."""
    return Path(name).resolve().name if Path(name).exists() or Path(name).is_absolute() else name


def card(record: Mapping[str, Any]) -> str:
    """The text of the card, from a run's record (align.json)."""
    base, settings, versions = record["model"], record["config"], record["versions"]
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    harmful, benign, sentences = record["data"], record["benign"], record["sentences"]
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {base}"] if on_hub else []),
        "tags: [midward, lora, safety, diffusion-language-model]",
        "---",
        "",
        f"# {settings['method'].upper() if settings['method'] == 'mosa' else 'Initial alignment'} of {Path(base).name}",
        "",
        f"A LoRA adapter that {_ABOUT[settings['method']]}. It belongs to `{base}`, fingerprint "
        f"`{record['model_fingerprint']}`, and to no other weights.",
        "",
        f"- **recipe**: {settings['recipe']}, {record['steps']} steps of {settings['batch_size']} harmful prompts",
        f"- **data**: {harmful['prompts']} harmful prompts (`{harmful['hash']}`), {benign['prompts']} benign ones "
        f"(`{benign['hash']}`); {sentences['safe']} safe and {sentences['harmful']} harmful sentences "
        f"(`{sentences['hash']}`)",
        f"- **made with**: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        "",
        "```python",
        "import midward",
        "",
        f'model = midward.load("{base}", adapter="the folder of this file")',
        "```",
        "",
        "All settings:",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items() if name not in ("method", "recipe")),
    ]
    return "\n".join(lines) + "\n"
