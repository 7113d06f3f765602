"""Our models behind lm-evaluation-harness: its requests, its tasks, several processes."""

import json
import math
import multiprocessing
import random
import sys

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from near import near

from midward.sampling import Sampling, sample
from midward.utility import Answers, MidwardLM, harness

GIVEN = {"steps": 3}


def text(context, **kwargs):
    return Instance("generate_until", {}, (context, {"until": [], **kwargs}), 0, ("task", 0, 1))


def score(context, continuation):
    return Instance("loglikelihood", {}, (context, continuation), 0, ("task", 0, 1))


# --- requests --------------------------------------------------------------------------------------------------


def test_the_response_has_the_length_that_the_task_asks_for(lively):
    told = []
    lm = MidwardLM(lively, sampling={"block": 4}, say=told.append)
    [found, _, _] = lm.generate_until([text("t30 t31", max_gen_toks=6)] + [text("t32", max_gen_toks=6)] * 2)
    # 128 steps of 128 positions: as many a position; whole blocks, the last of them cut
    [expected] = sample(lively, [[30, 31]], Sampling(length=8, steps=8, block=4))
    assert found == lively.decode(expected.ids[:6])
    assert told == ["max_gen_toks 6: 8 response positions, 8 steps, in blocks of 4"]


def test_a_given_length_goes_before_the_tasks(lively):
    told = []
    lm = MidwardLM(lively, sampling={"length": 5, "steps": 5}, say=told.append)
    [found] = lm.generate_until([text("t30 t31", max_gen_toks=400, top_p=0.9)])
    [expected] = sample(lively, [[30, 31]], Sampling(length=5, steps=5))
    assert found == expected.text
    assert told == ["the task's top_p=0.9 isn't followed", "responses have 5 positions as given, not the task's 400"]


@pytest.mark.parametrize("name", ["lively", "llama"])
def test_stop_texts_cut_and_end_a_response_early(name, request):
    model = request.getfixturevalue(name)
    block = {"block": 4} if name == "lively" else {}
    steps = []
    hidden = model.hidden
    model.hidden = lambda ids, *more: steps.append(len(ids)) or hidden(ids, *more)
    ask = lambda until: MidwardLM(model, sampling=block).generate_until(  # noqa: E731
        [text(context, max_gen_toks=32, until=until) for context in ("t30 t31", "t32", "t33 t34 t35")]
    )
    whole = ask([])
    words = whole[0].split()
    assert len(words) > 8
    taken = len(steps)
    steps.clear()
    stop = words[5]
    assert ask(["absent", "", stop]) == [one.split(stop)[0] for one in whole]
    assert sum(steps) < 3 * taken


def test_sampled_repeats_differ_and_greedy_ones_do_not(lively):
    lm = MidwardLM(lively, sampling=GIVEN)
    warm = lm.generate_until([text("t30", max_gen_toks=8, do_sample=True, temperature=1.0)] * 3)
    assert len(set(warm)) > 1
    assert len(set(lm.generate_until([text("t30", max_gen_toks=8, temperature=0.0)] * 3))) == 1


def test_prompts_lose_their_beginning_where_there_is_no_room(llama):
    told = []
    lm = MidwardLM(llama, say=told.append)  # 128 positions
    long = " ".join(f"t{30 + n % 90}" for n in range(200))
    [found] = lm.generate_until([text(long, max_gen_toks=28)])
    [expected] = sample(llama, [lm.tok_encode(long)[-100:]], Sampling.for_model(llama, length=28))
    assert found == expected.text
    assert told == ["prompts longer than 100 tokens lose their beginning (128 positions)"]
    with pytest.raises(ValueError, match="has 128 positions, and 256 behind the prompt leave none"):
        lm.generate_until([text("t30")])


