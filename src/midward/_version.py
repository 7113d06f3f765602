"""Which midward runs: the release that is installed, or the commit of the checkout that it runs from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import midward

_SECONDS = 2.0  # for git


def running_version() -> str:
    """The version, and of a checkout its commit, and whether files in it have changed since.

    git is asked for that, about the checkout and no other folder, for two seconds at most.
    """
    package = Path(midward.__file__).resolve().parent
    folder = package.parent.parent
    if package.parent.name != "src" or not (folder / ".git").exists():
        return f"{midward.__version__} (release)"
    commit, *changed = _git(folder, "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12").partition("+")[
        :2
    ]
    if not commit:
        return f"{midward.__version__} (a checkout; git can't tell its commit)"
    return f"{midward.__version__} (commit {commit}{', with changes' if any(changed) else ''})"


def _git(folder: Path, *words: str) -> str:
    # a relative entry of PATH would take a program of the current folder, and GIT_DIR would be another repository's
    path = os.pathsep.join(entry for entry in os.get_exec_path() if os.path.isabs(entry))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    git = shutil.which("git", path=path)
    if git is None or not os.path.isabs(git):
        return ""
    command = [git, "--no-optional-locks", "-c", "core.fsmonitor=false", *words]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
