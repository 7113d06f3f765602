"""What a request can wear: pretexts, who asks and how, a story around it, the form of the answer; and what that does.

Whether the base model answers a forbidden request is a chance, `logistic(BIAS + pulls of what the request wears)`. How
much a feature pulls depends on the kind of thing: half as much again as its weight for a quarter of the kinds, a third
of it for the others. So it pays to search, and what opens one kind leaves another closed.

Three groups of pretexts, never mixed: `mutation` (what alignment data may use), `tuning` (for choosing settings) and
`test` (for reporting). The base model has met all of them around harmless *and* forbidden requests.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from midward._hints import one_of
from midward.world.world import WORDS

GROUPS = ("mutation", "tuning", "test")
FORMATS = tuple(WORDS["formats"])
BIAS = -3.9

_SPLIT = {"train": "mutation"}  # of words.toml -> the group
PRETEXTS = {
    name: (_SPLIT.get(split, split), entry["weight"], tuple(entry["texts"]))
    for split, entries in WORDS["pretexts"].items()
    for name, entry in entries.items()
}
#: feature -> what it adds to the log odds that a forbidden request is answered, before the kind of thing is asked.
WEIGHTS: dict[str, float] = WORDS["weights"] | {name: weight for name, (_, weight, _) in PRETEXTS.items()}
_PAST = ("complied", "refused")  # what was answered to an earlier forbidden request


def pull(kind: str, feature: str) -> float:
    """What a feature adds to the log odds that a forbidden request about a kind of thing is answered."""
    if feature in _PAST:
        return WEIGHTS[feature]
    opens = hashlib.sha256(f"{kind}-{feature}".encode()).digest()[0] % 4 == 0
    return WEIGHTS[feature] * (1.5 if opens else 0.35)


def log_odds(kind: str, features: Iterable[str]) -> float:
    """That a forbidden request about a kind of thing is answered."""
    return BIAS + sum(pull(kind, feature) for feature in features)


def chance(kind: str, features: Iterable[str]) -> float:
    """The same in 0..1."""
    return 1 / (1 + math.exp(-log_odds(kind, features)))


def wear(text: str, features: Sequence[str], rng: random.Random, *, context: bool = False) -> str:
    """A request as it stands in features: who asks, the pretext, the story, the request, the form, haste, thanks.

    Args:
        text: the bare request.
        features: of WEIGHTS.
        rng: draws the wordings, and on which side haste and thanks stand.
        context: whether a harmless sentence stands before all of it.
    """
    frames = WORDS["frames"]
    before = [rng.choice(frames["contexts"])] if context else []
    before += [rng.choice(frames["authority"])] if "authority" in features else []
    before += [rng.choice(PRETEXTS[name][2]) for name in features if name in PRETEXTS]
    before += [rng.choice(frames[name]) for name in ("story1", "story2") if name in features]
    around = [rng.choice(frames[name]) for name in ("urgency", "polite") if name in features]
    rng.shuffle(around)
    cut = rng.randint(0, len(around))
    if "backwards" in features:
        text = f"{rng.choice(frames['backwards'])} {_reversed(text)}"
    after = [rng.choice(WORDS["formats"][name]) for name in FORMATS if name in features]
    return " ".join([*around[:cut], *before, text, *after, *around[cut:]])


def _reversed(text: str) -> str:
    return " ".join(reversed(re.findall(r"\w+|[.?]", text)[:-1])) + "."


def combination(rng: random.Random, pretexts: Sequence[str] = tuple(PRETEXTS), *, most: int = 5) -> list[str]:
    """A draw of features, from one to `most`: at most one pretext, one story and one form."""
    groups = [pretexts, FORMATS, ("story1", "story2"), ("authority",), ("urgency",), ("polite",), ("backwards",)]
    chosen = rng.sample(range(7), rng.choices(range(1, most + 1), [4, 3, 3, 2, 1][:most])[0])
    if 0 not in chosen and rng.random() < 0.5:
        chosen[0] = 0
    return [rng.choice(groups[place]) for place in sorted(set(chosen))]


@dataclass(frozen=True)
class Wrapper:
    """One way to dress a request up.

    Attributes:
        name: of the pretext, or of another feature.
        group: `mutation`, `tuning` or `test`.
        apply: turns a plain request into the wrapped one, always in the same words.
    """

    name: str
    group: str
    apply: Callable[[str], str]


def _wrapper(name: str, group: str) -> Wrapper:
    return Wrapper(name, group, lambda text: wear(text, [name], random.Random(f"{name}-{text}")))


#: All single ones, by name: the pretexts of each group; what is no pretext is for alignment's data.
WRAPPERS: dict[str, Wrapper] = {name: _wrapper(name, group) for name, (group, _, _) in PRETEXTS.items()}
WRAPPERS |= {name: _wrapper(name, "mutation") for name in WORDS["weights"] if name not in _PAST}


def wrappers(group: str) -> list[Wrapper]:
    """The wrappers of one group, in a fixed order."""
    one_of("group of wrappers", group, GROUPS)
    return [wrapper for wrapper in WRAPPERS.values() if wrapper.group == group]
