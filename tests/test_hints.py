"""What errors share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from midward._hints import did_you_mean, markdown_text, near_path
from midward.alignment import AlignError, resolve
from midward.sampling import Sampling


def test_the_nearest_name_and_what_other_libraries_call_it():
    assert did_you_mean("lenght", ["length", "steps"]) == " Did you mean 'length'?"
    assert did_you_mean("max_new_tokens", ["length", "steps"]) == " Did you mean 'length'?"
    assert did_you_mean("max_new_tokens", ["seed"]) == ""


def test_settings_under_the_names_of_other_libraries(llada):
    with pytest.raises(TypeError, match="Did you mean 'length'"):
        Sampling.for_model(llada, max_new_tokens=8)
    with pytest.raises(TypeError, match="Did you mean 'guidance'"):
        Sampling.for_model(llada, cfg_scale=1.0)
    with pytest.raises(AlignError, match="Did you mean 'lr'"):
        resolve({"learning_rate": 1e-3})


def test_a_path_that_isnt_there_comes_with_one_of_its_kind(tmp_path):
    (tmp_path / "runs.csv").touch()
    (tmp_path / "runs").mkdir()
    wanted = {None: "runs.csv", False: "runs.csv", True: "runs"}
    for folder, near in wanted.items():
        assert near_path(tmp_path / "run.csv", folder=folder) == f" Did you mean {str(tmp_path / near)!r}?"


MARKUP = [
    *"\\`*_[]()<>|~&$!#:/@.-+ax1 \n\u202e",
    "](",
    "<b>",
    "<!--",
    "-->",
    "&lt;",
    "https://a.b",
    "a@bc.com",
    "[a](b)",
    "![a](b)",
]
GITHUB = MarkdownIt("gfm-like")
GITHUB.linkify.set({"fuzzy_link": False})


@given(st.lists(st.sampled_from(MARKUP), max_size=12).map("".join) | st.text(max_size=30))
def test_a_text_in_markdown_is_that_text_and_one_cell(text):
    line = " ".join(text.split())
    tokens = GITHUB.parse(f"| head | last |\n|---|---|\n| x {markdown_text(text)} x | end |\n\nafter")
    cells = [token for token in tokens if token.type == "inline"]
    pieces = cells[2].children
    assert {piece.type for piece in pieces} <= {"text", "text_special"} and len(cells) == 5
    assert "www." not in markdown_text(f"www.{text}")  # GitHub makes a link of it, this parser of much more
    seen = "".join(piece.content for piece in pieces)
    assert seen.split() == ["x", *"".join(c if c.isprintable() else "\ufffd" for c in line).split(), "x"]
