"""The command as people run it: to its end, in a session of its own, and in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from support import LIMIT, PRELUDE, held_elsewhere, is_free, stop_for_good, wait_until, waiters
from typing_extensions import Self

from source_tree_lock import source_tree_lock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

MODULE = [sys.executable, "-m", "source_tree_lock"]
SCRIPT = Path(sys.executable).with_name("source-tree-lock")
#: The installed command; where a checkout is tested without an installation, the module.
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else MODULE

_HASTY = """
import time
clock = time.monotonic
time.monotonic = lambda: 60 * clock()
from source_tree_lock.__main__ import main
raise SystemExit(main())
"""
#: The command with a clock that runs sixty times as fast.
HASTY = [sys.executable, "-c", _HASTY]


def python(script: str, *arguments: object) -> list[str]:
    """The command that runs a script."""
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]


def run(
    *arguments: object,
    command: Sequence[str] = COMMAND,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """The command, to its end."""
    return subprocess.run(
        [*command, *(each if isinstance(each, bytes) else str(each) for each in arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, **(environ or {})},
        cwd=cwd,
        timeout=LIMIT,
    )


def complaint(ended: subprocess.CompletedProcess[bytes]) -> str:
    """The one message on stderr, without a traceback."""
    text = ended.stderr.decode()
    found = re.fullmatch("source-tree-lock: (.*)\n", text)
    assert found is not None, text
    return str(found[1])


@contextmanager
def started(*arguments: object, command: Sequence[str] = COMMAND, **options: Any) -> Iterator[Any]:
    """The command as a Popen, in a session of its own, ended with all that it has started."""
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*command, *map(str, arguments)], start_new_session=True, **options
    )
    try:
        yield process
    finally:
        stop_for_good(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


@contextmanager
def waiting(
    tree: Path, *options: str, command: Sequence[str] = COMMAND
) -> Iterator[tuple[Any, Any]]:
    """`run`, its output in pipes, while it waits for a process that holds the tree."""
    words = ["run", *options, tree, "--", "sh", "-c", "echo inside; exit 7"]
    with (
        held_elsewhere(tree) as holder,
        started(*words, command=command, stdout=PIPE, stderr=PIPE) as process,
    ):
        wait_until(lambda: process.pid in waiters(source_tree_lock(tree).lock_file))
        yield holder, process


def both_free(tree: Path) -> bool:
    """Whether flock(1) gets the lock file and the tree itself."""
    return is_free(source_tree_lock(tree).lock_file) and is_free(tree)


#: Makes the terminal that is its input its own and becomes a command. Arguments: the command.
ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""

#: What a shell with job control does: the command is a group of its own, in the foreground.
SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
def to_foreground():
    os.setpgrp()
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
job = subprocess.Popen(sys.argv[1:], preexec_fn=to_foreground)
while os.WIFSTOPPED(status := os.waitpid(job.pid, os.WUNTRACED)[1]):
    if os.WSTOPSIG(status) == signal.SIGTSTP:
        print("stopped", flush=True)
        os.killpg(job.pid, signal.SIGCONT)
os.tcsetpgrp(0, os.getpgrp())
print("status", os.waitstatus_to_exitcode(status), flush=True)
"""
LEADERS = {"leads the session": [], "a shell's job": [sys.executable, "-c", SHELL]}

_TEXT = r"\r\x1b\[\?7l([^\r\n\x1b]*)\x1b\[K\x1b\[\?7h"


class Terminal:
    """A pseudo-terminal with a command in it, which leads its session."""

    def __init__(self, *command: object, columns: int = 80) -> None:
        self.ours, self._theirs = pty.openpty()
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, size)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *map(str, command)],
            start_new_session=True,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**os.environ, "TERM": "xterm"},
        )
        self._bytes = b""
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Read until the terminal has shown it."""
        deadline = time.monotonic() + LIMIT
        while (found := re.search(pattern, self.shown)) is None:
            seconds = max(0.0, deadline - time.monotonic())
            shows_more = select.select([self.ours], [], [], seconds)[0]
            assert shows_more, f"the terminal shows no {pattern!r}: {self.shown!r}"
            self._bytes += os.read(self.ours, 65536)
            self.shown = self._bytes.decode(errors="ignore")  # half a letter may be there
        return found

    def end(self) -> int:
        """Read all until the command has ended; its status."""
        status = self.process.wait(LIMIT)
        os.write(self._theirs, b"[end]")  # behind all that the command has written
        self.until(re.escape("[end]"))
        self.shown = self.shown.removesuffix("[end]")
        return status

    def texts(self) -> list[str]:
        """The texts that were shown in one row, one in the place of another."""
        return re.findall(_TEXT, self.shown)

    def left(self) -> str:
        """What is left when the texts have been taken back, with the keys that were shown there."""
        return re.sub(rf"(?:{_TEXT})+(?:\^C)?\r\x1b\[K", "", self.shown).replace("\r\n", "\n")

    def hang_up(self) -> None:
        for each in self._theirs, self.ours:
            with suppress(OSError):
                os.close(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        stop_for_good(self.process)
        self.hang_up()


#: Writes down the signals that it gets; SIGUSR1 ends it. Arguments: where.
NOTE = """
    import os, signal, sys
    signal.alarm(120)  # the test has failed
    # Each as it comes: a handler of Python's would see two as one.
    awaited = [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    log = open(sys.argv[1], "a", buffering=1)
    print(os.getpid(), os.getppid(), file=log)
    while True:
        number = signal.sigwait(awaited)
        if number == signal.SIGUSR1:
            os._exit(5)
        print(signal.Signals(number).name, file=log)
"""


def noted(log: Path) -> list[str]:
    """What the command has got."""
    return log.read_text().split()[2:]


def wait_for_the_pids(log: Path) -> tuple[int, int]:
    """The command and its wrapper."""
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    pid, wrapper = map(int, log.read_text().split()[:2])
    return pid, wrapper
