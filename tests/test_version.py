"""`midward --version` names the release or the commit, by the checkout's own git and nobody else's."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from midward import __version__, _version
from midward.runs.run import Run

GIT = shutil.which("git")
needs_git = pytest.mark.skipif(GIT is None, reason="there is no git")


def git(folder, *words):
    names = "-c user.name=a -c user.email=a@localhost -c commit.gpgsign=false".split()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        [GIT, *names, *words], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one commit, from which midward seems to run."""
    package = tmp_path / "checkout" / "src" / "midward"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("midward.__file__", str(package / "__init__.py"))
    git(tmp_path / "checkout", "init", "-q")
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-qm", "first")
    return tmp_path / "checkout"


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return folder


@needs_git
def test_a_checkout_says_its_commit_and_whether_it_was_changed(checkout, midward):
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert midward("--version").stdout == f"midward {__version__} (commit {commit})\n"
    (checkout / "notes.txt").write_text("of no commit")
    assert _version.running_version() == f"{__version__} (commit {commit})"
    (checkout / "src/midward/__init__.py").write_text("changed = True")
    assert _version.running_version() == f"{__version__} (commit {commit}, with changes)"
    assert Run(verb="x").stamped().versions["midward"] == _version.running_version()


@needs_git
def test_an_installed_one_is_a_release_also_below_somebodys_repository(checkout, monkeypatch):
    place = checkout / ".venv" / "lib" / "python3" / "site-packages" / "midward"
    for package in (place, checkout / "midward", Path("/midward")):
        monkeypatch.setattr("midward.__file__", str(package / "__init__.py"))
        assert _version.running_version() == f"{__version__} (release)"


@needs_git
def test_another_repository_in_the_environment_is_not_asked(checkout, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path / "other")
    assert git(checkout, "rev-parse", "HEAD")[:12] in _version.running_version()


@needs_git
def test_nothing_of_the_current_folder_is_run(checkout, tmp_path, monkeypatch):
    here = program(tmp_path / "here", "git", f"touch {tmp_path}/ran; echo 0123456789ab")
    monkeypatch.chdir(here)
    for path in (".", "", "here:."):
        monkeypatch.setenv("PATH", path)
        assert "git can't tell" in _version.running_version()
    monkeypatch.setenv("PATH", f".:{Path(GIT).parent}")
    assert git(checkout, "rev-parse", "HEAD")[:12] in _version.running_version()
    assert not (tmp_path / "ran").exists()


@needs_git
@pytest.mark.parametrize("does", ["exec sleep 60", "exit 128", "echo", None])
def test_a_git_that_is_slow_fails_or_is_not_there_is_told(checkout, tmp_path, monkeypatch, does):
    monkeypatch.setattr(_version, "_SECONDS", 0.2)
    folder = program(tmp_path / "bin", "git", does) if does else tmp_path / "nothing"
    monkeypatch.setenv("PATH", f"{folder}:/nowhere" + (":/bin" if does == "exec sleep 60" else ""))
    started = time.monotonic()
    assert _version.running_version() == f"{__version__} (a checkout; git can't tell its commit)"
    assert time.monotonic() - started < 5
