"""The frame of every page: its policy, its data, and texts that can do nothing."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from midward.reports import html

HOSTILE = "</script><script>document.title='got in'</script><!-- \u202eright\u2028\0 &amp;"


def read(markup):
    """What a browser's JSON.parse is given."""
    return json.loads(re.fullmatch(r'<script type="application/json" id="d">(.*)</script>', markup, re.S)[1])


@settings(max_examples=40)
@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none(), st.lists))
def test_data_come_back_and_hold_nothing_that_ends_their_element(value):
    markup = html.data("d", value)
    assert read(markup) == value
    inside = markup[: -len("</script>")][1:]
    assert "<" not in inside and inside.isascii()


def test_data_are_json():
    with pytest.raises(ValueError):
        html.data("d", float("nan"))


@given(st.text())
def test_what_cannot_be_seen_is_written_out(text):
    shown = html.visible(text)
    assert not set(shown) & set("\0\r\x1b\u202a\u202e\u2066\u2069\u200b\u2028\ufeff\U000e0041\ud800")
    assert html.visible(shown) == shown


def test_ordinary_text_stays_as_it_is():
    text = "a\tb\n日本語 שלום नमस्ते 👩\u200d🚀 café\u00a0!"
    assert html.visible(text) == text
    assert html.visible("\0a\u202eb") == "⟨U+0000⟩a⟨U+202E⟩b"


def test_a_redacted_text_tells_only_length_and_hash():
    shown = html.redacted("t30 t31 \ud800")
    assert shown.startswith("[redacted: 9 characters, sha256 ") and "t30" not in shown
    assert shown != html.redacted("t30 t32 \ud800")


def test_values_are_escaped_and_missing_ones_an_error():
    page = html.page(HOSTILE, [html.Part(Markup("<p>{}</p>").format(HOSTILE))])
    assert page.count("<script>") == 1 and "&lt;script&gt;" in page
    with pytest.raises(Exception, match="'policy' is undefined"):
        html.render("page.html.j2", title="")


def test_each_asset_stands_once_and_in_the_policy():
    part = html.Part(Markup("<p>one</p>"), styles=("base.css",), scripts=("base.js",))
    page = html.page("t30", [part, part])
    assert page.count("<style>") == page.count("<script>") == 1 and page.count("<p>one</p>") == 2
    policy = re.search(r'Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src ") and "unsafe" not in policy and policy.count("sha256-") == 2


def test_a_file_holds_what_no_file_can_hold_as_question_marks(tmp_path):
    path = html.write(tmp_path / "new" / "page.html", "a\ud800b", [])
    assert "<title>a?b</title>" in path.read_text(encoding="utf-8")


def test_in_a_browser_no_script_runs_but_those_of_the_page(browser, tmp_path):
    body = Markup("<script>document.title='got in'</script><img src=x onerror=\"document.title='in'\" alt=''>")
    path = html.write(tmp_path / "page.html", "t30", [html.Part(body)])
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri(), wait_until="load")
    assert page.title() == "t30" and any("Content Security Policy" in text for text in refused)
    page.close()


def test_light_and_dark(show, tmp_path):
    path = html.write(tmp_path / "page.html", "t30", [])
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = show(path, color_scheme="light"), show(path, color_scheme="dark")
    seen = light.evaluate(ground), dark.evaluate(ground)
    assert seen[0] != seen[1]
    light.click("#theme")
    assert light.evaluate(ground) == seen[1]
    light.click("#theme")
    assert light.evaluate(ground) == seen[0]
