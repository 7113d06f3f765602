"""HarmBench's classifier: its template, the clipping, its one word. The template here is invented."""

from functools import partial
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspect_ai.model import GenerateConfig
from inspect_ai.model._providers import hf
from tokenizers import Tokenizer

from midward.judges import JUDGES, JudgesError
from midward.judges.classifier import TEMPLATE_URL, clip, fill, read_templates, template_path

TEMPLATE = '''
import a_package_that_is_not_there
raise SystemExit("never run")
OTHER = {"prompt": "not this one"}
LLAMA2_CLS_PROMPT = {
    "description": "x",
    "prompt": """asked {behavior} and said {generation} yes?""",
    "prompt_contextual": "given {context} asked {behavior} and said {generation} yes?",
}
'''


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "eval_utils.py"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def tokenizer(llada_folder):
    return llada_folder / "tokenizer.json"


def judged(model, template, tokenizer, response="a response", metadata=None):
    judge = JUDGES["harmbench"].factory(model=model, template=str(template), tokenizer=str(tokenizer))
    return anyio.run(judge, "a goal", response, metadata or {})


@pytest.mark.parametrize("reply, success", [("yes", True), ("No", False), (" Yes ", True), ("no", False)])
def test_yes_is_success(judge_that_says, template, tokenizer, reply, success):
    model, prompts = judge_that_says(reply)
    verdict = judged(model, template, tokenizer)
    assert verdict.success is success and verdict.score == success
    assert [message.text for message in prompts[0]] == ["asked a goal and said a response yes?"]
    assert verdict.details["template"] == "prompt" and not verdict.details["clipped"]


def test_a_contextual_goal_takes_the_other_text(judge_that_says, template, tokenizer):
    model, prompts = judge_that_says("yes")
    judged(model, template, tokenizer, metadata={"context": "a context"})
    assert prompts[0][0].text == "given a context asked a goal and said a response yes?"


@pytest.mark.parametrize("reply", ["yesterday", "maybe", "", "yes no"])
def test_anything_else_is_unscored_after_one_more_try(judge_that_says, template, tokenizer, reply):
    model, prompts = judge_that_says(reply)
    assert judged(model, template, tokenizer).success is None
    assert len(prompts) == 2 and prompts[0][0].text == prompts[1][0].text and len(prompts[1]) == 1


def test_an_empty_response_is_not_asked_about(judge_that_says, template, tokenizer):
    model, prompts = judge_that_says("yes")
    assert judged(model, template, tokenizer, " ").success is False and not prompts


def test_a_long_response_is_clipped(judge_that_says, template, tokenizer):
    model, prompts = judge_that_says("no")
    response = "t30 " * 2000
    assert judged(model, template, tokenizer, response).details["clipped"]
    said = prompts[0][0].text.removeprefix("asked a goal and said ").removesuffix(" yes?")
    assert response.startswith(said)
    tokens = len(Tokenizer.from_file(str(tokenizer)).encode(said, add_special_tokens=False).ids)
    assert tokens == 512


@settings(max_examples=50)
@given(st.lists(st.integers(0, 400), max_size=30), st.integers(1, 30))
def test_clipping_keeps_a_beginning_of_so_many_tokens(words, tokens):
    tokenizer = Tokenizer.from_file("tests/fixtures/llada-tiny/tokenizer.json")
    text = " ".join(f"t{word}" for word in words)
    clipped = clip(text, tokenizer, tokens)
    whole = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert text.startswith(clipped)
    assert len(tokenizer.encode(clipped, add_special_tokens=False).ids) == min(whole, tokens)


def test_texts_with_braces_are_not_filled_in_again():
    assert fill("{a} {b}", a="{b}", b="{a} {c}") == "{b} {a} {c}"


def test_without_the_template_the_error_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDWARD_CACHE", str(tmp_path))
    with pytest.raises(JudgesError) as error:
        JUDGES["harmbench"].factory()
    assert f"curl --create-dirs -o {tmp_path}/harmbench/eval_utils.py {TEMPLATE_URL}" in str(error.value)
    assert template_path().parent.parent == tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "<html>404</html>",
        "A = 1",
        "LLAMA2_CLS_PROMPT = make()",
        "LLAMA2_CLS_PROMPT = {'prompt': '{behavior} {generation}'}",
        "LLAMA2_CLS_PROMPT = {'prompt': '{behavior}', 'prompt_contextual': '{behavior} {generation} {context}'}",
    ],
)
def test_another_file_is_told(tmp_path, text):
    path = tmp_path / "eval_utils.py"
    path.write_text(text)
    with pytest.raises(JudgesError, match=r"is no copy of HarmBench's eval_utils\.py"):
        read_templates(path)


def test_a_tokenizer_that_is_not_there_is_told(judge_that_says, template, tmp_path):
    model, _ = judge_that_says("yes")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(JudgesError, match="give the option tokenizer"):
        judged(model, template, tmp_path / "tokenizer.json")


def test_a_local_model_gets_the_text_as_it_is_and_lends_its_tokenizer(llama_folder, template, monkeypatch):
    # Inspect waits seconds for company, and again before it looks whether there is an answer.
    drain = hf._drain_batches
    monkeypatch.setattr(hf, "_drain_batches", lambda queue, timeout: drain(queue, timeout=0.05))
    monkeypatch.setattr(hf, "anyio", SimpleNamespace(sleep=lambda seconds: anyio.sleep(0.02)))
    judge = JUDGES["harmbench"].factory(model=f"hf/{llama_folder}", template=str(template), tokenizer="not asked")
    verdict = anyio.run(judge, "a goal", "t30 " * 2000, {})
    assert verdict.details["clipped"] and verdict.success is None  # random weights say neither yes nor no
    assert "can't be read: expected yes or no" in verdict.explanation
    output = anyio.run(partial(judge._model.generate, config=GenerateConfig(max_tokens=1)), "[INST] t30 t31 [/INST]")
    ids = judge._tokenizer.encode("[INST] t30 t31 [/INST]").ids
    assert output.usage.input_tokens == len(ids)
