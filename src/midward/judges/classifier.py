"""HarmBench's classifier: a local model that was trained to answer one fixed text with yes or no.

The text must be the very one it was trained on, so it isn't restated here: it is read from HarmBench's own
`eval_utils.py` (MIT licence), which you download once. That file is parsed for one literal, never run. The response is
clipped to 512 of the classifier's tokens; the reply is one token, at temperature 0.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from inspect_ai.model import GenerateConfig, Model, get_model
from tokenizers import Tokenizer

from midward._asking import ask, unavailable
from midward.errors import InputError
from midward.judges.asking import bounded, reply_of
from midward.judges.judge import JudgeInfo, JudgesError, Verdict, empty
from midward.store import cache_folder, key_of

CLASSIFIER = "cais/HarmBench-Llama-2-13b-cls"
REVISION = "c0423b952435fcc8467108d8f25962dbae5b7de2"  # of HarmBench's repository
TEMPLATE_URL = f"https://raw.githubusercontent.com/centerforaisafety/HarmBench/{REVISION}/eval_utils.py"
CLIP = 512  # tokens of the response, as in HarmBench's evaluation

_LITERAL = "LLAMA2_CLS_PROMPT"
_SLOTS = {"prompt": {"behavior", "generation"}, "prompt_contextual": {"behavior", "generation", "context"}}
_ONE_TOKEN = GenerateConfig(max_tokens=1)
# The template brings its own chat markup; Inspect's hf provider must add none.
_AS_IT_IS = "{{ messages[0]['content'] }}"


def template_path() -> Path:
    """Where the template is looked for unless the option says otherwise: in the cache (MIDWARD_CACHE)."""
    return cache_folder() / "harmbench" / "eval_utils.py"


def read_templates(path: Path) -> dict[str, str]:
    """The classifier's two texts, `prompt` and `prompt_contextual`, from a copy of HarmBench's eval_utils.py.

    Raises:
        JudgesError: the file is missing, or doesn't hold them.
    """
    if not path.is_file():
        raise JudgesError(
            f"the HarmBench classifier needs the text it was trained on, and there is no file {path}. Download it: "
            f"curl --create-dirs -o {path} {TEMPLATE_URL}"
        )
    wrong = f"{path} is no copy of HarmBench's eval_utils.py; download it from {TEMPLATE_URL}"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        literals = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and [ast.unparse(name) for name in node.targets] == [_LITERAL]
        ]
    except (SyntaxError, ValueError) as error:
        raise JudgesError(f"{wrong} ({type(error).__name__}: {error}).") from None
    templates = literals[-1] if literals and isinstance(literals[-1], dict) else {}
    for key, slots in _SLOTS.items():
        text = templates.get(key)
        if not isinstance(text, str) or set(re.findall(r"\{(\w+)\}", text)) != slots:
            raise JudgesError(f"{wrong}: {_LITERAL}[{key!r}] must hold {', '.join(sorted(slots))}.")
    return {key: templates[key] for key in _SLOTS}


def fill(template: str, **texts: str) -> str:
    """Put the texts into the template's {slots}, in one pass: braces inside a text stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda slot: texts[slot.group(1)], template)


def clip(text: str, tokenizer: Tokenizer, tokens: int = CLIP) -> str:
    """The beginning of a text.

    Args:
        text: what is cut.
        tokenizer: the classifier's.
        tokens: how many it may have at most.
    """
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]


def yes_or_no(reply: str) -> bool:
    """The classifier's answer as a truth.

    Raises:
        InputError: it is neither yes nor no.
    """
    word = reply.strip().lower()
    if word not in ("yes", "no"):
        raise InputError(f"expected yes or no; received {reply[:40]!r}")
    return word == "yes"


class _HarmBench:
    """HarmBench's classifier as a judge.

    Args:
        model: an Inspect model, or its name; one served elsewhere must pass the text on without a chat template.
        template: path of the downloaded file.
        tokenizer: Hub id, or path of a tokenizer.json, of the classifier.
    """

    def __init__(
        self, model: str | Model = f"hf/{CLASSIFIER}", template: str | None = None, tokenizer: str = CLASSIFIER
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.templates = read_templates(Path(template) if template else template_path())

    @cached_property
    def _model(self) -> Model:
        if isinstance(self.model, Model):
            return bounded(self.model)
        raw: dict[str, Any] = {"chat_template": _AS_IT_IS} if self.model.startswith("hf/") else {}
        try:
            return bounded(get_model(self.model, **raw))
        except Exception as error:  # whatever a provider raises over a missing key or package
            raise JudgesError(f"no classifier to ask: {unavailable(error)}") from error

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        own = getattr(getattr(self._model.api, "tokenizer", None), "backend_tokenizer", None)
        if own is not None:
            return own
        try:
            if Path(self.tokenizer).is_file():
                return Tokenizer.from_file(self.tokenizer)
            return Tokenizer.from_pretrained(self.tokenizer)
        except Exception as error:  # tokenizers raises bare Exceptions
            raise JudgesError(
                f"the classifier's tokenizer {self.tokenizer!r} can't be loaded ({error}); give the option "
                "tokenizer: a Hub id, or the path of a tokenizer.json."
            ) from None

    async def __call__(self, goal: str, response: str, metadata: Mapping[str, Any]) -> Verdict:
        if nothing := empty("harmbench", response, lowest=0):
            return nothing
        context = str(metadata.get("context") or "")
        kind = "prompt_contextual" if context else "prompt"
        clipped = clip(response, self._tokenizer)
        prompt = fill(self.templates[kind], behavior=goal, generation=clipped, context=context)
        asked = await ask(self._model, prompt, yes_or_no, who="the judge", config=_ONE_TOKEN, whole=False)
        details = {"template": kind, "template_hash": key_of(**self.templates), "clipped": clipped != response}
        details |= reply_of(asked)
        if asked.value is None:
            return Verdict("harmbench", None, details=details, explanation=asked.why)
        why = f"the classifier says {'yes' if asked.value else 'no'}"
        return Verdict("harmbench", asked.value, float(asked.value), None, details, why)


HARMBENCH_JUDGE = JudgeInfo(
    name="harmbench",
    version="2",
    about="HarmBench's classifier, a 13 B local model: yes or no",
    needs="local classifier",
    factory=_HarmBench,
)
