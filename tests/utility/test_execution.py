"""Programs that a model might write: wrong, endless, greedy, curious."""

import socket
import sys

import pytest

from midward.utility import Limits, protections, run_program
from midward.utility.humaneval import program, score, task_config

SHORT = Limits(seconds=1.5, memory=1 << 29)


def test_a_program_that_ends_has_passed():
    assert run_program("import math\nassert math.isqrt(10) == 3\nprint('noise')").passed


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("while True: pass", "no end after 1.5 seconds"),
        ("import time; time.sleep(60)", "no end after 1.5 seconds"),
        ("held = [0] * 10**10", "MemoryError"),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "the process died"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("open('big', 'w').write('x' * 2**21)", "OSError"),
        ("input()", "NameError"),
    ],
)
def test_what_goes_wrong_is_no_pass(source, error):
    ran = run_program(source, SHORT)
    assert not ran.passed and error in ran.error


@pytest.mark.parametrize(
    "written",
    [
        "b'{\"error\": null}\\n'",
        'b\'{"token": null, "error": null}\\n{"token": "", "error": null}\\n\'',
        r"b'no JSON\n\xff\n[1]\n'",
        "b'[' * 50_000",
    ],
)
@pytest.mark.parametrize(("end", "error"), [("os._exit(0)", "the process died (status 0)"), ("1 / 0", "Zero")])
def test_a_verdict_is_not_forged(written, end, error):
    source = f"""import os
for number in range(3, 64):
    try: os.write(number, {written} + b'\\n')
    except OSError: pass
{end}"""
    ran = run_program(source, SHORT)
    assert not ran.passed and error in ran.error and ran.held == protections()


def test_no_global_leads_to_what_makes_a_verdict():
    source = """import re, sys
assert "fence" in vars(sys.modules["__main__"])
assert not re.search("[0-9a-f]{32}", repr(vars(sys.modules["__main__"])) + repr(globals()))"""
    assert run_program(source, SHORT).error is None


def test_files_are_written_in_a_folder_that_goes_away(tmp_path):
    assert run_program("open('mine', 'w').write('x')\nassert open('mine').read() == 'x'", SHORT).passed
    outside = tmp_path / "outside"
    mine = tmp_path / "mine"
    mine.write_text("kept")
    for source in (
        f"open({str(outside)!r}, 'w').write('x')",
        f"open('../{outside.name}', 'w').write('x')",
        f"import os; os.close(os.open({str(outside)!r}, os.O_CREAT | os.O_WRONLY))",
        f"import os; os.remove({str(mine)!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
    ):
        assert "PermissionError" in run_program(source, SHORT).error
    assert not outside.exists() and mine.read_text() == "kept"


def test_the_kernel_holds_where_python_is_passed_by(tmp_path):
    if not any("Landlock" in one for one in protections()):
        pytest.skip("this kernel has no Landlock")
    outside = tmp_path / "outside"
    source = f"import ctypes\nassert ctypes.CDLL(None).creat({str(outside).encode()!r}, 0o644) >= 0"
    assert "AssertionError" in run_program(source, SHORT).error
    assert not outside.exists()


@pytest.mark.parametrize("way", ["python", "libc"])
def test_nobody_is_reached_over_the_network(way):
    if way == "libc" and not any("network" in one for one in protections()):
        pytest.skip("no network namespaces here: only Python's own calls are watched")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        if way == "python":
            source = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
        else:
            source = (
                "import ctypes, struct\nlibc = ctypes.CDLL(None)\ns = libc.socket(2, 1, 0)\n"
                f"to = struct.pack('=H', 2) + struct.pack('>H', {port}) + bytes([127, 0, 0, 1]) + bytes(8)\n"
                "assert libc.connect(s, to, 16) == 0"
            )
        assert not run_program(source, SHORT).passed
        with pytest.raises(BlockingIOError):  # nobody waits at the door
            server.accept()


def test_the_environment_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run_program("import os; assert 'HF_TOKEN' not in os.environ and 'HOME' not in os.environ").passed


def test_a_limit_on_processes_is_told_where_it_holds():
    source = "import ctypes\nlibc = ctypes.CDLL(None)\npid = libc.fork()\nif pid == 0: libc._exit(0)\nassert pid < 0"
    ran = run_program(source, SHORT)
    assert ran.passed == any(one.startswith("limits") and "processes" in one for one in ran.held)


@pytest.mark.skipif(sys.platform != "linux", reason="what macOS holds is less")
def test_the_limits_are_told():
    assert any(one.startswith("limits on time, memory, file size") for one in protections())


DOC = {
    "prompt": "def double(x):\n    '''Return twice x.'''\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}


@pytest.mark.parametrize(
    ("response", "passed"),
    [
        ("    return 2 * x\n", 1.0),
        ("    return 3 * x\n", 0.0),
        ("", 0.0),
        ("    return 2 * x\n```\nIt doubles.", 1.0),
        ("Here it is:\n```python\ndef double(x):\n    return x + x\n```\nDone.", 1.0),
        ("```\ndef double(x):\n    return x + x", 1.0),
        ("Sorry, no.", 0.0),
    ],
)
def test_a_response_is_judged_by_the_tests(response, passed):
    assert score(DOC, [response]) == {"pass@1": passed}


def test_the_tests_come_last():
    assert program(DOC, "    return 2 * x").endswith("check(double)\n")


def test_what_cannot_be_judged_is_told():
    with pytest.raises(ValueError, match="the data set lacks 'test'"):
        score({"prompt": "", "entry_point": "f"}, [""])
    with pytest.raises(ValueError, match="draws 64 samples a problem"):
        task_config({"task": "humaneval_64", "repeats": 64})
