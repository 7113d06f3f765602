"""`midward trace`: a page and the traces beside it, for what is sampled now and for what was recorded."""

import json
import re
from itertools import pairwise

import pytest
from checkpoints import lora

from midward import Request, Sampling, Trace
from midward.dynamics import fit_anchors
from midward.guards import Exchange, MaskFilter, save
from midward.runs.run import Run

PROMPT = "t30 t31"


@pytest.fixture
def page(tmp_path):
    return tmp_path / "out" / "page.html"


def records(path):
    """The generations that a page holds."""
    found = re.search(r'<script type="application/json" id="player-data">(.*?)</script>', path.read_text())
    return json.loads(found[1])


def said(record):
    """The words of a record's tokens, and when each position was committed."""
    return [text for text, _ in record["tokens"]], record["commit"]


def test_the_page_plays_what_generate_answers(midward, tiny, llada, page):
    result = midward("trace", *tiny, "--prompt", PROMPT, "--forced", "3:t40", "--html", page)
    assert result.exit_code == 0 and result.stdout == f"open {page}\n"
    [record] = records(page)
    trace = Trace.load(page.with_suffix(".safetensors"))
    assert record["commit"] == trace.commit_step[0].tolist() and record["commit"][3] == -2
    assert record["steps"] == trace.predicted_steps(0) and record["total"] == 6
    assert trace.prompt_ids[0] == llada.encode(PROMPT)
    assert record["title"] == "llada-tiny" and PROMPT in page.read_text()


