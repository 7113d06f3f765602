"""The files of named sets: downloaded once, checked against their sha256 at every load."""

from __future__ import annotations

import hashlib
import re
import urllib.request
from pathlib import Path

import huggingface_hub

from midward.goals.goal import GoalsError
from midward.goals.sets import GoalSet
from midward.store import cache_folder, replacing

TIMEOUT = 30  # seconds without an answer
_ON_HUB = re.compile(r"https://huggingface\.co/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)")


def cached_path(goal_set: GoalSet, cache: str | Path | None = None) -> Path:
    """Where the file of a downloaded set lies, or would. Sets that are parts of one file share it."""
    assert goal_set.revision and goal_set.url
    name = f"{goal_set.revision[:12]}-{goal_set.url.rsplit('/', 1)[1]}"
    return (cache_folder() / "goals" if cache is None else Path(cache)) / name


def fetch(goal_set: GoalSet, cache: str | Path | None = None) -> Path:
    """The file of a set, from the cache or downloaded into it.

    Where the set states no sha256, that of the first file seen is kept beside it (.sha256) and must match from then on.

    Args:
        cache: folder in place of $MIDWARD_CACHE/goals.

    Raises:
        GoalsError: the file can't be downloaded, or isn't what it should be. Nothing half-written is left.
    """
    path = cached_path(goal_set, cache)
    stated = path.with_name(f"{path.name}.sha256")
    cached = path.exists()
    content = path.read_bytes() if cached else _download(goal_set, path)
    sha256 = hashlib.sha256(content).hexdigest()
    expected = goal_set.sha256 or (stated.read_text().strip() if stated.exists() else sha256)
    if sha256 != expected:
        raise GoalsError(
            f"{path} has the sha256 {sha256}, not {expected}: it was changed or damaged. Remove it, and it is "
            "downloaded again."
            if cached
            else f"{goal_set.name}: what came from {goal_set.address} has the sha256 {sha256}, not {expected}. It was "
            "not kept; try again, and if it stays so, the source is not what midward knows."
        )
    for file, text in ((stated, sha256.encode()), (path, content)):
        if not file.exists() and (file == path or goal_set.sha256 is None):
            with replacing(file) as part:
                part.write_bytes(text)
    return path


def _download(goal_set: GoalSet, path: Path) -> bytes:
    """The content of a set's file: from the Hub by its own client, else from the web."""
    assert goal_set.address
    on_hub = _ON_HUB.fullmatch(goal_set.address)
    try:
        if on_hub:
            repo, file = on_hub.groups()
            at = huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=goal_set.revision)
            return Path(at).read_bytes()
        with urllib.request.urlopen(goal_set.address, timeout=TIMEOUT) as response:
            return response.read()
    except Exception as error:  # the Hub's errors, its transport's and the system's have no common base
        status = getattr(getattr(error, "response", None), "status_code", None)
        if goal_set.gated and status in (401, 403):
            raise GoalsError(
                f"{goal_set.name} is gated: accept its terms at {goal_set.gated}, then set HF_TOKEN to a token of the "
                "same account (https://huggingface.co/settings/tokens) and run this again."
            ) from error
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".") or type(error).__name__
        raise GoalsError(
            f"{goal_set.name} can't be downloaded from {goal_set.address}: {reason}. Try again, or fetch that file "
            f"elsewhere and put it at {path}."
        ) from error
