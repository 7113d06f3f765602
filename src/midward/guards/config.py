"""The settings of `midward guard fit` and `guard eval`; their flags are derived from them, and nothing needs torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from midward._flags import BatchSize, Flag, check
from midward._hints import near_path
from midward._plugins import check_name
from midward._settings import read_value
from midward.errors import InputError


class GuardError(InputError):
    """A guard can't be fitted, read or used as things stand; the message says what to do."""


#: The guards of this package, as `midward.guards.registry` has them: so that a wrong name is told at once. `ablation`
#: is an attack, taken as an arm where it is named and offered to nobody.
GUARDS = (
    *("sri", "sri-maha", "sri-blocks", "energy", "eos", "cascade", "perplexity", "self-examine", "classifier"),
    *("diffuguard", "diffuguard-audit", "masks", "raec", "csd", "sad", "ablation", "hesitate", "direction"),
    *("csd-score", "prefuse"),
)


#: Bytes of a guard's file; one of an 8B model with 1,024 steps is a tenth of it.
LARGEST = 1 << 28


#: What a folder of several guards stands for, the first of these that it holds (docs/monitors.md says why).
PREFERRED = ("hesitate.safetensors", "sri.safetensors")


#: Where guards are written, and a server looks for one, unless told.
FITTED = Path("guard")


def guard_file(path: str | Path) -> Path:
    """The file of a guard; of a folder the only one that it holds, or of several the first of `PREFERRED`.

    Raises:
        GuardError: there is none, the folder holds several and none of those names, or it is too large to be one.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(each for each in path.glob("*.safetensors") if not each.name.startswith("anchors"))
        files = [path / name for name in PREFERRED if path / name in files][:1] or files
        if len(files) > 1:
            raise GuardError(f"{path} holds several guards; give one of them: {', '.join(map(str, files))}.")
        if not files:
            raise GuardError(f"there is no guard in {path}; midward guard fit writes one: a file *.safetensors.")
        path = files[0]
    if not path.is_file():
        raise GuardError(f"there is no guard at {path}.{near_path(path)} midward guard fit writes one.")
    if path.stat().st_size > LARGEST:
        raise GuardError(f"{path} has {path.stat().st_size} bytes, more than any guard; it isn't read.")
    return path


def guard_files(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Label -> file of the guards in files and folders; nothing is read. Raises GuardError for what isn't there, or two
    of one name."""
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        inside = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith("anchors-"))
        if path.is_dir() and not inside:
            raise GuardError(f"{path} holds no guard; midward guard fit writes one.")
        for file in inside or [guard_file(path)]:
            if file.stem in files:
                raise GuardError(f"two guards are called {file.stem!r}: {files[file.stem]} and {file}; rename one.")
            files[file.stem] = file
    if not files:
        raise GuardError("no guard is named; give files or folders that midward guard fit wrote.")
    return files


@dataclass(frozen=True)
class Sizes:
    """Harmless prompts, each used for one thing; the defaults are the paper's numbers.

    Args:
        anchors: Prompts of each kind for the anchors and for labelled answers.
        train: Harmless prompts for the autoencoder.
        held_out: Harmless prompts for the threshold.
    """

    anchors: Annotated[int, Flag(min=2)] = 400
    train: Annotated[int, Flag(min=2)] = 1200
    held_out: Annotated[int, Flag(min=2)] = 200

    def __post_init__(self) -> None:
        check(self)

    @property
    def harmless(self) -> int:
        """How many harmless prompts it takes."""
        return self.anchors + self.train + self.held_out


def conformal_order(count: int, alpha: float, certain: float | None = None) -> int:
    """Which of `count` sorted scores is the threshold of a false-positive rate, the smallest being 1.

    Args:
        count: held-out harmless prompts, N.
        alpha: the rate, between 0 and 1.
        certain: how sure it is that the rate of this very threshold is alpha at most, between 0 and 1; by default it is
            so on average over calibrations.

    Returns:
        k = ceil((N + 1)(1 - alpha)); with `certain` the smallest k whose rate, Beta(N + 1 - k, k) distributed, is alpha
        at most with that probability.

    Raises:
        GuardError: where N is too small for alpha.
    """
    if not 0 < alpha < 1:
        raise GuardError(f"alpha is a rate between 0 and 1; received {alpha!r}.")
    order = math.ceil((count + 1) * (1 - alpha) - 1e-9)
    if order > count:
        raise GuardError(
            f"a false-positive rate of {alpha:g} takes {math.ceil(1 / alpha - 1e-9) - 1} held-out harmless prompts or "
            f"more; received {count}. Give more (--held-out), or a larger alpha (--alpha)."
        )
    if certain is None:
        return order
    if not 0 < certain < 1:
        raise GuardError(f"certain is a probability between 0 and 1; received {certain!r}.")
    # The rate is alpha at most where Binomial(N, alpha) is N + 1 - k at least (no scipy: flags are read off this file).
    below = accumulate(math.comb(count, hits) * alpha**hits * (1 - alpha) ** (count - hits) for hits in range(count))
    enough = next((count - hits for hits, share in reversed([*enumerate(below)]) if 1 - share >= certain), None)
    if enough is None:
        raise GuardError(
            f"{alpha:g} at most, {certain:.0%} certain, takes {math.ceil(math.log(1 - certain) / math.log(1 - alpha))} "
            f"held-out harmless prompts or more; received {count}. Give more (--held-out)."
        )
    return enough


Names = tuple[str, ...]
Split = Annotated[Literal["train", "tuning", "test"], Flag("Of the sandbox's sets: whose things they are about.")]