@pytest.mark.parametrize("redact", [False, True])
def test_a_folder_of_it_is_played_in_the_report(midward, tiny, tmp_path, redact):
    flags = ["--redact"] if redact else []
    result = midward("trace", *tiny, "--prompt", PROMPT, "--against", "ar", "--out", tmp_path / "trace", *flags)
    assert result.exit_code == 0 and result.stdout == f"open {tmp_path / 'trace' / 'index.html'}\n"
    assert midward("report", tmp_path / "trace", "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert 'id="player-0"' in page and (PROMPT in page) is not redact
    both = midward("trace", *tiny, "--prompt", PROMPT, "--out", tmp_path / "x", "--html", tmp_path / "x.html")
    assert both.exit_code == 2 and "one of them" in both.stderr


@pytest.mark.parametrize("redact", [False, True])
def test_a_folder_is_one_trace_s(midward, tiny, tmp_path, redact):
    folder, flags = tmp_path / "trace", ["--redact"] if redact else []
    command = ["trace", *tiny, "--out", folder, *flags]
    assert midward(*command, "-", "--forced", "3:t40", "--against", "ar", stdin=PROMPT).exit_code == 0
    recorded = Run.load(folder)
    assert recorded.verb == "trace" and recorded.finished
    if redact:
        assert PROMPT not in (folder / "run.json").read_text() and "t40" not in (folder / "run.json").read_text()
    else:
        page = (folder / "index.html").read_text()
        assert midward(*recorded.command[1:], "--out", folder).exit_code == 0
        assert (folder / "index.html").read_text() == page
    for change in (["t32"], [PROMPT, "--forced", "3:t40"], ["-"]):
        refused = midward(*command, *change, stdin="t33 t34")
        assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert Run.load(folder).settings == recorded.settings
    assert midward(*command, "t32", "--overwrite").exit_code == 0
    assert not (folder / "index-against.safetensors").exists()
    assert Run.load(folder).settings != recorded.settings


def test_a_prompt_is_taken_as_generate_takes_it(midward, tiny, page):
    assert midward("trace", *tiny, "--prompt", PROMPT, "--html", page).exit_code == 0
    written = page.read_text()
    for args, stdin in (([PROMPT], None), (["-"], f"{PROMPT}\n")):
        page.unlink()
        assert midward("trace", *tiny, *args, "--html", page, stdin=stdin).exit_code == 0
        assert page.read_text() == written


def test_a_recorded_trace_gives_the_same_page(midward, tiny, page, tmp_path):
    first = midward("trace", *tiny, "--prompt", PROMPT, "--against", "left_to_right", "--html", page)
    assert first.exit_code == 0 and "llada-tiny, left-to-right: 6 steps" in first.stderr
    again = tmp_path / "again.html"
    traces = [page.with_suffix(".safetensors"), page.with_name("page-against.safetensors")]
    result = midward("trace", *tiny, "--load", traces[0], "--load", traces[1], "--html", again)
    assert result.exit_code == 0 and again.read_text() == page.read_text()
    left, right = records(page)
    assert left["commit"] != right["commit"]
    when = [step for step in right["commit"] if step >= 0]
    assert all(before <= after for before, after in pairwise(when))


def test_another_adapter_and_none_stand_beside(midward, tiny, llada, page, tmp_path):
    lora(llada, tmp_path / "mosa")
    plain = midward("trace", *tiny, "--prompt", PROMPT, "--against", tmp_path / "mosa", "--html", page)
    assert plain.exit_code == 0
    base, adapted = records(page)
    assert [base["title"], adapted["title"]] == ["llada-tiny", "llada-tiny + mosa"]
    flags = ["--adapter", tmp_path / "mosa", "--against", "base", "--prompt", PROMPT, "--html", page]
    assert midward("trace", *tiny, *flags).exit_code == 0
    assert records(page) == [adapted, base] and said(base) != said(adapted)


def test_redacted_it_holds_no_words_and_keeps_no_trace(midward, tiny, page):
    result = midward("trace", *tiny, "--prompt", PROMPT, "--redact", "--html", page)
    assert result.exit_code == 0 and "[redacted: 7 characters" in page.read_text()
    assert PROMPT not in page.read_text() and {text for text, end in records(page)[0]["tokens"] if not end} == {"▒▒▒"}
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_anchors_draw_a_signal_where_they_fit(midward, tiny, llada, page, tmp_path):
    sampling = Sampling.for_model(llada, length=12, steps=6)
    prompts = [f"t{n} t31" for n in range(30, 38)]
    texts = iter([False] * 8 + [True] * 8)
    fitted = fit_anchors(llada, prompts, prompts, refused=lambda text: next(texts), sampling=sampling)
    [anchors] = fitted.values()
    path = anchors.save(tmp_path / "anchors.safetensors")
    flags = ["--anchors", path, "--against", "random"]
    result = midward("trace", *tiny, "--prompt", PROMPT, *flags, "--html", page)
    assert result.exit_code == 0
    fits, other = records(page)
    assert len(fits["signal"]) == 6 and all(0 <= value <= 1 for value in fits["signal"])
    assert other["signal"] is None and "order 'low_confidence' there" in result.stderr
    wrong = midward("trace", *tiny, "--prompt", PROMPT, "--seed", 1, "--steps", 4, "--anchors", path, "--html", page)
    assert wrong.exit_code == 2 and "nothing was watched" in wrong.stderr


def test_a_guard_may_let_nothing_begin(midward, tiny, llada, page, tmp_path):
    exchanges = [Exchange(Request(text)) for text in ("t30", "t31", "t32")]
    path = save(MaskFilter().fit(llada, exchanges, alpha=0.5), tmp_path / "masks.safetensors")
    mask = llada.tokenizer.convert_ids_to_tokens(llada.family.mask_id)
    for prompt, flagged in ((PROMPT, False), (f"t30 {mask}", True)):
        result = midward("trace", *tiny, "--prompt", prompt, "--guard", path, "--html", page)
        assert result.exit_code == 0, result.stderr
        [record] = records(page)
        assert record["verdict"]["flagged"] == flagged and bool(record["steps"]) != flagged


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "give a prompt"),
        (["t30", "--prompt", "t30"], "give a prompt"),
        (["--prompt", "t30", "--load", "x.safetensors"], "give a prompt"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "t30", "--forced", "t31"], "--forced is POSITION:TEXT"),
        (["--prompt", "t30", "--forced", "-1:t31"], "--forced is POSITION:TEXT"),
        (["--prompt", "t30", "--against", "base"], "--against base needs --adapter"),
        (["--prompt", "t30", "--against", "nothing"], "no adapter's folder"),
        (["--prompt", "t30", "--guard", "none.safetensors"], "there is no guard at none.safetensors"),
        (["--prompt", "t30", "--anchors", "none.safetensors"], "there is no file of anchors at"),
        (["--load", "none.safetensors"], "there is no trace at none.safetensors"),
        (["--load", "x", "--against", "random"], "--against goes with a prompt"),
        (["--prompt", "t30", "--html", "page.txt"], "a file that ends in .html"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(midward, tiny, page, args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = midward("trace", *tiny, "--html", page, *args)
    assert result.exit_code == 2 and message in result.stderr and "model  " not in result.stderr
    assert not page.exists()


@pytest.mark.parametrize("flags", [["--against", "native"], ["--threshold", "0.9", "--against", "dynamic"]])
def test_a_sampler_beside_itself_is_refused(midward, tiny, page, flags):
    result = midward("trace", *tiny, "--prompt", PROMPT, "--html", page, *flags)
    assert result.exit_code == 2 and "sampled already" in result.stderr and not page.exists()


def test_a_trace_of_other_requests_or_vocabulary_is_told(midward, tiny, page, tmp_path):
    assert midward("trace", *tiny, "--prompt", PROMPT, "--html", page).exit_code == 0
    recorded = page.with_suffix(".safetensors")
    result = midward("trace", *tiny, "--load", recorded, "--row", 3, "--html", page)
    assert result.exit_code == 2 and "holds no request 3; it has 0." in result.stderr
    trace = Trace.load(recorded)
    trace.prompt_ids[0][0] = 5000
    trace.save(recorded)
    result = midward("trace", *tiny, "--load", recorded, "--html", page)
    assert result.exit_code == 2 and "give the model that it was made with" in result.stderr
