"""A subprocess runner that holds the source tree while a hook runs in it."""

from __future__ import annotations

import _thread
import os
import subprocess
import threading
from contextlib import suppress

from .._lock import source_tree_lock
from .rule import is_setuptools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final, Protocol

    from typing_extensions import Unpack

    from .._options import LockOptions
    from .rule import Rule

    class Runner(Protocol):
        """What ``pyproject_hooks`` and ``build`` call to run a hook in a subprocess."""

        def __call__(
            self,
            cmd: Sequence[str],
            cwd: str | None = None,
            extra_environ: Mapping[str, str] | None = None,
        ) -> None:
            """Run ``cmd`` in ``cwd``, with ``extra_environ`` added; raise if it fails."""


#: How long a command that is to end may take before it is killed, in seconds.
_GRACE: Final = 5.0


def locked_runner(
    runner: Runner | None = None,
    *,
    when: Rule = is_setuptools,
    **lock_options: Unpack[LockOptions],
) -> Runner:
    """A subprocess runner that locks the source tree, its ``cwd``, around every hook.

    For ``pyproject_hooks.BuildBackendHookCaller(..., runner=)``, ``build.ProjectBuilder(...,
    runner=)`` and the like. The hold is handed over to the hook, so that a hook which takes
    the lock itself does not wait for its own frontend.

    Args:
        runner: what runs the command. The default runs it here, and hands the descriptors of
            the kernel locks down besides: a hook that outlives a killed frontend keeps the
            tree locked until it is done. It ends the command when it is interrupted.
        when: tells of a source tree whether to lock it.
        lock_options: ``timeout``, ``digest``, ``lock_dir`` and ``on_wait``, as for
            `source_tree_lock`.

    Raises:
        TypeError, ValueError: a lock option makes no sense.

    Raises (when it is called):
        subprocess.CalledProcessError: the command failed (without a ``runner``).
        Those of entering a `source_tree_lock`.
    """
    source_tree_lock(**lock_options)  # what makes no sense is said here, not at the first hook

    def run(
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        tree = os.getcwd() if cwd is None else cwd
        if not when(tree):
            (runner or _run)(cmd, cwd, extra_environ)
            return
        with source_tree_lock(tree, **lock_options) as lock:
            if runner is None:
                environ, descriptors = lock._hand_over(with_descriptors=True)
                _run(cmd, cwd, {**(extra_environ or {}), **environ}, descriptors)
            else:
                runner(cmd, cwd, {**(extra_environ or {}), **lock.environ})

    return run


def _run(
    cmd: Sequence[str],
    cwd: str | None = None,
    extra_environ: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> None:
    """Run a command to its end, whatever interrupts it: only then the tree may be released."""
    environ = {**os.environ, **(extra_environ or {})}
    start = _Start(cmd, cwd, environ, descriptors)
    try:
        status = start.begin().wait()
    except BaseException:
        process = start.give_up()
        if process is not None:
            _end(process)
        raise
    if status:
        raise subprocess.CalledProcessError(status, cmd)


class _Start:
    """The start of a command, in a thread of its own, where no signal handler runs.

    One that raises after the process was made, and before its number is noted, would leave a
    process that nobody knows of: `subprocess.Popen` is in that moment as long as an exec takes.
    """

    def __init__(
        self,
        cmd: Sequence[str],
        cwd: str | None,
        environ: Mapping[str, str],
        descriptors: Sequence[int],
    ) -> None:
        self._arguments = (cmd, cwd, environ, descriptors)
        self._process: subprocess.Popen[bytes] | None = None
        self._error: BaseException | None = None
        self._is_given_up = False
        self._gate = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()

    def begin(self) -> subprocess.Popen[bytes]:
        """The process, once it has started; raises what kept it from that."""
        _thread.start_new_thread(self._start, ())
        self._done.acquire()
        if self._error is not None:
            raise self._error
        assert self._process is not None
        return self._process

    def give_up(self) -> subprocess.Popen[bytes] | None:
        """The process, if it has started; else it never will."""
        with self._gate:
            self._is_given_up = True
        return self._process

    def _start(self) -> None:
        cmd, cwd, environ, descriptors = self._arguments
        with self._gate:
            try:
                if not self._is_given_up:
                    self._process = subprocess.Popen(
                        cmd, cwd=cwd, env=environ, pass_fds=descriptors
                    )
            except BaseException as error:  # handed to the caller, who raises it
                self._error = error
        self._done.release()


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
