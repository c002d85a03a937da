"""The command as people run it: to its end, in a session of its own, and in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import pytest
from support import (
    LIMIT,
    PRELUDE,
    Child,
    held_elsewhere,
    is_free,
    stop_for_good,
    wait_until,
    waiters,
)
from typing_extensions import Self

from source_tree_lock import source_tree_lock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

MODULE = [sys.executable, "-m", "source_tree_lock"]
SCRIPT = Path(sys.executable).with_name("source-tree-lock")
#: The installed command; where a checkout is tested without an installation, the module.
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else MODULE

#: The command with a clock that runs sixty times as fast.
HASTY = [
    sys.executable,
    "-c",
    """if True:
    import time
    clock = time.monotonic
    time.monotonic = lambda: 60 * clock()
    from source_tree_lock.__main__ import main
    raise SystemExit(main())
    """,
]


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
    assert text.startswith("source-tree-lock: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    return text.removeprefix("source-tree-lock: ").rstrip("\n")


class Running(subprocess.Popen[bytes]):
    """The command, whose standard streams are pipes as far as a test uses them."""

    stdin: IO[bytes]  # pyright: ignore[reportIncompatibleVariableOverride]
    stdout: IO[bytes]  # pyright: ignore[reportIncompatibleVariableOverride]
    stderr: IO[bytes]  # pyright: ignore[reportIncompatibleVariableOverride]


@contextmanager
def started(
    *arguments: object, command: Sequence[str] = COMMAND, **options: Any
) -> Iterator[Running]:
    """The command, in a session of its own, ended with all that it has started."""
    process = Running([*command, *map(str, arguments)], start_new_session=True, **options)
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
    *arguments: object, command: Sequence[str] = COMMAND
) -> Iterator[tuple[Child, Running]]:
    """`run`, its output in pipes, while it waits for a process that holds the tree."""
    tree = Path(str(arguments[-1]))
    words = ["run", *arguments, "--", "sh", "-c", "echo inside; exit 7"]
    with (
        held_elsewhere(tree) as holder,
        started(*words, command=command, stdout=PIPE, stderr=PIPE) as process,
    ):
        wait_until(lambda: process.pid in waiters(source_tree_lock(tree).lock_file))
        yield holder, process


def both_free(tree: Path) -> bool:
    """Whether flock(1) gets the lock file and the tree itself."""
    return is_free(source_tree_lock(tree).lock_file) and is_free(tree)


#: Makes a terminal its own and becomes a command. Arguments: the terminal, the command.
ON_TERMINAL = """
import fcntl, os, sys, termios
terminal = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for each in range(3):
    os.dup2(terminal, each)
os.execvp(sys.argv[2], sys.argv[2:])
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
while True:
    _, status = os.waitpid(job.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
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

    def __init__(
        self, *command: object, columns: int = 80, environ: Mapping[str, str] | None = None
    ) -> None:
        self.ours, self._theirs = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, os.ttyname(self._theirs), *map(str, command)],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm", **(environ or {})},
        )
        self._bytes = b""
        self.shown = ""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Read until the terminal has shown it."""
        os.set_blocking(self.ours, False)
        found: list[re.Match[str]] = []

        def look() -> bool:
            with suppress(BlockingIOError):
                self._bytes += os.read(self.ours, 65536)
                self.shown = self._bytes.decode(errors="ignore")  # half a letter may be there
            found.extend(re.finditer(pattern, self.shown))
            return bool(found)

        try:
            wait_until(look)
        except AssertionError as error:
            raise AssertionError(f"the terminal shows no {pattern!r}: {self.shown!r}") from error
        return found[0]

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
        os.close(self._theirs)
        os.close(self.ours)
        self.ours = self._theirs = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        stop_for_good(self.process)
        if self.ours >= 0:
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
