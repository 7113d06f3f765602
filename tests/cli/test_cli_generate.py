"""`midward generate`."""

import json
import shutil

import pytest


def read(path):
    # Not splitlines(): a text may hold U+2028 and its like.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def test_one_prompt_goes_to_stdout_and_nothing_else_does(midward, tiny, llada):
    result = midward("generate", "t30 t31", *tiny)
    assert result.exit_code == 0
    assert result.stdout == llada.generate("t30 t31", length=12, steps=6)[0].text + "\n"


def test_a_prompt_from_standard_input(midward, tiny, llada):
    result = midward("generate", "-", *tiny, stdin="t30 t31\n")
    assert result.exit_code == 0
    assert result.stdout == llada.generate("t30 t31", length=12, steps=6)[0].text + "\n"
    empty = midward("generate", "-", *tiny, stdin="\n")
    assert empty.exit_code == 2 and "the prompt is empty." in empty.stderr


def test_a_folder_without_a_chat_template_is_told_before_anything_is_asked(midward, tiny, llada_folder, tmp_path):
    bare = shutil.copytree(llada_folder, tmp_path / "bare")
    config = bare / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "p.csv").write_text("prompt\nt30\n")
    tiny = [bare if flag == llada_folder else flag for flag in tiny]
    for verb in (
        ["generate", "--prompts", tmp_path / "p.csv", "--out", tmp_path / "out.jsonl"],
        ["attack", "--attacks", "direct", "--goals", "sandbox", "--limit", 1, "--out", tmp_path / "out"],
    ):
        result = midward(verb[0], *tiny, *verb[1:])
        assert result.exit_code == 2 and "has no chat template" in result.stderr
    assert not list(tmp_path.glob("out/logs/*")) and not (tmp_path / "out.jsonl").exists()


def test_a_file_in_advbenchs_format(midward, tiny, llada, advbench, tmp_path):
    out = tmp_path / "deep" / "out.jsonl"
    result = midward("generate", *tiny, "--prompts", advbench, "--column", "goal", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "5 rows in" in result.stderr
    assert "1 of them without a response; the first: row 3 has an empty prompt" in result.stderr
    rows = read(out)
    assert [row["prompt"] for row in rows] == [
        't30 "t31", t32',
        "t33\nt34\r\nt35",
        "t36 é 😀 \u2028 t37",
        "",
        "[bold]t38[/bold]",
    ]
    assert [row["target"] for row in rows][1:3] == ['a "quoted" one', ""]
    for row in rows[:3]:
        assert row["response"] == llada.generate(row["prompt"], length=12, steps=6)[0].text

    again = midward("generate", *tiny, "--prompts", advbench, "--column", "goal", "--out", out)
    assert again.exit_code == 0 and read(out) == rows
    command = json.loads(out.with_name("out.jsonl.run.json").read_text())["command"]
    assert command[:2] == ["midward", "generate"] and "--out" not in command
    shown = midward(*command[1:], "--out", tmp_path / "as recorded.jsonl")  # it makes the same rows
    texts = [[row["response"] for row in made] for made in (rows, read(tmp_path / "as recorded.jsonl"))]
    assert shown.exit_code == 0 and texts[0] == texts[1]
    other = midward("generate", *tiny, "--prompts", advbench, "--column", "goal", "--out", out, "--seed", 1)
    assert other.exit_code == 2 and "seed 0 there, 1 here" in other.stderr and read(out) == rows


def test_rows_without_the_column_are_told_beside_an_agreement(midward, tiny, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"note": "no prompt"}\n{"prompt": "t30"}\n')
    result = midward(
        "generate", *tiny, "--threshold", 0.9, "--check-agreement", 2, "--prompts", path, "--out", tmp_path / "o.jsonl"
    )
    assert result.exit_code == 0, result.stderr
    assert "agreement " in result.stderr and "1 of them without a response" in result.stderr


@pytest.mark.parametrize(
    "args, message",
    [
        ([], 'give a prompt (midward generate "..."; - reads standard input) or --prompts FILE'),
        (["hello", "--prompts", "GOALS"], "one of them"),
        (["hello", "--out", "OUT"], "go together"),
        (["  "], "the prompt is empty"),
        (["--prompts", "GOALS"], "go together"),
        (["--prompts", "DIR/gaols.csv", "--out", "OUT"], "there is no file"),
        (["--prompts", "GOALS", "--out", "OUT", "--column", "goals"], "Did you mean 'goal'?"),
        (["--prompts", "GOALS", "--out", "GOALS", "--column", "goal"], "is the file that is read; give another one"),
        (["--prompts", "GOALS", "--out", "DIR", "--column", "goal"], "is a folder; give the path of a file"),
        (["--prompts", "GOALS", "--out", "GOALS/x.jsonl", "--column", "goal"], "can't be written"),
        (["--prompts", "GOALS", "--out", "/proc/x.jsonl", "--column", "goal"], "can't be written"),
        (["--prompts", "GOALS", "--out", "OUT", "--column", "goal", "--overwrite", "--limit", "0"], "--limit"),
    ],
)
def test_bad_arguments_are_told_before_a_model_is_loaded(midward, advbench, tmp_path, monkeypatch, args, message):
    monkeypatch.setattr("midward.load", lambda *args, **kwargs: pytest.fail("loaded"), raising=False)
    before = advbench.read_bytes()
    places = {"GOALS": advbench, "OUT": tmp_path / "out.jsonl", "DIR": tmp_path}
    for name, place in places.items():
        args = [arg.replace(name, str(place)) for arg in args]
    result = midward("generate", *args)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr
    assert advbench.read_bytes() == before and not (tmp_path / "out.jsonl").exists()


def test_settings_that_cannot_be_leave_no_file(midward, tiny, advbench, tmp_path):
    out = tmp_path / "out.jsonl"
    result = midward("generate", *tiny, "--block", 50, "--prompts", advbench, "--column", "goal", "--out", out)
    assert result.exit_code == 2 and "block must be between 1 and length=12; received 50" in result.stderr
    assert not out.exists()


def test_what_a_cache_changes_is_told(midward, tiny, llada, advbench, tmp_path):
    given = ["generate", *tiny, "--block", "4", "--prompts", advbench, "--column", "goal"]
    result = midward(*given, "--out", tmp_path / "a.jsonl", "--cache", "dual", "--check-agreement", 2)
    assert result.exit_code == 0, result.stderr
    assert "cache dual (approximate: dual cache)" in result.stderr.replace("\n", " ")
    assert "2 responses equal" in result.stderr
    [first, *_] = read(tmp_path / "a.jsonl")
    cached = llada.generate(first["prompt"], length=12, steps=6, block=4, cache="dual")
    assert first["response"] == cached[0].text
    again = midward(*given, "--out", tmp_path / "a.jsonl")
    assert again.exit_code == 2 and "cache dual there, not given here" in again.stderr
    nothing = midward(*given, "--out", tmp_path / "b.jsonl", "--check-agreement", 2)
    assert nothing.exit_code == 2 and "give one of them" in nothing.stderr
