"""`Run`: what a folder of results is of, and `RunFolder`: one run a folder, begun, gone on with, finished."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from midward._formats import require_readable
from midward._hints import near_path
from midward._settings import wrong_in
from midward._version import running_version
from midward.errors import InputError, MissingFile
from midward.store import hold, write_text

if TYPE_CHECKING:
    from midward.models import LanguageModel

#: Version of the record and of the rows beside it: see `midward._formats`.
SCHEMA = "1.0"
RECORD, SUMMARY, ROWS = "run.json", "summary.json", "rows.jsonl"
#: What folders hold that were written before there was a run.json in each.
OLD = {SUMMARY, "align.json", "generations.json"}
_AGAIN = "measure again into another folder"
_PACKAGES = ("torch", "transformers", "peft", "inspect-ai", "lm-eval")


class Measured(BaseModel):
    """One model of a run. label: of its rows, empty where the run has one model. fingerprint: None for a model behind
    an interface. adapter, guard: folder and file; guard_digest: of what the guard's verdicts depend on. endpoint: the
    address of the server of ours that runs it; its guard is a name then."""

    model_config = ConfigDict(extra="forbid")

    name: str
    label: str = ""
    fingerprint: str | None = None
    family: str | None = None
    adapter: str | None = None
    dtype: str | None = None
    device: str | None = None
    guard: str | None = None
    guard_digest: str | None = None
    endpoint: str | None = None

    @classmethod
    def of(
        cls, model: LanguageModel, *, label: str = "", guard: str | None = None, digest: str | None = None
    ) -> Measured:
        """Of a loaded model, with the file and the digest of the guard in front of it."""
        return cls(
            name=model.name,
            label=label,
            fingerprint=model.fingerprint,
            family=model.family.name,
            adapter=model.adapter,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            guard=guard,
            guard_digest=digest,
        )


class Run(BaseModel):
    """What was measured, of what, and how. Written before the first row.

    Attributes:
        schema_version: of this record and of the rows beside it.
        verb: what made the folder, e.g. "probe prefill".
        settings: the verb's flags or arguments that decide its results, as given.
        command: the command that made it, in words, without its --out; empty where no command did.
        models: what was measured.
        sampling: all settings of `Sampling`; None where each row has its own.
        judges: name, version, hash and model of each.
        goals: set -> how many of it.
        seed: of the run's draws.
        versions: of python, of midward (its release or commit) and of the packages that decide results.
        started, finished: UTC, ISO 8601; finished is None of a run that was stopped or goes on.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int | str = SCHEMA
    verb: str
    settings: dict[str, Any] = {}
    command: list[str] = []
    models: list[Measured] = []
    sampling: dict[str, Any] | None = None
    judges: list[dict[str, Any]] = []
    goals: dict[str, int] = {}
    seed: int | None = None
    versions: dict[str, str] = {}
    started: str | None = None
    finished: str | None = None

    def stamped(self) -> Run:
        """With the versions that run, and the time of the start if it has none yet."""
        return self.model_copy(update={"versions": _versions(), "started": self.started or _now()})

    @classmethod
    def load(cls, folder: str | Path, file: str = "") -> Run:
        """Read the record of a folder, or of a file in it. Raises InputError where it has none, or one that this
        midward doesn't read: it or what it holds is of another version."""
        path = _record(Path(folder), file)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if not Path(folder).exists():
                raise MissingFile(f"there is no folder {folder}.{near_path(folder, folder=True)}") from None
            if Path(folder, file or ROWS).is_file():
                raise InputError(
                    f"{Path(folder, file or ROWS)} has no {path.name} beside it, so nothing says what its rows are of "
                    f"(an earlier midward wrote none); {_AGAIN}."
                ) from None
            if not any(Path(folder, name).exists() for name in OLD):
                hint = near_path(folder, folder=True)
                raise InputError(f"{folder} holds no {path.name}: no midward command wrote it.{hint}") from None
            content = {}
        except (ValueError, OSError) as error:
            raise InputError(f"{path} can't be read ({error}); give another folder.") from None
        version = content.get("schema_version") if isinstance(content, dict) else "no record"
        require_readable(version, SCHEMA, str(Path(folder, file)), _AGAIN)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{path}: {wrong_in(error)}") from None


def _record(folder: Path, file: str) -> Path:
    return folder / (f"{file}.{RECORD}" if file else RECORD)