def test_pairs_are_split_as_the_harness_splits_them(lively):
    lm = MidwardLM(lively, answers=Answers(lively, draws=16))
    [joined, spaced, empty, nothing] = lm.loglikelihood(
        [score("t30 t31", " t40 t41"), score("t30 t31 ", "t40 t41"), score("", "t40"), score("t30", "")]
    )
    [direct, alone] = Answers(lively, draws=16).log_probs([((30, 31), (40, 41)), ((0,), (40,))])
    assert joined == spaced == (pytest.approx(direct.total, abs=1e-4), direct.greedy)
    assert empty[0] == pytest.approx(alone.total, abs=1e-4)  # behind the token that begins texts
    assert nothing == (0.0, True)


def test_a_rolling_likelihood_covers_every_token_once(llama):
    lm = MidwardLM(llama)
    ids = [30 + n % 90 for n in range(300)]
    request = Instance("loglikelihood_rolling", {}, (" ".join(f"t{n}" for n in ids),), 0, ("task", 0, 1))
    [short] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("t30 t31 t32",), 0, ("task", 0, 1))])
    [expected] = Answers(llama).log_probs([((0,), (30, 31, 32))])
    assert short == pytest.approx(expected.total, abs=1e-4)
    pieces = []
    lm.answers.log_probs = lambda pairs, greedy: pieces.extend(pairs) or Answers(llama).log_probs(pairs)
    [whole] = lm.loglikelihood_rolling([request])
    assert [token for _, continuation in pieces for token in continuation] == ids
    assert all(len(context) + len(continuation) <= 128 for context, continuation in pieces)
    assert whole < short


def test_conversations_are_encoded_as_the_model_does(lively):
    lm = MidwardLM(lively)
    turns = [{"role": "user", "content": "t30 t31"}]
    assert lm.tok_encode(lm.apply_chat_template(turns)) == lively.encode(turns)
    opened = lm.apply_chat_template([*turns, {"role": "assistant", "content": "t32"}], add_generation_prompt=False)
    assert opened.rstrip().endswith("t32")
    assert lm.device == lively.device and "/" not in lm.tokenizer_name


# --- tasks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(tasks_folder):
    return harness.load(["tiny_choice", "tiny_text"], include=tasks_folder)


def lm_of(model, folder=None):
    return MidwardLM(model, sampling=GIVEN, answers=Answers(model, folder=folder, draws=8), greedy=False)


def test_rows_are_what_the_model_says(lively, loaded):
    rows, reports = harness.run(lm_of(lively), loaded)
    assert {(row["task"], row["measure"]): 5 for row in rows} == {
        ("tiny_choice", "acc"): 5,
        ("tiny_choice", "acc_norm"): 5,
        ("tiny_text", "exact_match"): 5,
    }
    for row in rows:
        if row["measure"] == "acc":
            scores = [float(one) for one in row["response"].split()]
            prompt = tuple(lively.tokenizer.encode(row["prompt"]))
            n = 30 + int(row["id"])
            options = [(40,), (60 + n,), (42, 43)]
            direct = Answers(lively, draws=8).log_probs([(prompt, ids) for ids in options])
            assert scores == pytest.approx([one.total for one in direct], abs=2e-4)
            assert row["value"] == float(scores.index(max(scores)) == int(row["target"]))
    accuracy = [row["value"] for row in rows if row["measure"] == "acc"]
    assert reports["tiny_choice"]["tiny_choice"]["acc,none"] == pytest.approx(sum(accuracy) / 5)


def test_a_limit_takes_the_first(lively, loaded):
    rows, _ = harness.run(lm_of(lively), loaded, limit=2)
    assert {row["id"] for row in rows} == {"0", "1"}


