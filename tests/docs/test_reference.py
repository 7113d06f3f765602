"""Every public name has a docstring and stands in the reference; the site says no more than there is."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import griffe
import pytest
from doc_blocks import REPOSITORY


@pytest.fixture(scope="module")
def generated():
    """The site's hook."""
    spec = importlib.util.spec_from_file_location("generated", REPOSITORY / "docs" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def package(generated):
    """midward, as the site reads it: without importing it."""
    extensions = griffe.load_extensions(generated.Comments)
    found = griffe.load("midward", search_paths=[str(REPOSITORY / "src")], extensions=extensions)
    return found


def rooms_of(package) -> list[str]:
    return sorted(name for name, one in package.modules.items() if one.is_init_module and name != "cli")


def public(package, room: str | None):
    """Name -> what it is, for each name of a room's __all__."""
    module = package[room] if room else package
    for name in map(str, module.exports or []):
        one = module.members[name]
        one = one.final_target if one.is_alias else one
        yield name, one.members[name] if one.is_module else one  # a function that is called as its module


def test_every_page_is_in_the_nav(generated):
    nav = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [*generated.reference_pages(), *(path.name for path in (REPOSITORY / "docs").glob("*.md"))]
    assert not [page for page in pages if f" {page}\n" not in nav]


def test_every_public_name_has_a_docstring(package):
    missing = []
    for room in (None, *rooms_of(package)):
        named = public(package, room)
        missing += [f"{room}: {name}" for name, one in named if not one.docstring and name != "__version__"]
    assert not missing


def test_every_public_method_has_a_docstring(package):
    """Its own, or that of the class whose method it fills in."""
    missing = []
    for room in rooms_of(package):
        for _, one in public(package, room):
            for name, method in one.members.items() if one.is_class else ():
                if name.startswith("_") or not method.is_function:
                    continue
                named_so = (base.members.get(name) for base in one.mro())
                if not method.docstring and not any(other and other.docstring for other in named_so):
                    missing.append(method.path)
    assert not missing


def test_a_comment_is_a_docstring_only_with_its_colon(generated, tmp_path):
    path = tmp_path / "x.py"
    path.write_text("#: Said\n#: in two lines.\nA = 1\n# for readers of the source\nB = 2\nC = 3\n")
    assert [generated._comment(path, line) for line in (3, 5, 6)] == ["Said in two lines.", "", ""]


def test_the_verbs_and_their_flags_are_all_there(generated, midward_verbs):
    page = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    missing = [verb for verb in midward_verbs if f"### {verb}\n" not in page or f"<!-- flags: {verb} -->" not in page]
    assert not missing
    shown = generated.on_page_markdown("<!-- flags: midward align -->")
    assert "--method" in shown and "<!--" not in shown
    with pytest.raises(KeyError):
        generated.on_page_markdown("<!-- flags: midward algin -->")


def test_links_of_the_readme_lead_somewhere():
    """Those of docs/ are checked as the site is built."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", readme) if not link.startswith("http")]
    assert links and not [link for link in links if not (REPOSITORY / link).exists()]


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_asks_nobody_for_anything(package, generated, tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src="|<link [^>]*href=")(https?:[^"]*)', page.read_text(encoding="utf-8"))
        assert not fetched, page
    missing = []
    for room in generated.ROOMS:
        if not generated.exported(room):
            continue
        text = (tmp_path / "site" / "reference" / f"{room}.html").read_text(encoding="utf-8")
        ids = set(re.findall(r'id="([\w.]+)"', text))
        where = f"midward.{room}"
        missing += [
            f"{where}.{name}"
            for name in generated.exported(room)
            if not ids & {f"{where}.{name}", f"{where}.{name}.{name}"}
        ]
    assert not missing
