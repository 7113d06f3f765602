"""The board: from two files of a run, at every width, whatever a run's names are."""

import json
import shlex

import pytest
import report_world as world
from markupsafe import Markup

from midward.errors import InputError
from midward.reports import board, html

COMMAND = ["midward", "attack", "--model", "org/base", "--goals", "a file.csv", "--attacks", "prefill,pad"]
HOSTILE = (
    "<img src=x onerror=\"document.title='got in'\">",
    "\"'></td><script>document.title = 'got in'</script>",
    "\u202eterces \0 {{ 7*7 }} </option>",
    "t99" * 300,
)
WIDTHS = (360, 800, 1440)
#: Pairs of elements that lie over each other, none of which holds the other, and elements whose text runs out of them.
COLLIDING = """() => {
  const chosen = "h1, .lead, .banner, label, #order, #count, tbody tr:nth-child(-n+12) :is(th, td, code, a)";
  const shown = [...document.querySelectorAll(chosen)].filter((one) => one.offsetParent !== null);
  const name = (one) => `${one.tagName} ${one.textContent.trim().slice(0, 30)}`;
  const boxes = shown.filter((one) => getComputedStyle(one).display !== "inline");
  const wrong = boxes.filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => `${name(one)} runs out`);
  for (const [place, one] of shown.entries()) for (const other of shown.slice(place + 1)) {
    if (one.contains(other) || other.contains(one)) continue;
    const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (width > 1 && height > 1) wrong.push(`${name(one)} over ${name(other)}`);
  }
  return wrong;
}"""

#: Words of the table that stand on two lines; a hyphen or a slash may end a line, but for a command's.
BROKEN = r"""() => {
  const broken = [], walk = document.createTreeWalker(document.querySelector("table"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, range = document.createRange();
    if (node.parentElement.closest("thead, caption")?.offsetWidth <= 1) continue;  // for screen readers alone
    const word = node.parentElement.closest("code") ? /\S+/g : /[^\s\/-]+/g;
    for (const {0: text, index} of node.data.matchAll(word)) {
      range.setStart(node, index); range.setEnd(node, index + text.length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(text);
    }
  }
  return broken;
}"""


def runs(top, count=1, names=("base", "mosa"), attacks=("prefill", "pad"), command=COMMAND, judge="oracle"):
    """Finished attacks as the board reads them: run.json and summary.json."""
    for number in range(count):
        share = number % 11 / 10
        rates = {attack: {name: world.rate(share, unscored=number % 3) for name in names} for attack in attacks}
        asr = {judge: {"reply": {"advbench": rates}}, "readable": {"reply": {}}}
        measures = {judge: "success", "readable": "refused"}
        summary = {"judges": [judge, "readable"], "measures": measures, "asr": asr, "warning": None}
        world.run(top / f"run{number}", "attack", summary, models=names, command=command)
    return top