@dataclass(frozen=True)
class FitConfig:
    """What is fitted, and on what.

    Args:
        guards: By comma, each [LABEL=]NAME or [LABEL=]NAME:SETTING=VALUE;...; by default hesitate and others
            that need no other model; see --list.
        harmless: Sets or files, by comma; benign on the sandbox, else alpaca; see midward goals.
        harmful: Sets or files, for the anchors and labelled answers; plain on the sandbox, else advbench.
        alpha: The false-positive rate that is asked for.
        certain: That it is alpha at most for this very calibration, with this probability (0.95); else on average.
        draw: Which prompts of the sets: 0 takes the first, 1 the next as many, so that several fits share none.
        paper: Sample as SRI's paper does: 128 tokens, one block, 32 steps, greedy.
    """

    guards: Annotated[Names, Flag(grows=True)] = ()
    harmless: Annotated[Names, Flag()] = ()
    harmful: Annotated[Names, Flag()] = ()
    split: Split = "tuning"
    alpha: Annotated[float, Flag()] = 0.01
    certain: Annotated[float | None, Flag()] = None
    draw: Annotated[int, Flag(min=0)] = 0
    paper: Annotated[bool, Flag()] = False
    batch_size: BatchSize = 16

    def check_names(self) -> None:
        """Raise GuardError for a guard that there isn't. Nothing is loaded."""
        for _, spec in map(_labelled, self.guards):
            if (name := spec.partition(":")[0].strip()) != "ablation":
                check_name("guard", [each for each in GUARDS if each != "ablation"], name, GuardError)

    def specs(self, at_home: bool, masks: bool = True) -> dict[str, str]:
        """Label -> what is to be fitted, as `make` takes it.

        Args:
            at_home: whether the model is one of those in the package.
            masks: whether it has a mask token, without which some guards are of no use.
        """
        given = self.guards
        if not given:
            generated = "sri-generated=sri:reading=generated", "sri-generated-end=sri:reading=generated;early=false"
            examine = "self-examine:question=sandbox" if at_home else "self-examine"
            oracles = ("diffuguard:oracle=true", "diffuguard-audit:oracle=true") if at_home else ()
            given = ("hesitate", *(["sri-blocks=sri-blocks:detector=autoencoder"] if masks else []), "sri")
            given += "sri-end=sri:early=false", "sri-maha", "sri-maha-end=sri-maha:early=false"
            given += ("perplexity", examine)
            given += (*generated, "diffuguard", "diffuguard-audit", *oracles, "masks") if masks else ()
        return dict(_labelled(spec) for spec in given)


def _labelled(given: str) -> tuple[str, str]:
    """[LABEL=]SPEC as the name of the guard's file, and SPEC; without a label sri:early=false is sri-early-false."""
    label, equals, spec = given.partition("=")
    if not equals or ":" in label:
        label, spec = given, given
    return "".join(c if c.isalnum() else "-" for c in label.strip()), spec


def parsed(spec: str, find: Callable[[str], type[Any]]) -> tuple[type[Any], dict[str, Any]]:
    """A guard's class and settings from NAME or NAME:SETTING=VALUE;...

    Args:
        spec: the text.
        find: name -> class; raises for an unknown one.

    Raises:
        InputError: for what isn't so, an unknown setting, or a value of another type.
    """
    name, _, given = spec.partition(":")
    kind = find(name.strip())
    settings = {}
    for setting in filter(None, given.split(";")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise GuardError(f"a guard's settings are NAME=VALUE, separated by ';'; received {setting!r} in {spec!r}.")
        key = key.strip()
        settings[key] = read_value(kind.Settings, key, value, f"the guard {name!r}: {key}")
    return kind, settings


_PLAIN = ("benign", "benign-wrapped", "banned", "plain", "wrappers")
_SHAPED = ("prefill", "prefill-mid", "pad", "dija")


@dataclass(frozen=True)
class EvalConfig:
    """What fitted guards are tried on.

    Args:
        guard: Folders or files of fitted guards, by comma.
        sets: Sets of requests by comma: benign, benign-wrapped, banned, plain, wrappers, prefill, prefill-mid, pad,
            dija, sets of goals, or files with a column `harmful`. Also, if asked for, anchoring: eight single tokens of
            a compliant text at random places.
        harmless: More sets or files, of harmless requests: false positives, no attacks.
        goals: What prefill, prefill-mid, pad, dija and anchoring are put on: a set or file; anchoring knows the world's
            texts alone.
        count: Requests of each set.
        behind: An Inspect model whose answers are guarded instead; --model, the guards' own, is then a surrogate that
            answers the same plain prompts beside it.
        repeats: Of the overhead's measurement.
    """

    guard: Annotated[Names, Flag(grows=True)] = ("guard",)
    sets: Annotated[Names, Flag(grows=True)] = ()
    harmless: Annotated[Names, Flag(grows=True)] = ()
    goals: Annotated[str, Flag()] = "sandbox"
    split: Split = "test"
    count: Annotated[int, Flag(min=1, name="--limit --count", grows=True)] = 100
    behind: Annotated[str | None, Flag()] = None
    repeats: Annotated[int, Flag(min=1, free=True)] = 5
    batch_size: BatchSize = 16

    def __post_init__(self) -> None:
        shaped = (*_SHAPED, "anchoring")
        if self.goals != EvalConfig.goals and not {*shaped} & {*self.names(masks=True)}:
            raise InputError(
                f"--goals {self.goals} is what {', '.join(shaped)} are put on, and --sets names none of them."
            )

    def names(self, masks: bool) -> Names:
        """The sets that are asked for. masks: whether the model has a mask token, which dija needs."""
        shaped = () if self.behind else _SHAPED if masks else _SHAPED[:-1]
        return self.sets or (*_PLAIN, *shaped)
