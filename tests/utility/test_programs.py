"""Programs that a model might write: wrong, endless, greedy, curious. Behind real fences where bubblewrap is there."""

import shutil
import socket
import sys

import pytest

from midward.utility.programs import program, run_program, sandbox, score, task_config

DOC = {"prompt": "def f(x):\n    '''Add one.'''\n", "entry_point": "f", "test": "def check(g):\n    assert g(1) == 2\n"}
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap isn't installed")


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ("assert sum([1, 2]) == 3", True),
        ("assert False", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("def (", False),
        ("while True: pass", False),
        ("x = bytearray(1 << 31)", False),
        ("print('x' * 1000000)", True),
        ("'\\ud800'", True),
        ("from __future__ import annotations", True),
    ],
)
def test_a_program_passes_that_comes_to_its_end(bubblewrap, source, passes):
    assert run_program(source, seconds=3.0) is passes


def test_without_bubblewrap_nothing_is_run(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.cache_clear()
    with pytest.raises(ValueError, match="apt install bubblewrap"):
        run_program("")
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    with pytest.raises(ValueError, match="can't make a sandbox here"):
        run_program("")


@needs_bwrap
def test_a_program_reaches_nothing(tmp_path):
    sandbox.cache_clear()
    assert run_program("open('/tmp/x', 'w').write('x')")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not run_program(f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)")
    assert not run_program(f"open({str(tmp_path / 'x')!r}, 'w')") and not list(tmp_path.iterdir())
    assert run_program("import os; assert set(os.environ) <= {'PWD', 'LC_CTYPE'}, dict(os.environ)")
    assert run_program("import os; assert not os.listdir('/proc') and not os.listdir('/run') and os.getpid() < 9")
    assert not run_program("import subprocess; subprocess.run(['touch', '/usr/x'], check=True)")


@pytest.mark.parametrize(
    "response",
    [
        "    return x + 1\n",
        "    return x + 1\n```\nand so on",
        "Here it is:\n```python\ndef f(x):\n    return x + 1\n```",
        "```\ndef f(x):\n    return x + 1",
    ],
)
def test_a_response_goes_on_or_holds_the_whole_function(bubblewrap, response):
    assert score(DOC, [response]) == {"pass@1": 1.0}
    assert program(DOC, response).endswith("check(f)\n")


def test_a_wrong_response_does_not_pass(bubblewrap):
    assert score(DOC, ["    return x\n"]) == {"pass@1": 0.0}


def test_other_tasks_and_data_are_refused():
    with pytest.raises(ValueError, match="lacks 'entry_point'"):
        score({"prompt": "", "test": ""}, [""])
    with pytest.raises(ValueError, match="one sample a problem"):
        task_config("t", {"doc_to_target": "{{entry_point}}", "repeats": 64})
    with pytest.raises(ValueError, match="only HumanEval's"):
        task_config("t", {"doc_to_target": "{{tests}}"})


def test_the_interpreter_is_this_one(bubblewrap):
    assert run_program(f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]!r}")
