"""A subprocess runner that holds the source tree while a hook runs in it."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from .._lock import source_tree_lock
from .rule import is_setuptools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final, Protocol

    from typing_extensions import Unpack

    from .._lock import LockOptions
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
    with subprocess.Popen(cmd, cwd=cwd, env=environ, pass_fds=descriptors) as process:
        try:
            status = process.wait()
        except BaseException:
            try:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
            finally:
                process.kill()  # does nothing to one that has ended
                process.wait()
            raise
    if status:
        raise subprocess.CalledProcessError(status, cmd)
