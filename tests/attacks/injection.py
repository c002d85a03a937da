"""Faults and signals at exact system calls of a running child, by strace."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
from support import LIMIT, wait_until_blocked

from source_tree_lock import SourceTreeLock

from .crew import Member, wait_until_blocked_or_tells

_T = TypeVar("_T")

#: What the children talk to the test with, and what the interpreter does on its own account.
_NOT_OURS = frozenset(
    (
        "recvfrom sendto restart_syscall futex brk mmap munmap madvise mprotect rt_sigaction "
        "exit_group"
    ).split()
)


@cache
def strace_works() -> bool:
    """Whether strace is here, can inject, and may trace a process that is no child of its."""
    if shutil.which("strace") is None:
        return False
    sleeper = subprocess.Popen(["sleep", str(LIMIT)])
    try:
        tracer = _attach(sleeper.pid, "-e", "inject=close:error=EIO")
    except AssertionError:
        return False
    finally:
        sleeper.kill()
        sleeper.wait(LIMIT)
    tracer.communicate(timeout=LIMIT)
    return True


def needs_strace() -> None:
    """Skip where strace cannot be used."""
    if not strace_works():
        pytest.skip(
            "needs strace with fault injection, and the right to trace (apt install strace)"
        )


def _attach(pid: int, *options: str) -> subprocess.Popen[str]:
    tracer = subprocess.Popen(
        ["strace", "-f", *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    # It says so once the process has been stopped, and its next system call is the first counted.
    line = tracer.stderr.readline()
    if "attached" not in line:
        tracer.kill()
        tracer.communicate()
        raise AssertionError(f"strace does not attach: {line!r}")
    return tracer


@contextmanager
def injected(member: Member, rules: Sequence[str]) -> Iterator[None]:
    """With these rules of strace's ``inject=`` in force.

    The counters of ``when=`` start at 1 now, for each system call and each thread.
    """
    options = [option for rule in rules for option in ("-e", f"inject={rule}")]
    tracer = _attach(member.pid, "-o", "/dev/null", *options)
    try:
        yield
    finally:
        tracer.terminate()  # lets go of the child
        tracer.communicate(timeout=LIMIT)


@contextmanager
def recorded(member: Member, directory: Path) -> Iterator[Counter[str]]:
    """How often the busiest thread makes each system call from now until the child ends.

    It is filled when the context ends, as the child has by then.
    """
    log = directory / "strace.log"
    counts: Counter[str] = Counter()
    tracer = _attach(member.pid, "-o", str(log))
    try:
        yield counts
    finally:
        member.wait()
        tracer.communicate(timeout=LIMIT)
        calls = Counter(
            re.findall(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE)
        )
        for (_, name), times in calls.items():
            if name not in _NOT_OURS:
                counts[name] = max(counts[name], times)


def occurrences(times: int, most: int | None) -> list[int]:
    """The numbers of the calls to attack: all, or so many, with the first and the last."""
    if most is None or times <= most:
        return list(range(1, times + 1))
    return sorted({1 + round(step * (times - 1) / (most - 1)) for step in range(most)})


Fault = Callable[[Member], AbstractContextManager[_T]]


@contextmanager
def sent(member: Member, lock: SourceTreeLock, attack: str, fault: Fault[_T]) -> Iterator[_T]:
    """Tell the child to go, with a fault in force; gives what the fault gives.

    ``attack`` is "on a free tree"; or, on one that is held for a while with ``lock``, "until
    it waits" or "once it waits": when the fault is in force.
    """
    with ExitStack() as stack:
        if attack == "on a free tree":
            result = stack.enter_context(fault(member))
            member.say("go")
        elif attack == "until it waits":
            result = stack.enter_context(fault(member))
            with lock:
                member.say("go")
                wait_until_blocked_or_tells(member)
        else:
            with lock:
                member.say("go")
                wait_until_blocked(member.pid)
                result = stack.enter_context(fault(member))
        yield result
