"""Context nesting: the request stands inside a structure that is to be completed (2602.00388).

One request, text alone. The paper explains it by the trajectory: structure is filled in first and draws the rest after
it, so that what training lowers step by step is left standing. The same structures around harmless requests are the
control: `nested` makes them.

Attacks:
    nesting: the request inside a program, a table, a JSON object or a YAML document that is to be completed

Source:
    context nesting, arXiv 2602.00388

Deviations:
    - Only the abstract was to be had: the four structures and their words are ours, one at a time, for one query.
    - The goal is quoted as its structure wants it, so that none of its characters can end it.
"""

from __future__ import annotations

import json
from typing import Literal

from midward.attacks.attack import AttackInfo, Attempt, checked
from midward.attacks.pair import put
from midward.attacks.roles import shipped
from midward.attacks.taxonomy import IN_PROMPT

Form = Literal["code", "table", "json", "yaml"]
FORMS: dict[Form, str] = shipped("words")["nesting"]


@checked
class Nesting:
    """form: the structure around the request."""

    form: Form = "code"


def nested(text: str, form: Form) -> str:
    """A request inside a structure that is to be completed.

    Args:
        text: the request.
        form: of the structure; its text has strings as JSON has them but for "table", whose cells take anything but a
            line's end and a bar.
    """
    quoted = " ".join(text.split()).replace("|", "\\|") if form == "table" else json.dumps(text, ensure_ascii=False)
    return FORMS[form].format(goal=quoted)


async def search(attempt: Attempt, settings: Nesting) -> None:
    """Ask once, with the goal in the structure; its context, where it has one, stands in front."""
    [reply] = await attempt.target.respond(put(attempt.goal, nested(attempt.goal.text, settings.form)))
    attempt.offer(reply, form=settings.form)


NESTING = AttackInfo(name="nesting", settings=Nesting, search=search, taxonomy=IN_PROMPT)
