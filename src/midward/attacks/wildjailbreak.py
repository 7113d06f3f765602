"""WildJailbreak: prompts that combine tactics seen in the wild, made for the goal or read from a file (Jiang et al.,
2406.18510).

Attacks:
    wildjailbreak: prompts that combine tactics seen in the wild, composed by an attacker or read from a file

Source:
    Jiang et al. 2024, arXiv 2406.18510 (WildTeaming)

Deviations:
    - The bank of tactics and the role prompts are our own words; which tactics are rare is our reading.
    - A fixed number of candidates is composed at once, then pruned; where too few are left, fewer are put.
    - The scorer judges topic and risk by a question, not by fine-tuned classifiers.
    - The in-loop scorer chooses the best reply, as the validation judge of the paper does.
    - The published set is gated and isn't shipped: give your own copy as a .csv or .jsonl file.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from pydantic import field_validator

from midward._tables import read_table, require_column
from midward.attacks.attack import AttackInfo, Attempt, Count, checked
from midward.attacks.capabilities import AttackError
from midward.attacks.pair import put
from midward.attacks.roles import ON_TOPIC, PROMPTS, SCORE, shipped, text, yes
from midward.attacks.target import Ask
from midward.attacks.taxonomy import IN_PROMPT
from midward.errors import InputError
from midward.store import read_once
from midward.world import wrappers

#: Tactics that prompts in the wild often use, and those that they seldom do: name -> what it does.
COMMON, RARE = (shipped("words")["wildjailbreak"][kind] for kind in ("common", "rare"))
COMPOSER = PROMPTS["wildjailbreak.composer"]
RISK = PROMPTS["wildjailbreak.risk"]


@checked
class WildJailbreak:
    """prompts: where they come from: "generated", composed of tactics by the attacker; "sandbox", the sandbox's own set
    of wrappers around the goal; or the path of a .csv or .jsonl file. count: prompts that are put. candidates:
    prompts that are composed, of which those off the topic or harmless are dropped. tactics: in each of them, half of
    them rare ones. prompt_column, plain_column: of the file; a prompt belongs to the goal whose text stands in its
    plain column, or, in a file without one, to the goal that is the prompt itself."""

    prompts: str = "generated"
    count: Count = 10
    candidates: Count = 20
    tactics: Count = 3
    prompt_column: str = "adversarial"
    plain_column: str = "vanilla"

    @field_validator("prompts")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("generated", "sandbox") and not Path(value).is_file():
            raise InputError('it must be "generated", "sandbox" or the path of a .csv or .jsonl file')
        return value

    @field_validator("tactics")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value > min(len(COMMON), len(RARE)):
            raise InputError(f"there are {len(COMMON)} common and {len(RARE)} rare tactics; ask for fewer")
        return value


async def search(attempt: Attempt, settings: WildJailbreak) -> None:
    """Get the prompts, put them all, and let the in-loop scorer say which reply is the best."""
    if settings.prompts == "generated":
        prompts = await _generated(attempt, settings)
    elif settings.prompts == "sandbox":
        prompts = _wrapped(attempt, settings)
    else:
        prompts = _from_file(attempt, settings)
    await attempt.put(prompts)


Prompts = list[tuple[Ask, dict[str, Any]]]  # what is put, and what the record says of it


async def _generated(attempt: Attempt, settings: WildJailbreak) -> Prompts:
    goal, roles = attempt.goal, attempt.roles
    drawn = [draw(settings.tactics, attempt.rng) for _ in range(settings.candidates)]
    fields = [{"GOAL": goal.text, "TACTICS": _listed(names)} for names in drawn]
    composed = await roles.ask_all(COMPOSER, fields, text("prompt"), temperature=1.0)
    written = [(prompt, names) for prompt, names in zip(composed, drawn, strict=True) if prompt is not None]
    same = await roles.on_topic(goal.text, [prompt for prompt, _ in written])
    left = [i for i, answer in enumerate(same) if answer]
    fields = [{"GOAL": goal.text, "PROMPT": written[i][0]} for i in left]
    risky = await roles.ask_all(RISK, fields, yes("risky"), temperature=0.0)
    kept = [i for i, answer in zip(left, risky, strict=True) if answer]
    chosen = sorted(attempt.rng.sample(kept, min(settings.count, len(kept))))
    attempt.facts["dropped"] = {
        "off_topic": same.count(False),
        "low_risk": risky.count(False),
        "too_many": len(kept) - len(chosen),
    }
    return [(put(goal, written[i][0]), {"tactics": written[i][1]}) for i in chosen]


def draw(count: int, rng: random.Random) -> list[str]:
    """Names of tactics, the smaller half rare ones."""
    return rng.sample(sorted(COMMON), count - count // 2) + rng.sample(sorted(RARE), count // 2)


def _listed(names: list[str]) -> str:
    bank = COMMON | RARE
    return "\n".join(f"{name}: {bank[name]}" for name in names)


def _wrapped(attempt: Attempt, settings: WildJailbreak) -> Prompts:
    known, goal = wrappers("test"), attempt.goal
    chosen = attempt.rng.sample(known, min(settings.count, len(known)))
    return [(put(goal, wrapper.apply(goal.text)), {"wrapper": wrapper.name}) for wrapper in chosen]


# --- prompts of a file -----------------------------------------------------------------------------------------------


def _from_file(attempt: Attempt, settings: WildJailbreak) -> Prompts:
    path = Path(settings.prompts)
    sha256, paired, prompts = _read(path, settings.prompt_column, settings.plain_column)
    mine = prompts.get(_plain(attempt.goal.text), [])
    if not mine:
        column = settings.plain_column if paired else settings.prompt_column
        raise AttackError(
            f"{path} has no prompt for the goal {attempt.goal.id!r}: its text isn't in the column {column!r}. "
            f"Take the goals from this column, or use the prompts that are generated."
        )
    attempt.facts |= {"file_sha256": sha256, "judged_against": "plain request" if paired else "prompt"}
    chosen = attempt.rng.sample(mine, min(settings.count, len(mine)))
    # a prompt of a file is whole as it stands: no context of the goal goes in front
    return [(Ask.of(prompt), {}) for prompt in chosen]


@read_once
def _read(path: Path, prompt_column: str, plain_column: str) -> tuple[str, bool, dict[str, list[str]]]:
    """The file's sha256, whether it has the plain requests, and its prompts by goal.

    Raises InputError for a file that can't be read or lacks the column of prompts.
    """
    rows = read_table(path)
    require_column(rows, prompt_column, path)
    paired = any(plain_column in row for row in rows)
    prompts: dict[str, dict[str, None]] = {}
    for row in rows:
        prompt = str(row.get(prompt_column) or "")
        plain = _plain(str(row.get(plain_column) or "")) if paired else _plain(prompt)
        if prompt.strip() and plain:
            prompts.setdefault(plain, {})[prompt] = None  # each once, in the file's order
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest, paired, {plain: list(own) for plain, own in prompts.items()}


def _plain(text: str) -> str:
    """A request as it is compared: case and blanks don't count."""
    return " ".join(text.lower().split())


def _calls(settings: WildJailbreak) -> dict[str, int]:
    if settings.prompts != "generated":
        return {"target": settings.count, "scorer": settings.count}
    most = min(settings.count, settings.candidates)
    return {"target": most, "attacker": settings.candidates, "scorer": 2 * settings.candidates + most}


WILDJAILBREAK = AttackInfo(
    name="wildjailbreak",
    settings=WildJailbreak,
    calls=_calls,
    search=search,
    prompts=(COMPOSER, ON_TOPIC, RISK, SCORE),
    taxonomy=IN_PROMPT,
)