def _process(rank, folder, loaded, model, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    rows, reports = harness.run(lm_of(model, folder / "answers"), loaded)
    queue.put((rank, rows, json.dumps(reports, default=str)))
    torch.distributed.barrier()


def test_two_processes_give_one_processs_rows(lively, loaded, tmp_path):
    alone, reports = harness.run(lm_of(lively), loaded)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    folder = tmp_path / "two"
    folder.mkdir()
    started = [context.Process(target=_process, args=(rank, folder, loaded, lively, queue)) for rank in (0, 1)]
    for one in started:
        one.start()
    found = dict((rank, more) for rank, *more in (queue.get(timeout=60) for _ in started))
    for one in started:
        one.join()
    assert found[1] == [[], "{}"]
    assert [{**row, "response": None} for row in found[0][0]] == near([{**row, "response": None} for row in alone])
    assert json.loads(found[0][1])["tiny_choice"]["tiny_choice"]["acc,none"] == pytest.approx(
        reports["tiny_choice"]["tiny_choice"]["acc,none"]
    )
    shares = [(folder / "answers" / f"answers-{rank}.jsonl").read_text().count("\n") for rank in (0, 1)]
    assert min(shares) > 0


def test_loading_leaves_random_numbers_alone(tasks_folder):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    harness.load(["tiny_text"], include=tasks_folder)
    assert random.random() == expected


# --- what can't be done ----------------------------------------------------------------------------------------------


def test_a_missing_harness_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'midward\[lm-eval\]'"):
        harness.load(["gsm8k"])


def test_data_that_are_nowhere_are_named():
    with pytest.raises(ValueError, match=r"the data of the task 'gsm8k'.*load_dataset\('openai/gsm8k', 'main'\)"):
        harness.load(["gsm8k"])


@pytest.mark.parametrize("name", ["tiny_program", "humaneval", "humaneval_instruct"])
def test_code_takes_leave(tasks_folder, name):
    with pytest.raises(ValueError, match=f"{name}.*--allow-code-execution"):
        harness.load([name], include=tasks_folder)


def test_code_that_is_not_judged_here_is_refused_with_leave_too():
    with pytest.raises(ValueError, match="only HumanEval's are judged here, not 'mbpp'"):
        harness.load(["mbpp"], allow_code=True)


@pytest.fixture
def own_index(monkeypatch):
    """No tasks but those of the test's folder: the whole index takes a minute to read."""
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: whole(**{**given, "include_defaults": False}))


PROGRAM = {"dataset_path": "json", "doc_to_text": "{{q}}", "output_type": "generate_until", "unsafe_code": True}


