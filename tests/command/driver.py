"""The command as people run it: to its end, in a session of its own, and in a terminal."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

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

from source_tree_lock import source_tree_lock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]


MODULE = [sys.executable, "-m", "source_tree_lock"]
SCRIPT = Path(sys.executable).with_name("source-tree-lock")
#: The installed command; where a checkout is tested without an installation, the module.
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else MODULE
#: The command with a clock that runs sixty times as fast.
HASTY = python("""
    import time
    clock = time.monotonic
    time.monotonic = lambda: 60 * clock()
    from source_tree_lock.__main__ import main
    raise SystemExit(main())
""")


def run(
    *arguments: object,
    command: list[str] = COMMAND,
    environ: Mapping[str, str] = {},
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """The command, to its end."""
    command = [*command, *map(str, arguments)]
    options = {"input": b"", "stdout": PIPE, "stderr": PIPE, "timeout": LIMIT, **options}
    return subprocess.run(command, env={**os.environ, **environ}, **options)


def complaint(ended: subprocess.CompletedProcess[bytes]) -> str:
    """The one message on stderr, without a traceback."""
    found = re.fullmatch(r"source-tree-lock: (.*)\n", ended.stderr.decode())
    assert found is not None, ended.stderr
    return found[1]


@contextmanager
def started(*arguments: object, command: list[str] = COMMAND, **options: Any) -> Iterator[Any]:
    """The command, a `Popen` in a session of its own, ended with all that it has started."""
    command = [*command, *map(str, arguments)]
    process: Any = subprocess.Popen(command, start_new_session=True, **options)
    with process:
        try:
            yield process
        finally:
            stop_for_good(process)


@contextmanager
def waiting(*arguments: object, command: list[str] = COMMAND) -> Iterator[tuple[Child, Any]]:
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


#: Makes a terminal its own and becomes a command.
ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_TEXT = r"\r\x1b\[\?7l([^\r\n\x1b]*)\x1b\[K\x1b\[\?7h"


class Terminal(AbstractContextManager["Terminal"]):
    """A pseudo-terminal with a command in it, which leads its session."""

    def __init__(
        self, *command: object, columns: int = 80, environ: Mapping[str, str] = {}
    ) -> None:
        self._ours, self._theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *map(str, command)],
            start_new_session=True,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**os.environ, "TERM": "xterm", **environ},
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.shown = ""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, pattern: str) -> None:
        """Read until the terminal has shown it."""

        def is_shown() -> bool:
            with suppress(BlockingIOError):
                self.shown += self._decoder.decode(os.read(self._ours, 65536))
            return re.search(pattern, self.shown) is not None

        wait_until(is_shown)

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

    def __exit__(self, *exc_info: object) -> None:
        print(f"the terminal has shown {self.shown!r}")  # where a test fails
        stop_for_good(self.process)
        os.close(self._theirs)
        os.close(self._ours)
