"""Run one Python program behind fences; started as a script of its own by `execution`, never imported.

stdin: JSON {source, token, seconds, memory, file_bytes}. stdout: JSON lines; first what holds ({"held": [...]}), then,
if the program came to an end, {"token": token, "error": null} or with what ended it. The program can find stdout, but
none of its globals leads to the token. Only the standard library is needed.
"""

import builtins
import ctypes
import json
import os
import resource
import sys

NEW_USER, NEW_NET = 0x10000000, 0x40000000  # of unshare(2)
NO_NEW_PRIVILEGES = 38  # of prctl(2)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # landlock's system calls, the same on all machines
#: Landlock's rights that would change something, by the version that brought them: execute, write and create; move;
#: truncate.
WRITING = {1: 0b1_1111_1111_0011, 2: 1 << 13, 3: 1 << 14}
#: Events of Python's own that are refused outright.
REFUSED = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "pty.spawn",
)
#: Events that name files which must lie in the program's folder.
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "os.removexattr",
    "os.mkfifo",
    "os.mknod",
)


def main() -> None:
    told = json.loads(sys.stdin.read())
    report = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    held = fence(told)
    report.write(json.dumps({"held": held}) + "\n")
    report.flush()
    try:
        exec(compile(told["source"], "<program>", "exec"), {"__name__": "program"})  # noqa: S102
        error = None
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"[:300]
    report.write(json.dumps({"token": told["token"], "error": error}) + "\n")
    report.flush()
    os._exit(0)


def fence(told: dict) -> list[str]:
    """Put up all fences that this platform has; their names."""
    held = []
    libc = ctypes.CDLL(None, use_errno=True)
    # Before the limits, which a namespace's root would else not be held by.
    if hasattr(libc, "unshare") and (libc.unshare(NEW_USER | NEW_NET) == 0 or libc.unshare(NEW_NET) == 0):
        held.append("no network (namespace)")
    if sys.platform == "linux" and landlock(libc):
        held.append("no files written elsewhere, no programs started (Landlock)")
    limits = {
        "time": (resource.RLIMIT_CPU, int(told["seconds"]) + 1),
        "memory": (resource.RLIMIT_AS, told["memory"]),
        "file size": (resource.RLIMIT_FSIZE, told["file_bytes"]),
        "core dumps": (resource.RLIMIT_CORE, 0),
        "open files": (resource.RLIMIT_NOFILE, 64),
        "processes": (resource.RLIMIT_NPROC, 0),
    }
    set_ = []
    for name, (which, most) in limits.items():
        try:
            resource.setrlimit(which, (most, most))
            if name != "processes" or not one_more():
                set_.append(name)
        except (OSError, ValueError):
            continue
    if set_:
        held.append(f"limits on {', '.join(set_)}")
    sys.addaudithook(watch(os.path.realpath(os.getcwd())))
    held.append("Python's own calls watched")
    return held


def one_more() -> bool:
    """Whether a process can be started all the same: the limit doesn't hold root."""
    try:
        started = os.fork()
    except OSError:
        return False
    if started == 0:
        os._exit(0)
    os.waitpid(started, 0)
    return True


def landlock(libc: ctypes.CDLL) -> bool:
    """Nothing is written outside the working folder, and nothing is executed; whether the kernel can hold that."""
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    rights = sum(bits for since, bits in WRITING.items() if since <= version)
    # A ruleset's fields: rights to files, to TCP ports (version 4), scopes (6: abstract sockets, signals).
    fields = [rights] + [0b11] * (version >= 4) + [0b11] * (version >= 6)
    ruleset = (ctypes.c_uint64 * len(fields))(*fields)
    number = libc.syscall(CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    if number < 0:
        return False
    folder = os.open(os.getcwd(), os.O_PATH)

    class Rule(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("rights", ctypes.c_uint64), ("folder", ctypes.c_int32)]

    rule = Rule(rights & ~1, folder)  # all but execute
    done = (
        libc.syscall(ADD_RULE, number, 1, ctypes.byref(rule), 0) == 0
        and libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
        and libc.syscall(RESTRICT_SELF, number, 0) == 0
    )
    os.close(folder)
    os.close(number)
    return done


def watch(home: str):
    """An audit hook: no network, no other programs, no changes of files outside `home`. It stops accidents on every
    platform; code that is out to get past it needs the kernel's fences."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    real, join = os.path.realpath, os.sep

    def inside(path: object) -> bool:
        if isinstance(path, (str, bytes)):
            where = real(os.fsdecode(path))
            return where == home or where.startswith(home + join) or where == os.devnull
        return isinstance(path, int)  # a file that is open already

    def hook(event: str, given: tuple) -> None:
        if event == "open":
            path, mode, flags = given
            changes = any(sign in mode for sign in "wax+") if mode else bool((flags or 0) & writing)
            if changes and not inside(path):
                raise PermissionError(f"no writing to {path!r}")
        elif event.startswith(REFUSED):
            raise PermissionError(f"no {event}")
        elif event in CHANGES:
            for path in given:
                if isinstance(path, (str, bytes)) and not inside(path):
                    raise PermissionError(f"no {event} of {path!r}")

    return hook


if __name__ == "__main__":
    del builtins.input, builtins.exit, builtins.quit
    main()
