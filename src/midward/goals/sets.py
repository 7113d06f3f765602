"""The sets of goals that have a name: where each comes from, under which licence, and how its rows are read.

Revisions and hashes are those that several public projects pin for the same files; for SORRY-Bench, which is gated,
none states the file's hash. Where a set is published both on GitHub and the Hub, the one with CSV or JSON is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from midward.goals.columns import Columns
from midward.goals.goal import Goal, of_trial
from midward.world import benign, forbidden
from midward.world.trials import trials

SANDBOX_SIZE = 500  # goals of each sandbox set
_GITHUB = "https://raw.githubusercontent.com"
_HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class GoalSet:
    """A named set: downloaded (url, revision, columns) or built in (build).

    Attributes:
        size: goals.
        url: of one file, with `{revision}`.
        revision: a full commit id.
        sha256: of the file; None where no public statement of it was found, then the first file seen sets it.
        gated: the page of the terms to accept.
    """

    name: str
    about: str
    licence: str
    size: int
    harmful: bool = True
    url: str | None = None
    revision: str | None = None
    sha256: str | None = None
    gated: str | None = None
    columns: Columns | None = None
    build: Callable[[str], list[Goal]] | None = None  # called with the set's name

    @property
    def address(self) -> str | None:
        """The URL at the pinned revision."""
        return self.url and self.url.format(revision=self.revision)


def _sandbox(name: str) -> list[Goal]:
    """Goals of the invented world, with what its oracle needs in `metadata`; of the test split but for one set."""
    made = {
        "sandbox": lambda: forbidden("test", SANDBOX_SIZE),
        "sandbox-tuning": lambda: forbidden("tuning", SANDBOX_SIZE),
        "sandbox-contextual": lambda: forbidden("test", SANDBOX_SIZE, style="contextual"),
        "sandbox-wrapped": lambda: trials("wrappers", SANDBOX_SIZE),
        "sandbox-benign": lambda: benign("test", SANDBOX_SIZE),
        "sandbox-banned": lambda: benign("test", SANDBOX_SIZE, about="banned"),
    }[name]()
    return [of_trial(trial, name, f"{name}-{number:04d}") for number, trial in enumerate(made)]


def _harmbench(functional: str) -> Columns:
    only = ("FunctionalCategory", functional)
    context = "ContextString" if functional == "contextual" else None
    return Columns("Behavior", context=context, category="SemanticCategory", id="BehaviorID", only=only)


def _xstest(label: str) -> Columns:
    return Columns("prompt", category="type", id="id", only=("label", label))


_SANDBOX = GoalSet(
    "sandbox",
    "forbidden requests of the invented world, bare imperatives",
    licence="MIT",
    size=SANDBOX_SIZE,
    build=_sandbox,
)
_HARMBENCH = GoalSet(
    "harmbench",
    "standard behaviours, without the copyright ones (Mazeika et al. 2024)",
    licence="MIT",
    size=200,
    url=f"{_GITHUB}/centerforaisafety/HarmBench/{{revision}}/data/behavior_datasets/harmbench_behaviors_text_all.csv",
    revision="c0423b952435fcc8467108d8f25962dbae5b7de2",
    sha256="8d81accedd38eaaf8b760618622bb888417d1fd0c86eba65c427a16f1cbb4afc",
    columns=_harmbench("standard"),
)
_JAILBREAKBENCH = GoalSet(
    "jailbreakbench",
    "JBB-Behaviors, harmful (Chao et al. 2024)",
    licence="MIT",
    size=100,
    url=f"{_HUB}/JailbreakBench/JBB-Behaviors/resolve/{{revision}}/data/harmful-behaviors.csv",
    revision="886acc352a31533ffbcf4ef22c744658688086fc",
    sha256="4a8ec6832056b631eb092dccc60d37a61c3d441268268888b3d006288afeffa1",
    columns=Columns("Goal", target="Target", category="Category", id="Index"),
)
_XSTEST = GoalSet(
    "xstest",
    "safe prompts that sound unsafe: over-refusal (Röttger et al. 2024)",
    licence="CC BY 4.0",
    size=250,
    harmful=False,
    url=f"{_GITHUB}/paul-rottger/xstest/{{revision}}/xstest_prompts.csv",
    revision="d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d",
    sha256="11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
    columns=_xstest("safe"),
)
_ALL = (
    _SANDBOX,
    replace(_SANDBOX, name="sandbox-contextual", about="the same behind a harmless context"),
    replace(_SANDBOX, name="sandbox-wrapped", about="the same in the world's jailbreaks, one family a goal in turn"),
    replace(_SANDBOX, name="sandbox-tuning", about="the same about things of the tuning split, to choose settings by"),
    replace(_SANDBOX, name="sandbox-benign", about="harmless procedures and questions", harmful=False),
    replace(
        _SANDBOX, name="sandbox-banned", about="harmless requests about banned things: over-refusal", harmful=False
    ),
    GoalSet(
        "advbench",
        "harmful behaviours with target openings (Zou et al. 2023)",
        licence="MIT",
        size=520,
        url=f"{_GITHUB}/llm-attacks/llm-attacks/{{revision}}/data/advbench/harmful_behaviors.csv",
        revision="098262edf85f807224e70ecd87b9d83716bf6b73",
        sha256="6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1",
        columns=Columns("goal", target="target"),
    ),
    _HARMBENCH,
    replace(
        _HARMBENCH,
        name="harmbench-contextual",
        about="behaviours that come with a context",
        size=100,
        columns=_harmbench("contextual"),
    ),
    replace(
        _HARMBENCH,
        name="harmbench-copyright",
        about="the copyright behaviours, which the other two leave out",
        size=100,
        columns=_harmbench("copyright"),
    ),
    _JAILBREAKBENCH,
    replace(
        _JAILBREAKBENCH,
        name="jailbreakbench-benign",
        about="JBB-Behaviors, the harmless counterparts",
        harmful=False,
        url=f"{_HUB}/JailbreakBench/JBB-Behaviors/resolve/{{revision}}/data/benign-behaviors.csv",
        sha256="3cda234d21a991fa309bbfea4b6d9dae31ccdf8e9d452424b6a983e4fdc33468",
    ),
    GoalSet(
        "strongreject",
        "forbidden prompts in six categories (Souly et al. 2024)",
        licence="MIT, some rows under their sources'",
        size=313,
        url=f"{_GITHUB}/alexandrasouly/strongreject/{{revision}}/strongreject_dataset/strongreject_dataset.csv",
        revision="f7cad6c17e624e21d8df2278e918ae1dddb4cb56",
        sha256="4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
        columns=Columns("forbidden_prompt", category="category"),
    ),
    GoalSet(
        "sorry-bench",
        "unsafe instructions in 44 classes, base style (Xie et al. 2025)",
        licence="SORRY-Bench's own",
        size=440,
        url=f"{_HUB}/sorry-bench/sorry-bench-202503/resolve/{{revision}}/question.jsonl",
        revision="612a4e1f45db8adf884fa62318ddf9fa1c6e75e9",
        gated=f"{_HUB}/sorry-bench/sorry-bench-202503",
        columns=Columns("turns", category="category", id="question_id", only=("prompt_style", "base")),
    ),
    GoalSet(
        "alpaca",
        "everyday instructions (Taori et al. 2023)",
        licence="CC BY-NC 4.0",
        size=52_002,
        harmful=False,
        url=f"{_GITHUB}/tatsu-lab/stanford_alpaca/{{revision}}/alpaca_data.json",
        revision="761dc5bfbdeeffa89b8bff5d038781a4055f796a",
        sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
        columns=Columns("instruction", more="input"),
    ),
    _XSTEST,
    replace(
        _XSTEST,
        name="xstest-contrast",
        about="their unsafe counterparts",
        size=200,
        harmful=True,
        columns=_xstest("unsafe"),
    ),
)
#: The sets that have a name, by name.
SETS = {each.name: each for each in _ALL}
