"""The wheel and the source archive: what is in them, and that the wheel is all that the README's quickstart takes."""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath
from shutil import copytree, ignore_patterns

import pytest
import yaml

from midward import __version__

HERE = Path(__file__).parents[1]
MOST = 12.5e6  # bytes of either; three models of 4.5 MB are most of it
QUICKSTART = re.compile(r"^pip install -c constraints\.txt midward-(\S+)-py3-none-any\.whl\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source archive of a copy of this checkout; the wheel is built from the archive."""
    here = tmp_path_factory.mktemp("release")
    caches, outputs = ignore_patterns("__pycache__", "*.egg-info", ".*"), {"build", "dist", "runs", "report", "shared"}
    copytree(
        HERE,
        here / "checkout",
        ignore=lambda folder, names: caches(folder, names) | (outputs & {*names} if Path(folder) == HERE else set()),
    )
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", here / "dist", here / "checkout"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel], [archive] = (here / "dist").glob("*.whl"), (here / "dist").glob("*.tar.gz")
    return wheel, archive


def test_the_wheel_holds_the_package_its_weights_and_nothing_else(built):
    wheel, _ = built
    names = zipfile.ZipFile(wheel).namelist()
    about = f"midward-{__version__}.dist-info"
    assert {PurePosixPath(name).parts[0] for name in names} == {"midward", about}
    package = HERE / "src" / "midward"
    there = {name.relative_to(package.parent).as_posix() for name in package.rglob("*") if name.is_file()}
    assert {name for name in names if not name.startswith(about)} == {
        name for name in there if "__pycache__" not in name
    }
    assert sum(name.endswith("model.safetensors") for name in names) == 3
    assert wheel.stat().st_size < MOST


def test_the_archive_holds_what_builds_it_and_what_tells_of_it(built):
    _, archive = built
    with tarfile.open(archive) as file:
        names = {PurePosixPath(name).relative_to(f"midward-{__version__}") for name in file.getnames()}
    texts = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "MANIFEST.in"}
    made = {"PKG-INFO", "setup.cfg", "pyproject.toml", "src", ""}
    assert {name.parts[0] if name.parts else "" for name in names} == texts | made
    assert archive.stat().st_size < MOST


def quickstart():
    """The commands of the README's quickstart, and the release that it names."""
    [(version, commands)] = QUICKSTART.findall((HERE / "README.md").read_text(encoding="utf-8"))
    return version, [line.split("  #")[0] for line in commands.splitlines()]


def test_the_quickstart_is_of_this_release_and_short():
    version, commands = quickstart()
    assert version == __version__ and 4 <= len(commands) <= 7
    assert all(command.startswith("midward ") for command in commands)


def test_the_citation_is_of_this_release():
    cited = yaml.safe_load((HERE / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__ and cited["license"] == "MIT"
    papers = " ".join((HERE / "docs" / "papers.md").read_text(encoding="utf-8").split())
    for paper in cited["references"]:
        names = ", ".join(author["family-names"] for author in paper["authors"])
        [number] = [each["value"] for each in paper["identifiers"]]
        assert f"{names}, *{paper['title']}*" in papers and number.removeprefix("arXiv:") in papers


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_without_a_checkout(built, tmp_path):
    """Installs all of it from the package index; minutes."""
    wheel, _ = built
    venv.create(tmp_path / "own", with_pip=True)
    programs = tmp_path / "own" / "bin"
    # nothing of this checkout or environment on any path
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "GIT_"))}
    environment = kept | {"PATH": f"{programs}:/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    environment |= {"MIDWARD_CACHE": str(tmp_path / "cache")}

    def run(command, **more):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
            shell=isinstance(command, str),
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    run([programs / "python", "-m", "pip", "install", "-q", "-c", HERE / "constraints.txt", wheel])
    run([programs / "python", "-m", "pip", "check"])
    place = run([programs / "python", "-c", "import midward, torch; print(midward.__file__, torch.__version__)"])
    assert place.startswith(str(tmp_path / "own")) and "2.13.0" in place
    assert run("midward --version") == f"midward {__version__} (release)\n"
    for command in quickstart()[1]:
        run(command)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/run.json")]
    assert len(records) == 3 and all(record["finished"] for record in records)
    assert {record["versions"]["midward"] for record in records} == {f"{__version__} (release)"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "guard" in page and str(HERE) not in page
