"""The report in a browser: nothing is fetched or logged, everything is reached by pointer and by key."""

from itertools import pairwise

import pytest
import report_world as world

from midward.reports import report

PHONE = {"viewport": {"width": 375, "height": 700}}
CELLS = """() => document.body.insertAdjacentHTML("beforeend", "<table><tr>" +
  [...Array(11).keys()].map((step) => `<td class="h${step}">1</td>`).join("") + "</tr></table>")"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    top = tmp_path_factory.mktemp("report")
    said = "<script>document.title = 'got in'</script> \u202eright " + "t99" * 3400
    world.attack(top / "runs" / "a", goal="t30 t31", asked="t32 t33", reply=said)
    world.adapter(top / "runs" / "a" / "adapters" / "mosa-with-a-name-that-goes-on-and-on-and-on-and-on-0")
    world.prefill(top / "runs" / "probe")
    world.guards(top / "runs" / "tried")
    world.generations(top / "runs" / "played")
    report.write([top / "runs"], top / "r.html")
    return top / "r.html"


def test_intervals_show_on_hover_and_on_focus(show, page):
    shown = show(page)
    tip, cell = shown.locator("#tip"), shown.locator(".heat td").first
    assert tip.is_hidden()
    cell.hover()
    assert tip.inner_text() == "prefill, base: 90.0 %, 95 % interval [85.0, 95.0], n 60"
    shown.keyboard.press("Escape")
    assert tip.is_hidden()
    shown.mouse.move(0, 0)
    cell.focus()
    assert "[85.0, 95.0]" in tip.inner_text() and cell.get_attribute("aria-describedby") == "tip"
    shown.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("prefill, mosa: 0.0 %")
    shown.keyboard.press("ArrowRight")  # there is no further cell
    assert tip.inner_text().startswith("prefill, mosa")
    inside = tip.bounding_box()
    assert inside["x"] >= 0 and inside["x"] + inside["width"] <= shown.viewport_size["width"]


def test_a_point_of_a_figure_tells_itself(show, page):
    shown = show(page)
    shown.locator("figure [data-tip]").first.hover(force=True)
    assert "optimizer step" in shown.locator("#tip").inner_text()


def test_what_was_said_is_folded_and_opens(show, page):
    shown = show(page)
    talk = shown.locator(".talk").first
    assert not talk.is_visible()
    summary = shown.locator("details.harm > summary").last
    assert "may hold harmful text" in summary.inner_text()
    summary.focus()
    shown.keyboard.press("Enter")
    assert talk.is_visible() and shown.title().startswith("Safety of base")
    assert "<script>document.title" in talk.inner_text() and "⟨U+202E⟩" in talk.inner_text()


def test_the_step_player_is_folded_and_plays(show, page):
    shown = show(page)
    canvas = shown.locator(".canvas").first
    assert not canvas.is_visible()
    shown.locator("details.harm > summary").first.click()
    assert canvas.is_visible()
    assert canvas.inner_text().count("t40") == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_colours_can_be_read(show, contrast, page, scheme):
    shown = show(page, color_scheme=scheme, **PHONE)
    for details in shown.locator("details").all():
        details.evaluate("one => one.open = true")
    assert shown.evaluate("document.documentElement.scrollWidth") <= 375
    shown.evaluate(CELLS)
    ratios = contrast(shown, "td[class^=h]")
    assert len(ratios) > 10 and min(ratios) >= 4.5


def test_it_can_be_heard(show, page):
    shown = show(page)
    found = shown.evaluate(
        """() => ({
          main: document.querySelectorAll("main").length,
          nav: document.querySelector("nav").getAttribute("aria-label"),
          broken: [...document.querySelectorAll("nav a, .claims a")]
            .filter((link) => !document.querySelector(link.getAttribute("href"))).length,
          ids: [...document.querySelectorAll("[id]")].map((one) => one.id),
          levels: [...document.querySelectorAll("h1, h2, h3, h4")].map((one) => Number(one.tagName[1])),
          tables: [...document.querySelectorAll("table")].filter((one) => !one.caption?.textContent.trim()).length,
          heads: document.querySelectorAll("th:not([scope])").length,
          pictures: [...document.querySelectorAll("svg")]
            .filter((one) => !one.ariaLabel && one.getAttribute("aria-hidden") !== "true").length,
        })"""
    )
    assert found["main"] == 1 and found["nav"] and found["broken"] == 0
    assert len(set(found["ids"])) == len(found["ids"])
    assert found["levels"][0] == 1 and found["levels"].count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(found["levels"]))
    assert found["tables"] == found["heads"] == found["pictures"] == 0
