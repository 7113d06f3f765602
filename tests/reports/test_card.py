"""`report --card`: an adapter's card from the runs that are of it; what a person wrote stays."""

import json

import pytest
import report_world as world
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from midward.alignment import resolve
from midward.alignment.card import REGION, card
from midward.alignment.methods import METHODS
from midward.errors import InputError
from midward.reports.card import fill

ADAPTED = "f00d"


@pytest.fixture
def adapter(tmp_path):
    """An adapter's folder as align leaves it, as far as a card goes."""
    return folder_of(tmp_path / "adapters" / "mosa")


def folder_of(folder, fingerprint=ADAPTED):
    counts = {"prompts": 3, "hash": "0a1b"}
    record = {"model": "org/base", "model_fingerprint": "beef", "config": resolve({}).to_dict(), "steps": 7}
    record |= {"data": counts, "benign": counts, "sentences": None, "versions": {"midward": "0.1.0"}}
    record |= {"fingerprint": fingerprint} if fingerprint else {}
    world.write(folder / "align.json", record)
    world.write(folder / "adapter_config.json", {})
    (folder / "README.md").write_text(card(record, METHODS["mosa"]), encoding="utf-8")
    return folder


def attack(folder, fingerprint=ADAPTED, **more):
    """A finished attack of the base and of an adapter of this fingerprint."""
    world.attack(folder, **more)
    record = json.loads((folder / "run.json").read_text())
    for model, has in zip(record["models"], ("beef", fingerprint), strict=True):
        model["fingerprint"] = has
    world.write(folder / "run.json", record)
    return folder


def change(folder, name, **more):
    value = json.loads((folder / name).read_text())
    world.write(folder / name, value | more)
    return value


def measured(text):
    return text.split(REGION[0])[1].split(REGION[1])[0]


def test_a_table_a_model_index_and_what_was_not_measured_by_two_files_alone(adapter, tmp_path):
    run = attack(tmp_path / "runs" / "a")
    for path in [*run.glob("*.csv"), *run.glob("logs/*")]:
        path.unlink()
    filled = fill([tmp_path / "runs"], adapter)
    assert filled.runs == ["runs/a"] and filled.left_out == []
    read = ModelCard.load(adapter / "README.md")
    row = next(line for line in measured(read.text).splitlines() if line.startswith("| prefill"))
    assert "90.0 % [85.0, 95.0] (n 60)" in row and "0.0 % [0.0, 6.0] (n 60)" in row
    assert "Not measured: what the model can still do" in read.text and "harmless requests are refused" in read.text
    [result] = read.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("attack_success_rate", 0.0, "advbench")
    args = {name: result.metric_args[name] for name in ("attack", "judge", "low", "high", "n", "unscored")}
    assert args == {"attack": "prefill", "judge": "oracle", "low": 0, "high": 0.06, "n": 60, "unscored": 0}
    assert read.data.base_model == "org/base" and read.data.model_name == "mosa"


def test_twice_changes_nothing_and_another_run_takes_the_place_of_the_first(adapter, tmp_path):
    for name in ("a", "b"):
        attack(tmp_path / "runs" / name, attack=name)
    fill([tmp_path / "runs"], adapter)
    first = (adapter / "README.md").read_bytes()
    fill([tmp_path / "runs"], adapter)
    assert (adapter / "README.md").read_bytes() == first
    fill([tmp_path / "runs" / "b"], adapter)
    read = ModelCard.load(adapter / "README.md")
    assert [result.metric_args["attack"] for result in read.data.eval_results] == ["b"]
    assert "| a |" not in read.text and "| b |" in read.text


