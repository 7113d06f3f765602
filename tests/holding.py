"""Another process: one that has claimed a place of the disk, and a fork of this one."""

import os
import subprocess
import sys
import traceback
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


def in_a_fork(work, last_words):
    """How `work` ends in a process of its own; what it gave or raised, if it came so far, is in `last_words`.

    It has all that is imported here: a new interpreter takes seconds to come so far.
    """
    child = os.fork()
    if not child:
        try:
            last_words.write_text(str(work()))
        except BaseException:
            last_words.write_text(traceback.format_exc())
        finally:
            os._exit(99)
    return os.waitpid(child, 0)[1]
