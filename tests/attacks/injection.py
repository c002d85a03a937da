"""Faults and signals at exact system calls of a running child, by strace."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import LIMIT

from .crew import Member

#: What the children talk to the test with, and what the interpreter does on its own account.
_NOT_OURS = frozenset(
    "recvfrom sendto restart_syscall futex brk mmap munmap madvise mprotect rt_sigaction "
    "exit_group".split()
)


@contextmanager
def _traced(member: Member, *options: str) -> Iterator[subprocess.Popen[str]]:
    if shutil.which("strace") is None:
        pytest.skip("needs strace with fault injection (apt install strace)")
    command = ["strace", "-f", *options, "-p", str(member.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        # It says so once the process is stopped, and its next system call is the first counted.
        line = tracer.stderr.readline()
        if "not permitted" in line:
            pytest.skip("needs the right to trace")
        assert "attached" in line
        yield tracer
    finally:
        tracer.terminate()  # lets go of the child
        tracer.communicate(timeout=LIMIT)


@contextmanager
def injected(member: Member, rule: str) -> Iterator[None]:
    """With a rule of strace's ``inject=`` in force.

    The counters of ``when=`` start at 1 now, for each system call and each thread.
    """
    with _traced(member, "-o", "/dev/null", "-e", f"inject={rule}"):
        yield


@contextmanager
def recorded(member: Member, log: Path) -> Iterator[Counter[str]]:
    """How often the busiest thread makes each system call from now until the child ends.

    It is filled when the context ends, as the child has by then.
    """
    counts = Counter[str]()
    with _traced(member, "-o", str(log)) as tracer:
        yield counts
        member.wait()
        tracer.wait(LIMIT)
    pattern = re.compile(r"^(\d+) +(\w+)\(", re.MULTILINE)
    for (_, name), times in Counter(pattern.findall(log.read_text(errors="replace"))).items():
        if name not in _NOT_OURS:
            counts[name] = max(counts[name], times)


def occurrences(times: int, most: int | None) -> list[int]:
    """The numbers of the calls to attack: all, or so many, with the first and the last."""
    if most is None or times <= most:
        return list(range(1, times + 1))
    return sorted({1 + round(step * (times - 1) / (most - 1)) for step in range(most)})
