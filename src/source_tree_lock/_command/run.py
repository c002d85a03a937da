"""``source-tree-lock run``: a command under the lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from .. import LockOptions, Wait
from .._lock import LockForChildren
from ..adapters import is_setuptools
from ..adapters.messages import redirect_messages
from .output import NOT_EXECUTABLE, NOT_FOUND, SIGNALLED, WaitOutput, fail, say

#: Words that have uv build a project.
_UV_BUILDS = frozenset("add build compile export install lock remove run sync tree".split())
_UV_WAITS = """\
warning: uv takes this lock by itself. If it builds TREE now, it waits for the process that started
it, and after UV_LOCK_TIMEOUT builds without the lock. Run uv without source-tree-lock."""


def run(options: Namespace) -> int:
    """Wait for the tree, run the command, and return its exit status.

    Args:
        options: `tree`; `command`, a program and its arguments; `timeout`, in seconds, and
            `lock_dir`, both ``None`` for the default; `quiet`, not to show that it waits.

    Raises:
        Those of entering a `SourceTreeLock`.
        SystemExit: a signal ended the wait.
    """
    output = WaitOutput()
    lock_options: LockOptions = {"lock_dir": options.lock_dir, "after_wait": output.finish}
    if options.timeout is not None:
        lock_options["timeout"] = options.timeout
    # Without a callback, the library would log the wait.
    show: Callable[[Wait], object] = (lambda _: None) if options.quiet else output.show
    lock_options["on_wait"] = lock_options["while_waiting"] = show
    lock = LockForChildren(options.tree, **lock_options)
    sys.argv[:1] = options.command[:1]  # the holder is called by the name of the command
    # These end the wait, as Ctrl-C does.
    _handle(lambda number, _: sys.exit(SIGNALLED + number), "SIGTERM", "SIGHUP")
    try:
        with redirect_messages(output.warn), lock:
            if options.lock_dir is None and _is_uv_that_waits(options.command, options.tree):
                say(_UV_WAITS)
            for descriptor in lock.pass_fds:
                os.set_inheritable(descriptor, True)
            return _run(options.command, {**os.environ, **lock.environ})
    finally:
        output.clear()


def _run(command: list[str], environ: dict[str, str]) -> int:
    r"""Run a command, and return its exit status or that of a shell for a failure.

    As with system(3), the keys of the terminal (Ctrl-C and Ctrl-\) are for the command, which gets
    them from the terminal too. SIGTERM and SIGHUP are passed on to it. The handlers stay when the
    command has ended, so that a late signal cannot change the exit status.
    """
    early: list[int] = []  # before the command has started
    _handle(lambda number, _: early.append(number), "SIGTERM", "SIGHUP")
    _handle(lambda _number, _frame: None, "SIGINT", "SIGQUIT", "SIGBREAK")
    if hasattr(signal, "SIGCHLD"):
        # Where it is ignored, waitpid(2) cannot report the status of a child.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        # It inherits the locks, and all that this process has inherited: make's job server is
        # two descriptors.
        process = subprocess.Popen(command, env=environ, close_fds=False)
    except FileNotFoundError:
        return fail(NOT_FOUND, f"command not found: {command[0]!r}")
    except OSError as error:
        return fail(NOT_EXECUTABLE, f"cannot execute {command[0]!r}: {error.strerror}")

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(PermissionError):  # it runs as another user, as with sudo
            process.send_signal(number)

    _handle(pass_on, "SIGTERM", "SIGHUP")
    for number in early:
        pass_on(number, None)
    code = process.wait()
    return SIGNALLED - code if code < 0 else code


def _handle(handler: Callable[[int, FrameType | None], None], *names: str) -> None:
    """Install a handler for those signals that exist here and are not ignored, as by nohup(1)."""
    for name in names:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _is_uv_that_waits(command: list[str], tree: str) -> bool:
    """Return whether a command is a uv that would wait for the process that runs it.

    That is decided by the words of the command: which project uv will build is not known here.
    """
    names = [os.path.basename(word).removesuffix(".exe") for word in command]
    is_uv = names[0] == "uv" or names[1:3] == ["-m", "uv"]
    return is_uv and not _UV_BUILDS.isdisjoint(command) and is_setuptools(tree)
