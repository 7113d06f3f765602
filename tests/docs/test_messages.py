"""docs/errors.md quotes messages that the source has, and leaves out none that a verb itself gives."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter

import pytest
from doc_blocks import REPOSITORY

PAGE = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?:` )?(.+?)(?: `)?` \|.*\|$", re.M)
TOLD_BY_THE_APP = "the device is out of memory; use a smaller --batch-size, --length or model."


@pytest.fixture(scope="module")
def messages():
    """All messages of the source, read as the site's hook reads them."""
    spec = importlib.util.spec_from_file_location("generated", REPOSITORY / "docs" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.messages()


def quoted() -> list[str]:
    """The first cell of every row of the page's tables."""
    return ROW.findall(PAGE)


def test_every_quoted_message_is_in_the_source(messages):
    known = {one.text for one in messages} | {TOLD_BY_THE_APP}
    assert len(quoted()) > 80
    assert not [text for text in quoted() if text not in known]


def test_what_a_verb_itself_says_is_on_the_page(messages):
    said = {one.text for one in messages if one.where.startswith("cli/")}
    missing = sorted(said - set(quoted()))
    assert not missing


def test_what_is_said_in_several_places_is_on_the_page(messages):
    counts = Counter(one.text for one in messages if one.error not in ("AttributeError", "KeyError"))
    several = {text for text, count in counts.items() if count > 1 and text != "needs …, none of …."}  # a developer's
    missing = sorted(several - set(quoted()))
    assert not missing


def test_nothing_is_quoted_twice():
    sections = re.split(r"^## ", PAGE, flags=re.M)
    for section in sections:
        rows = ROW.findall(section)
        assert not [text for text, count in Counter(rows).items() if count > 1]


def test_every_verb_has_a_section(midward_verbs):
    groups = {verb.split()[1] for verb in midward_verbs}
    missing = [one for one in groups - {"models", "chat"} if not re.search(rf"^## .*midward {one}\b", PAGE, re.M)]
    assert not missing