@pytest.mark.parametrize(
    "members",
    [
        ["tiny_program"],
        [{"task": "tiny_program", "num_fewshot": 0}],
        [{"task": "tiny_choice", "unsafe_code": True}],
        [{"task": "mine", **PROGRAM}],
        [{"group": "programs", "num_fewshot": 0}],
        [{"group": "tiny_group", "unsafe_code": True}],
        [{"group": "new", "task": ["tiny_choice", {"task": "tiny_program"}]}],
        [{"group": "new", "task": [{"group": "programs"}]}],
        ["tiny_tag"],
    ],
)
def test_code_takes_leave_wherever_a_group_has_it_from(tasks_folder, own_index, members):
    groups = {"mixed": members, "programs": ["tiny_program"], "tiny_group": ["tiny_choice"]}
    for name, some in groups.items():
        (tasks_folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": some}))
    tagged = (tasks_folder / "tiny_program.yaml").read_text() + "tag: tiny_tag\n"
    (tasks_folder / "tiny_program.yaml").write_text(tagged)
    with pytest.raises(ValueError, match=r"'mixed' runs programs.*--allow-code-execution"):
        harness.load(["mixed"], include=tasks_folder)
    with pytest.raises(ValueError, match="only HumanEval's are judged here, not 'mixed'"):
        harness.load(["mixed"], include=tasks_folder, allow_code=True)


def test_code_that_only_the_loaded_task_tells_of_takes_leave_too(lively, tasks_folder, monkeypatch):
    """A group's own entries change its tasks, for instance; whatever is overlooked in the files is refused at last."""
    loaded = harness.load(["tiny_program"], include=tasks_folder, allow_code=True)
    monkeypatch.setattr(harness, "_configs", lambda manager, one: iter([{}]))
    (tasks_folder / "group.yaml").write_text("group: tiny\ntask: [tiny_choice]\nunsafe_code: true\n")
    with pytest.raises(ValueError, match="'tiny' runs programs"):
        harness.load(["tiny"], include=tasks_folder)
    [task] = loaded["tiny_program"]["tasks"].values()
    monkeypatch.setattr(task.config, "process_results", lambda doc, results: {"pass@1": 1.0})
    with pytest.raises(ValueError, match="marked as unsafe"):
        harness.run(lm_of(lively), loaded)


def test_members_with_settings_are_looked_up(tasks_folder, own_index):
    told = []
    members = [{"task": "tiny_choice", "num_fewshot": 0}, {"group": "new", "task": [{"task": "tiny_text"}]}]
    (tasks_folder / "mixed.yaml").write_text(yaml.safe_dump({"group": "mixed", "task": members}))
    loaded = harness.load(["mixed"], include=tasks_folder, say=told.append)
    assert set(loaded["mixed"]["tasks"]) == {"tiny_choice", "tiny_text"} and not told
    (tasks_folder / "more.yaml").write_text(yaml.safe_dump({"group": "more", "task": [{"task": "absent"}]}))
    with pytest.raises(ValueError, match="no task is called 'absent'"):
        harness.load(["more"], include=tasks_folder, say=told.append)
    assert told == ["looking through all of the harness's tasks: a minute or more"]


MEASURES = """
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["t7"], max_gen_toks: 6}
process_results: !function measures.values
metric_list:
- {metric: share, aggregation: mean, higher_is_better: true}
- {metric: points, aggregation: mean, higher_is_better: true}
- {metric: loss, aggregation: perplexity, higher_is_better: false}
- {metric: pair, aggregation: !function measures.first, higher_is_better: true}
"""


def test_what_is_no_share_is_left_to_the_harness(lively, tasks_folder):
    (tasks_folder / "measures.py").write_text(
        "def values(doc, results):\n"
        "    return {'share': 0.5, 'points': 50.0, 'loss': 0.5, 'pair': (1, 2), 'other': 1.0}\n"
        "def first(items):\n    return items[0][0]\n"
    )
    text = (tasks_folder / "tiny_text.yaml").read_text()
    data = text.splitlines()[-1]
    (tasks_folder / "tiny_measures.yaml").write_text(
        f"task: tiny_measures\ndataset_path: json\ntest_split: test\n{MEASURES}{data}\n"
    )
    told = []
    loaded = harness.load(["tiny_measures"], include=tasks_folder)
    lm = MidwardLM(lively, sampling=GIVEN, answers=Answers(lively), say=told.append)
    rows, reports = harness.run(lm, loaded, limit=2)
    assert {row["measure"] for row in rows} == {"share", "other"} and len(rows) == 4
    assert reports["tiny_measures"]["tiny_measures"]["points,none"] == 50
    [line] = [line for line in told if "share" in line]
    assert line == "tiny_measures: of what is no share of samples only the task's own value is kept: points, loss, pair"


def test_an_unknown_task_is_told_with_a_near_one(tasks_folder, own_index):
    with pytest.raises(ValueError, match=r"no task is called 'tiny_choise'.*Did you mean 'tiny_choice'"):
        harness.load(["tiny_choise"], include=tasks_folder)
    with pytest.raises(ValueError, match="is no folder"):
        harness.load(["tiny_choice"], include=tasks_folder / "absent")


def test_a_group_is_all_its_tasks(lively, tasks_folder):
    (tasks_folder / "group.yaml").write_text("group: tiny\ntask: [tiny_choice, tiny_text]\n")
    loaded = harness.load(["tiny"], include=tasks_folder)
    rows, _ = harness.run(lm_of(lively), loaded, limit=2)
    assert {(row["task"], row["subtask"]) for row in rows} == {("tiny", "tiny_choice"), ("tiny", "tiny_text")}
    assert all(not math.isnan(row["value"]) for row in rows)