class RunFolder:
    """The folder of a run, or one file of rows with its record beside it.

    The same run goes on there; another one is refused before anything costly.

    Args:
        folder: made when the run starts.
        verb: what makes it.
        settings: all that decides the results, as JSON: the verb's flags as given.
        grows: names of settings that a run which goes on may have more of: counts, and lists that only got longer.
        anew: what the folder holds of a run counts for nothing; None where the verb has no --overwrite for that.
        file: the rows' name in the folder, where the run is that file alone.

    Raises:
        InputError: the folder can't be written, or holds results of another run: what differs is named.
    """

    def __init__(
        self,
        folder: str | Path,
        verb: str,
        settings: Mapping[str, Any] | None = None,
        grows: Collection[str] = (),
        anew: bool | None = None,
        file: str = "",
    ) -> None:
        self.folder, self.file = Path(folder), file
        self.run = Run(verb=verb, settings=dict(settings or {}))
        self._before: Run | None = None
        self._instead = f"Give another --out{'' if anew is None else ', or --overwrite'}."
        _check_writable(self.folder)
        record, place = _record(self.folder, file), self.folder / file
        if file:
            begun = place.exists() and place.stat().st_size > 0
        else:
            begun = record.exists() and any(path != record for path in self.folder.glob("[!.]*"))
            begun |= (self.folder / ROWS).is_file()
        if begun and not anew:
            before = self._before = Run.load(self.folder, file)
            if before.verb != verb:
                raise InputError(f"{place} holds a run of midward {before.verb}. {self._instead}")
            if changed := _changed(before.settings, self.run.settings, grows):
                raise InputError(f"{place} holds another run: {'; '.join(changed)}. {self._instead}")
            self.run.started = before.started

    def start(
        self,
        models: Sequence[Measured] = (),
        *,
        sampling: Mapping[str, Any] | None = None,
        judges: Sequence[Mapping[str, Any]] = (),
        goals: Mapping[str, int] | None = None,
        seed: int | None = None,
    ) -> None:
        """Claim the folder for as long as this object lives, and write the record.

        Args: as the attributes of `Run`.

        Raises:
            InputError: another process has the folder, or what it holds is of a model, an adapter or a guard that has
                changed since.
        """
        for model in models:
            for before in self._before.models if self._before else ():
                changed = (before.fingerprint, before.guard_digest) != (model.fingerprint, model.guard_digest)
                if changed and (before.name, before.adapter, before.guard) == (model.name, model.adapter, model.guard):
                    parts = [part for part in (model.name, model.adapter, model.guard) if part]
                    what = "its weights have" if before.fingerprint != model.fingerprint else "the guard's fit has"
                    raise InputError(
                        f"{self.folder} holds rows of {' + '.join(parts)} as it was before: {what} changed. "
                        f"{self._instead}"
                    )
        about: dict[str, Any] = {
            "sampling": None if sampling is None else dict(sampling),
            "judges": list(map(dict, judges)),
        }
        about |= {"models": list(models), "goals": dict(goals or {}), "seed": seed}
        self.run = self.run.model_copy(update=about).stamped()
        if os.environ.get("RANK", "0") != "0":  # under torchrun one process writes
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim = hold(self.folder / self.file)
        for part in self.folder.glob("*.json.*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        self._write()

    def keep(self) -> None:
        """Of a run that was finished already, once it is claimed: the record is again as it was."""
        if self._before is not None:
            self.run = self._before
        self.finish()

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Write summary.json, if there is a summary, and the time into the record, if it has none yet."""
        if os.environ.get("RANK", "0") != "0":
            return
        if summary is not None:
            text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(self.folder / SUMMARY, text + "\n")
        self.run.finished = self.run.finished or _now()
        self._write()

    def _write(self) -> None:
        write_text(_record(self.folder, self.file), self.run.model_dump_json(indent=1) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    versions = {"python": python_version(), "midward": running_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], grows: Collection[str]) -> list[str]:
    """What of the settings differs, in words. A setting that didn't exist then counts as not given."""
    changed = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), json.loads(json.dumps(now.get(name), default=str))
        if name in grows and isinstance(old, list) and isinstance(new, list):
            if lost := [str(value) for value in old if value not in new]:
                changed.append(f"{name} lacks {', '.join(lost)} here")
        elif name in grows and isinstance(old, int) and (new is None or new >= old):
            continue
        elif old != new and name == "guard_digest":
            changed.append(
                "another guard, or another fit of it"
                if old and new
                else f"{'no' if not old else 'a'} guard there, {'no' if not new else 'a'} guard here"
            )
        elif old != new:
            changed.append(f"{name} {_words(old)} there, {_words(new)} here")
    return changed


def _words(value: Any) -> str:
    return "not given" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--out {folder} can't be made: {there} is a file; give another path.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder} can't be written: no permission in {there}; give another path.")
