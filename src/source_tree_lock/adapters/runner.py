"""A subprocess runner that holds the source tree while a hook runs in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Protocol

from .. import LockOptions, SourceTreeLock
from ._new_in_python_3_11 import Unpack
from .messages import Say, prepare_options, redirect_messages
from .which_trees import Rule, is_setuptools

#: The runners of ``pyproject_hooks``, pip and PDM, which name their parameters differently.
AnyRunner = Callable[[Any, Any, Any], object]

#: What is added to the environment of a hook.
Environ = Mapping[str, str] | None

#: How long a command may take to end after SIGTERM before it is killed, in seconds.
_GRACE = 5.0


class Runner(Protocol):
    """What ``pyproject_hooks`` and ``build`` call to run a hook in a subprocess."""

    def __call__(
        self,
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Environ = None,
    ) -> None:
        """Run ``cmd`` in ``cwd`` with ``extra_environ`` added to the environment.

        Raises:
            Exception: the command failed.
        """


def locked_runner(
    runner: AnyRunner | None = None,
    *,
    when: Rule = is_setuptools,
    say: Say | None = None,
    **lock_options: Unpack[LockOptions],
) -> Runner:
    """Return a subprocess runner that holds the source tree, its ``cwd``, during every hook.

    Use it for ``pyproject_hooks.BuildBackendHookCaller(..., runner=)``,
    ``build.ProjectBuilder(..., runner=)`` and the like. The hold is handed to the hook: a hook
    that takes the lock itself does not wait for its own frontend.

    Args:
        runner: runs the command; called with ``(cmd, cwd, extra_environ)``. If it is left out,
            or is the default runner of ``pyproject_hooks``, the command is run here: it inherits
            the descriptors of the kernel locks, so that a hook that outlives a killed frontend
            keeps the tree locked until it ends, and it is terminated when the frontend is
            interrupted.
        when: decides whether the hooks of a source tree are locked.
        say: called with each sentence that the library reports, such as the start and the end
            of a wait, and warnings. By default they go to `logging`.
        lock_options: keyword arguments of `SourceTreeLock`, such as ``timeout`` in seconds.

    Raises:
        TypeError, ValueError: a lock option is invalid.

    The returned runner raises:
        LockTimeout, LockUnavailable: the tree could not be locked; the command has not run.
        subprocess.CalledProcessError: the command failed (if it was run here).
        Exception: what ``runner`` or a callback raised.
    """
    options = prepare_options(lock_options, say)

    def run(cmd: Sequence[str], cwd: str | None = None, extra_environ: Environ = None) -> None:
        tree = os.getcwd() if cwd is None else cwd
        lock = SourceTreeLock(tree, **options) if when(tree) else None
        with redirect_messages(say), lock or nullcontext():
            run_hook(lock, runner, cmd, cwd, extra_environ)

    return run


def run_hook(
    lock: SourceTreeLock | None,
    runner: AnyRunner | None,
    cmd: Sequence[str],
    cwd: str | None = None,
    extra_environ: Environ = None,
) -> None:
    """Run a hook in a subprocess, and hand it the hold of this thread.

    If this is interrupted, the hook ends before the tree is released.

    Args:
        lock: held by this thread; ``None``: nothing is handed over.
        runner: as for `locked_runner`.
        cmd: as for `Runner`.
        cwd: as for `Runner`.
        extra_environ: as for `Runner`.
    """
    environ = {**(extra_environ or {}), **({} if lock is None else lock.environ)}
    if runner is not None and not _is_default_runner(runner):
        runner(cmd, cwd, environ)
        return
    # gevent's Popen calls os.fork, and a forked child closes the descriptors of our locks.
    can_inherit = subprocess.Popen.__module__ == "subprocess"
    pass_fds = lock.pass_fds if lock is not None and can_inherit else ()
    environ = {**os.environ, **environ}
    with subprocess.Popen(cmd, cwd=cwd, env=environ, pass_fds=pass_fds) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            raise
        finally:
            process.kill()  # has no effect on a process that has ended
            process.wait()
    if status:
        raise subprocess.CalledProcessError(status, cmd)


def _is_default_runner(runner: AnyRunner) -> bool:
    """Return whether a runner is the one of pyproject_hooks, possibly of a vendored copy."""
    name, module = getattr(runner, "__name__", ""), getattr(runner, "__module__", "")
    return name == "default_subprocess_runner" and "pyproject_hooks" in module.split(".")
