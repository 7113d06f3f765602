"""Another process that has claimed a place of the disk."""

import subprocess
import sys
from contextlib import contextmanager

HOLD = "import pathlib, sys; from midward.store import hold; mine = hold(pathlib.Path(sys.argv[1])); print(); input()"


@contextmanager
def held(path, program=HOLD):
    """Within, another process writes to `path`; it is killed in the end."""
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline()
        yield
        other.kill()
