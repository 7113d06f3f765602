"""Which of midward's packages the GPU bench needs, and which of those this Python lacks, or has too old.

A table goes to stderr, the requirements to stdout, one a line: what `bench/gpu.sh` installs from a folder of wheels.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

#: Of the packages in pyproject.toml those that are imported by models, sampling, dynamics, alignment and guards.
NEEDED = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "psutil",
    "pyyaml",
    "pydantic",
    "filelock",
}


def lacking() -> list[str]:
    """Requirements that aren't met, as they stand in pyproject.toml."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    missing = []
    for line in project["project"]["dependencies"]:
        requirement = Requirement(line)
        if requirement.name not in NEEDED:
            continue
        try:
            present = version(requirement.name)
        except PackageNotFoundError:
            present = "missing"
        met = present != "missing" and requirement.specifier.contains(present.split("+")[0], prereleases=True)
        print(f"{line:24}{present}{'' if met else '  <- needed'}", file=sys.stderr)
        if not met:
            missing.append(line)
    return missing


if __name__ == "__main__":
    print("\n".join(lacking()))