def test_what_a_person_wrote_stays(adapter, tmp_path):
    attack(tmp_path / "runs")
    path = adapter / "README.md"
    text = path.read_text()
    theirs = {"type": "accuracy", "value": 0.5, "name": "of mine"}
    metadata = "language: en\nmodel-index:\n- name: my name\n  results:\n  - task: {type: t}\n"
    metadata += f"    dataset: {{name: d, type: d}}\n    metrics: [{json.dumps(theirs)}]\n"
    text = text.replace("license: unknown\n", f"license: mit\n{metadata}")
    path.write_text(text.replace("## Safety", "Written by me.\n\n## Safety").rstrip() + "\n\nMine too.\n")
    for _ in range(2):
        fill([tmp_path / "runs"], adapter)
        read = ModelCard.load(path)
        assert read.text.count("Written by me.") == read.text.count("Mine too.") == 1 and read.text.endswith("too.\n")
        assert (read.data.license, read.data.language, read.data.model_name) == ("mit", "en", "my name")
        assert [result.metric_type for result in read.data.eval_results] == ["accuracy", "attack_success_rate"]


@settings(max_examples=40)
@given(st.lists(st.sampled_from([*REGION, "text", "\n\n", "---\n", "| a |"]), max_size=9).map("".join))
def test_whatever_became_of_the_comments_a_second_time_changes_nothing(tmp_path_factory, text):
    top = tmp_path_factory.mktemp("card")
    folder, run = folder_of(top / "mosa"), attack(top / "run")
    before = text.split(REGION[0])[0].rstrip()
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{text}")
    fill([run], folder)
    once = (folder / "README.md").read_text()
    fill([run], folder)
    assert (folder / "README.md").read_text() == once
    read = ModelCard(once)
    assert read.text.startswith(before) and read.text.count("with the adapter") >= 1
    assert read.text.count("text") >= text.split(REGION[0])[0].count("text")


def test_runs_of_anything_else_are_left_out_with_a_line(adapter, tmp_path):
    attack(tmp_path / "runs" / "a")
    attack(tmp_path / "runs" / "retrained", fingerprint="dead")
    world.utility(tmp_path / "runs" / "bare")
    seeds = attack(tmp_path / "runs" / "seeds")
    models = json.loads((seeds / "run.json").read_text())["models"]
    change(seeds, "run.json", models=[*models, models[1] | {"adapter": "mosa-1", "fingerprint": "5eed"}])
    going = attack(tmp_path / "runs" / "going")
    (going / "summary.json").unlink()
    again = attack(tmp_path / "runs" / "again")
    change(again, "run.json", finished=None)  # its summary is that of an earlier time
    torn = attack(tmp_path / "runs" / "torn")
    world.write(torn / "summary.json", {"judges": ["x"]})
    world.adapter(tmp_path / "runs" / "aligned")
    world.run(tmp_path / "runs" / "gate", "gate", {"verdict": "held"}, models=())
    filled = fill([tmp_path / "runs"], adapter)
    assert filled.runs == ["runs/a"]
    reasons = dict(filled.left_out)
    assert reasons.keys() == {f"runs/{name}" for name in ("retrained", "bare", "seeds", "going", "again", "torn")}
    assert "not of this adapter" in reasons["runs/retrained"] and "2 training seeds" in reasons["runs/seeds"]
    assert all(reasons[f"runs/{name}"].startswith("isn't finished") for name in ("going", "again"))


@pytest.mark.parametrize("wrong", world.CANNOT_BE)
def test_a_rate_that_cannot_be_is_in_no_card(adapter, tmp_path, wrong):
    for name in ("good", "bad"):
        attack(tmp_path / "runs" / name)
    world.spoil(tmp_path / "runs" / "bad", **wrong)
    filled = fill([tmp_path / "runs"], adapter)
    assert filled.runs == ["runs/good"]
    [(label, why)] = filled.left_out
    assert label == "runs/bad" and why.isprintable()
    assert {result.metric_value for result in ModelCard.load(adapter / "README.md").data.eval_results} == {0.0}


def test_without_a_run_of_it_the_card_stays_as_it_is(adapter, tmp_path):
    before = (adapter / "README.md").read_bytes()
    attack(tmp_path / "runs", fingerprint="dead")
    with pytest.raises(InputError, match=r"no run below .* is of the adapter in .*not of this adapter"):
        fill([tmp_path / "runs"], adapter)
    assert (adapter / "README.md").read_bytes() == before


