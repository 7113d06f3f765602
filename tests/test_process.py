"""What a process of ours asks of the machine, unless the user has another wish."""

import ctypes
import os
import subprocess
import sys

import pytest


def run(program, **given):
    """What a Python program prints last, with nothing of ours in its environment but what is given."""
    ours = ("OMP_WAIT_POLICY", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | given
    words = [sys.executable, "-c", program, "--version"]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.split("\n")[-2]


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_waiting_threads_sleep(given):
    program = """
import os, sys
from midward.cli import main
try: main()
except SystemExit: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""
    assert run(program, **given) == f"{given.get('OMP_WAIT_POLICY', 'PASSIVE')} False"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library isn't glibc")
def test_freed_memory_stays_for_the_next_step():
    program = """
import resource
from midward._process import settle_process
settle_process()
for _ in range(3):  # a second time, pages that were kept aren't asked for anew
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(1 << 20) for _ in range(40)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(run(program)) < (40 << 20) // os.sysconf("SC_PAGE_SIZE") / 20
    wish = {"MALLOC_TRIM_THRESHOLD_": "131072"}
    printed = run("import os\n" + program + "print(os.environ['MALLOC_TRIM_THRESHOLD_'])", **wish)
    assert printed == wish["MALLOC_TRIM_THRESHOLD_"]