def text_of(top, **more):
    board.write([top / "runs"], top / "b.html", **more)
    return (top / "b.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The board of 200 runs, 400 rates."""
    top = tmp_path_factory.mktemp("many")
    folders = [runs(top / attack, 100, attacks=(attack,)) for attack in ("prefill", "pad")]
    board.write(folders, top / "b.html")
    return top / "b.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The board of a run whose every name is hostile."""
    top = tmp_path_factory.mktemp("hostile")
    names = dict(zip(("names", "attacks"), (HOSTILE[:3], HOSTILE[1:]), strict=True))
    runs(top / "runs", 1, **names, command=[*COMMAND, *HOSTILE], judge=HOSTILE[0])
    summary = json.loads((top / "runs" / "run0" / "summary.json").read_text())
    by_text = summary["asr"][HOSTILE[0]]["reply"]
    by_text[HOSTILE[3]] = by_text.pop("advbench")
    world.write(top / "runs" / "run0" / "summary.json", summary | {"warning": HOSTILE[1]})
    (top / "runs" / "run0").rename(top / "runs" / "<img src=x> & 'run' #1?")
    record = json.loads(next(top.glob("runs/*/run.json")).read_text())
    record["models"] = [model | {"name": text, "guard": text} for model, text in zip(record["models"], HOSTILE)]
    world.write(next(top.glob("runs/*/run.json")), record)
    board.write([top / "runs"], top / "b.html")
    return top / "b.html"


# --- what is on it -------------------------------------------------------------------------------------------


def test_one_run_by_two_files_alone_with_n_interval_unscored_link_and_command(tmp_path):
    folder = world.attack(tmp_path / "runs" / "a")
    record = json.loads((folder / "run.json").read_text()) | {"command": COMMAND}
    world.write(folder / "run.json", record)
    for path in [*folder.glob("*.csv"), *folder.glob("logs/*")]:
        path.unlink()
    page = text_of(tmp_path)
    assert page.count("<tr role=") == 1 + 2
    for part in ("90.0 %", "[85.0, 95.0]", "unscored 0", 'href="runs/a/run.json"', "mosa", "org/base"):
        assert part in page
    assert shlex.join(COMMAND) in Markup(page).striptags() and "sandbox" not in page


def test_what_an_unfinished_run_measured_before_is_marked(tmp_path):
    folder = world.attack(tmp_path / "runs" / "a")
    assert "isn&#39;t finished" not in text_of(tmp_path)
    world.write(folder / "run.json", json.loads((folder / "run.json").read_text()) | {"finished": None})
    assert text_of(tmp_path).count("isn&#39;t finished") == 2  # a rate each


def test_a_refusal_is_no_attack_success_and_other_verbs_are_counted(tmp_path):
    runs(tmp_path / "runs")
    world.utility(tmp_path / "runs" / "u")
    world.attack(tmp_path / "runs" / "torn")
    (tmp_path / "runs" / "torn" / "summary.json").write_text('{"judges": ["x"]}')
    world.run(tmp_path / "runs" / "going", "attack", None, finished=None)
    found = board.write([tmp_path / "runs"], tmp_path / "b.html")
    page = (tmp_path / "b.html").read_text()
    assert "readable" not in page and [run.label for run in found.runs] == ["runs/run0"]
    assert "1 run of verbs that measure no attack success" in page
    assert {label for label, _ in found.troubles} == {"runs/torn", "runs/going"}
    assert "isn&#39;t finished" in page


@pytest.mark.parametrize("wrong", world.CANNOT_BE)
def test_a_rate_that_cannot_be_is_named_and_left_out(tmp_path, wrong):
    for name in ("good", "bad"):
        world.attack(tmp_path / "runs" / name)
    world.spoil(tmp_path / "runs" / "bad", **wrong)
    found = board.write([tmp_path / "runs"], tmp_path / "b.html")
    assert [run.label for run in found.runs] == ["runs/good"]
    [(label, why)] = found.troubles
    assert label == "runs/bad" and why.isprintable()


def test_guards_that_were_compared_are_defences(tmp_path):
    folder = world.guards(tmp_path / "runs")
    record = json.loads((folder / "run.json").read_text())
    record |= {"judges": [{"judge": "oracle"}], "settings": {}}
    record["models"] = [{"name": "org/base", "label": "sri", "guard": "guards/sri.safetensors"}]
    world.write(folder / "run.json", record)
    [run] = board.write([folder], tmp_path / "b.html").runs
    rows = {(row.defence, row.attack): row.rate.value for row in board.successes(run)}
    assert rows == {("none", "plain"): 0.8, ("sri", "plain"): 0.3}
    world.write(folder / "run.json", record | {"settings": {"--behind": "openai/other"}})
    [run] = board.write([folder], tmp_path / "b.html").runs
    assert {row.model for row in board.successes(run)} == {"openai/other"}  # the guards' model only reads


def test_training_seeds_are_one_defence_and_nothing_scored_has_no_number(tmp_path):
    runs(tmp_path / "runs", names=("base", "mosa"), attacks=("pad",))
    place = tmp_path / "runs" / "run0"
    record, summary = (json.loads((place / name).read_text()) for name in ("run.json", "summary.json"))
    record["models"].append(record["models"][1] | {"adapter": "mosa-1"})
    nothing = world.rate(0.0) | {"value": None, "n": 0, "goals": 0, "unscored": 5}
    summary["asr"]["oracle"]["reply"]["advbench"]["pad"]["base"] = nothing
    world.write(place / "run.json", record)
    world.write(place / "summary.json", summary)
    page = text_of(tmp_path)
    assert "mosa (2 seeds)" in page and "unscored 5" in page and "0.0 %" in page
    assert page.count('<svg class="forest"') == 1


@pytest.mark.parametrize("command", [[], ["rm", "-rf", "/"], ["midward", "serve"], ["midward"]])
def test_only_a_command_of_the_runs_own_verb_is_printed(tmp_path, command):
    runs(tmp_path / "runs", command=command)
    page = text_of(tmp_path)
    assert "no midward command made it" in page and "rm -rf" not in page


def test_redacted_no_path_and_no_text_is_on_it(tmp_path):
    runs(tmp_path / "runs", command=[*COMMAND, "--adapter", "/home/somebody/mosa", "--prompt", "t30 t31"])
    page = text_of(tmp_path, redact=True)
    assert "/home" not in page and "t30" not in page and "href=" not in page.split("<main")[1]
    assert "redacted: 7 characters" in Markup(page).striptags() and "mosa" in page


def test_the_same_runs_give_the_same_page_and_only_a_board_is_written_over(tmp_path):
    runs(tmp_path / "runs", 3)
    first = text_of(tmp_path)
    assert text_of(tmp_path) == first
    for text in ("<p>precious</p>", html.page("t", [html.Part(html.mark("report"))])):
        (tmp_path / "b.html").write_text(text)
        with pytest.raises(InputError, match="is no board of midward"):
            text_of(tmp_path)
        assert (tmp_path / "b.html").read_text() == text
    with pytest.raises(InputError, match=r"isn't called \.html"):
        board.write([tmp_path / "runs"], tmp_path / "board")


def test_without_a_rate_there_is_no_board(tmp_path):
    world.utility(tmp_path / "runs")
    with pytest.raises(InputError, match="no run of attack or guard eval"):
        text_of(tmp_path)
    world.run(tmp_path / "runs" / "a", "attack", {"judges": ["x"]})
    with pytest.raises(InputError, match="can't be read as a run of midward attack"):
        text_of(tmp_path)
    assert not (tmp_path / "b.html").exists()


# --- in a browser --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overlaps_nothing_is_cut_and_all_can_be_read(show, contrast, many, hostile, scheme):
    for page in (many, hostile):
        shown = show(page, color_scheme=scheme)
        for width in WIDTHS:
            shown.set_viewport_size({"width": width, "height": 900})
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.evaluate(COLLIDING) == []
        ratios = contrast(shown, "h1, p, label, select, input, button, .board tr:nth-child(-n+40) *:not(svg, svg *)")
        assert len(ratios) > 50 and min(ratios) >= 4.5


@pytest.mark.parametrize("width", [*WIDTHS, 1400])
def test_no_word_of_a_usual_name_is_broken(show, tmp_path, width):
    runs(tmp_path / "runs", names=("base", "mosa-initial"), attacks=("wildjailbreak", "rainbow"), judge="strongreject")
    board.write([tmp_path / "runs"], tmp_path / "b.html")
    shown = show(tmp_path / "b.html", viewport={"width": width, "height": 900})
    assert shown.evaluate(BROKEN) == []


def test_every_name_is_text_in_the_browser(show, hostile):
    shown = show(hostile)
    assert shown.title() == "Attack success of 3 models"
    assert shown.locator("img, .board script").count() == 0
    rows = shown.locator(".board tbody tr").all_inner_texts()
    assert len(rows) == 9
    for text in HOSTILE:
        assert all(html.visible(text) in row for row in rows)  # in the command, written out
    shown.locator("[data-filter=model]").select_option(index=1)
    assert shown.locator(".board tbody tr:visible").count() == 3
    link = shown.locator(".board a").first.evaluate("one => one.href")
    assert link.startswith("file://") and link.endswith("/run.json") and "#" not in link


def test_rows_are_filtered_searched_and_sorted(show, many):
    shown = show(many)
    visible = shown.locator(".board tbody tr:visible")
    assert shown.locator("#count").inner_text() == "400 of 400 shown"
    shown.locator("[data-filter=defence]").select_option("mosa")
    shown.locator("[data-filter=attack]").select_option("pad")
    assert shown.locator("#count").inner_text() == "100 of 400 shown" and visible.count() == 100
    shown.locator("#sort").select_option("success")
    values = [float(text.split()[0]) for text in visible.locator(".number").all_inner_texts()]
    assert values == sorted(values) and len(set(values)) == 11
    shown.get_by_role("button", name="Highest first").click()
    assert [float(text.split()[0]) for text in visible.locator(".number").all_inner_texts()] == sorted(values)[::-1]
    shown.locator("#search").fill("RUN17 pad")
    assert visible.count() == 1
    shown.locator("#search").fill("nothing like this")
    assert visible.count() == 0 and shown.get_by_text("No row has all of this").is_visible()


def test_what_was_not_scored_stands_last_either_way(show, tmp_path):
    runs(tmp_path / "runs", 2, attacks=("pad",))
    place = tmp_path / "runs" / "run0" / "summary.json"
    summary = json.loads(place.read_text())
    summary["asr"]["oracle"]["reply"]["advbench"]["pad"]["base"] = world.rate(0.0) | {"value": None, "n": 0}
    world.write(place, summary)
    text_of(tmp_path)
    shown = show(tmp_path / "b.html")
    shown.locator("#sort").select_option("success")
    for _ in range(2):
        texts = shown.locator(".board .number").all_inner_texts()
        assert texts[-1].strip() == "-" and "-" not in [text.strip() for text in texts[:-1]]
        shown.get_by_role("button", name="Highest first").click()


def test_without_scripts_every_row_is_there(show, many):
    shown = show(many, java_script_enabled=False)
    assert shown.locator(".board tbody tr:visible").count() == 400 and shown.locator("#controls").is_hidden()