def test_an_adapter_without_a_fingerprint_is_told_by_its_folder(tmp_path):
    folder = folder_of(tmp_path / "mine", fingerprint=None)
    for name, place in (("a", folder), ("b", tmp_path / "other" / "mine")):
        run = attack(tmp_path / "runs" / name)
        models = json.loads((run / "run.json").read_text())["models"]
        change(run, "run.json", models=[models[0], models[1] | {"adapter": str(place)}])
    assert fill([tmp_path / "runs"], folder).runs == ["runs/a"]


def test_a_guard_in_front_has_a_column_and_is_in_no_model_index(adapter, tmp_path):
    run = attack(tmp_path / "runs")
    models = json.loads((run / "run.json").read_text())["models"]
    change(run, "run.json", models=[models[0], models[1] | {"guard": "guards/sri.safetensors"}])
    fill([run], adapter)
    read = ModelCard.load(adapter / "README.md")
    assert "with the adapter, behind sri" in read.text and read.data.eval_results is None


HOSTILE = "x\n---\nlicense: mit\n# <img src=x> [a](http://b) | *c* `d` " + REGION[1] + REGION[0] + "\u202e\0"


def test_hostile_names_stay_text_in_markdown_and_in_the_metadata(adapter, tmp_path):
    run = attack(tmp_path / "runs", attack=HOSTILE)
    text = json.dumps(json.loads((run / "summary.json").read_text()))
    for name in ("oracle", "advbench"):
        text = text.replace(json.dumps(name), json.dumps(HOSTILE + name))
    world.write(run / "summary.json", json.loads(text) | {"warning": HOSTILE})
    models = json.loads((run / "run.json").read_text())["models"]
    change(
        run, "run.json", models=[model | {"guard": None, "adapter": model["adapter"] and HOSTILE} for model in models]
    )
    fill([run], adapter)
    first = (adapter / "README.md").read_bytes()
    fill([run], adapter)
    assert (adapter / "README.md").read_bytes() == first
    read = ModelCard.load(adapter / "README.md")
    assert read.data.license == "unknown" and len(read.data.eval_results) == 1
    tokens = MarkdownIt("commonmark").enable("table").parse(read.text)
    assert not {"image", "link_open", "html_inline"} & {c.type for t in tokens for c in t.children or ()}
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [*REGION]
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter"),
        (lambda folder: (folder / "README.md").unlink(), "holds no card"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "can't be read"),
        (lambda folder: (folder / "README.md").write_text("---\n- a\n---\n"), "can't be read"),
        (lambda folder: (folder / "README.md").write_text("---\nmodel-index: 3\n---\n"), "can't be read"),
        (lambda folder: (folder / "README.md").write_bytes(b"\xff\xfe"), "can't be read"),
        (lambda folder: (folder / "align.json").write_text("["), "can't be read"),
        (lambda folder: (folder / "align.json").write_text("[]"), "can't be read"),
    ],
)
def test_a_folder_that_is_no_adapter_with_a_card_is_refused(adapter, tmp_path, spoil, message):
    attack(tmp_path / "runs")
    spoil(adapter)
    with pytest.raises(InputError, match=message):
        fill([tmp_path / "runs"], adapter)


def test_from_the_command_line(midward, adapter, tmp_path):
    attack(tmp_path / "runs" / "a")
    world.utility(tmp_path / "runs" / "u")
    done = midward("report", tmp_path / "runs", "--card", adapter)
    assert done.exit_code == 0 and "left out  runs/u is of org/base" in done.stderr
    assert not (tmp_path / "report.html").exists()
    done = midward("report", tmp_path / "runs", "--board", "--out", tmp_path / "b.html")
    assert done.exit_code == 0 and "runs      1; open" in done.stderr
    for flags in (["--card", adapter, "--board"], ["--card", adapter, "--redact"], ["--board", "--unfold"]):
        assert midward("report", tmp_path / "runs", *flags).exit_code == 2
    assert midward("report", tmp_path / "runs", "--card", tmp_path / "nowhere").exit_code == 2
