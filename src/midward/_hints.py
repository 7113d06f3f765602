"""What errors share: the "did you mean" line, the check of a choice that ends in it, what differs between two; and how
a text is made fit for a terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from midward.errors import InputError

#: What transformers, LLaDA's script, Dream's and others call a setting of ours.
ELSEWHERE = {
    "max_new_tokens": "length",
    "max_tokens": "length",
    "max_length": "length",
    "gen_length": "length",
    "num_steps": "steps",
    "diffusion_steps": "steps",
    "block_length": "block",
    "block_size": "block",
    "remasking": "order",
    "alg": "order",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch",
    "max_grad_norm": "clip",
    "objective": "recipe",
}
#: Flags that verbs have for nearly the same thing.
_KIN = (
    ("limit", "count", "max_steps", "held_out", "budget"),
    ("steps", "max_steps"),
    ("goals", "sets", "data", "attacked", "tasks", "prompts", "harmful"),
    ("attacks", "attack", "sets", "method"),
    ("batch_size", "micro_batch", "max_batch"),
)


def printable(text: str, kept: str = "\n\t") -> str:
    """What a terminal would obey (escape sequences, carriage returns) is replaced. kept: what stays all the same."""
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text)


#: What begins or ends markup within a line of Markdown: of CommonMark, of GitHub's and of the Hub's (formulas).
_MARKUP = re.compile(
    r"[\\`*<>|~&$]|(?<=\])[(\[:]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=www)\.|(?<=\w)@", re.IGNORECASE
)


def markdown_text(text: str) -> str:
    """A text as one line of Markdown, in which it is no markup and ends no cell of a table."""
    line = printable(" ".join(text.split()), "")
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", line)


def kin(name: str, known: Collection[str]) -> list[str]:
    """Which of the known names has what another library, or another verb, calls so; perhaps none."""
    names = [ELSEWHERE.get(name), *(each for alike in _KIN if name in alike for each in alike)]
    return [each for each in names if each and each in known][:1]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for its `kin`, or the nearest known name, or an empty string."""
    known = list(known)
    near = kin(name, known) or get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def near_path(path: str | Path, *, folder: bool | None = None) -> str:
    """The same for a path that isn't there: what lies beside it and has nearly its name.

    Args:
        path: what was given.
        folder: whether it should have been a folder (True), a file (False) or either (None): nothing else is offered.
    """
    parent = Path(path).expanduser().parent
    beside = {each.name: str(each) for each in parent.iterdir()} if parent.is_dir() else {}
    beside.pop(Path(path).name, None)
    beside = {name: each for name, each in beside.items() if folder in (None, Path(each).is_dir())}
    near = get_close_matches(Path(path).name, beside, n=1)
    return f" Did you mean {beside[near[0]]!r}?" if near else ""


def differing(there: Mapping[str, Any], here: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """What of `here` is otherwise in `there`, in words; names in `but` may be."""
    return [
        f"{name} {there.get(name)!r} there, {value!r} here"
        for name, value in here.items()
        if name not in but and there.get(name) != value
    ]


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Check a choice.

    Args:
        name: of what it is, for the error.

    Raises:
        InputError: `value` is none of `allowed`; names the nearest.
    """
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise InputError(f"unknown {name} {value!r}.{hint} Available: {', '.join(allowed)}.")
