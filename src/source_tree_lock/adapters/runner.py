"""A subprocess runner that holds the source tree while a hook runs in it."""

from __future__ import annotations

import os
import subprocess
from _collections_abc import Callable  # collections.abc, without the package around it
from contextlib import suppress

from .._lock import SourceTreeLock, lock_like, source_tree_lock
from .._options import LockOptions
from .output import said_by, with_say
from .which_trees import Rule, is_setuptools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final, Protocol

    from typing_extensions import Unpack

    class Runner(Protocol):
        """What ``pyproject_hooks`` and ``build`` call to run a hook in a subprocess."""

        def __call__(
            self,
            cmd: Sequence[str],
            cwd: str | None = None,
            extra_environ: Mapping[str, str] | None = None,
        ) -> None:
            """Run ``cmd`` in ``cwd``, with ``extra_environ`` added; raise if it fails."""
else:  # for `typing.get_type_hints`
    Any = object
    Runner = Callable
    Unpack = dict


#: How long a command that is to end may take before it is killed, in seconds.
_GRACE: Final = 5.0


def locked_runner(
    runner: Callable[[Any, Any, Any], object] | None = None,
    *,
    when: Rule = is_setuptools,
    say: Callable[[str], object] | None = None,
    **lock_options: Unpack[LockOptions],
) -> Runner:
    """A subprocess runner that locks the source tree, its ``cwd``, around every hook.

    For ``pyproject_hooks.BuildBackendHookCaller(..., runner=)``, ``build.ProjectBuilder(...,
    runner=)`` and the like. The hold is handed over to the hook, so that a hook which takes
    the lock itself does not wait for its own frontend.

    Args:
        runner: what runs the command, a callable of ``(cmd, cwd, extra_environ)``. Without it,
            and for the default runner of ``pyproject_hooks``, the command is run here, and the
            descriptors of the kernel locks are handed down besides: a hook that outlives a
            killed frontend keeps the tree locked until it is done. It is ended when the frontend
            is interrupted.
        when: decides whether the hooks of a source tree are locked.
        say: called with each sentence that the library has to say: whom a wait is for, and
            warnings. They go to the log of ``logging`` otherwise.
        lock_options: ``timeout``, ``digest``, ``lock_dir``, ``on_wait`` and ``while_waiting``,
            as for `source_tree_lock`.

    Raises:
        TypeError, ValueError: a lock option makes no sense.

    Raises (when it is called):
        LockTimeout, LockUnavailable: before the command has run.
        subprocess.CalledProcessError: the command failed (where it is run here).
        What ``runner`` and the callbacks raise.
    """
    return runner_by(source_tree_lock(**with_say(lock_options, say)), runner, when, say)


def runner_by(
    anywhere: SourceTreeLock,
    runner: Callable[[Any, Any, Any], object] | None,
    when: Rule,
    say: Callable[[str], object] | None,
) -> Runner:
    """The same, by a lock like this one for each tree."""
    if runner is not None and _is_default(runner):
        runner = None

    def run(
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        tree = os.getcwd() if cwd is None else cwd
        if not when(tree):
            (runner or _run)(cmd, cwd, extra_environ)
            return
        with said_by(say), lock_like(anywhere, tree) as lock:
            if runner is None:
                # gevent's forks by `os.fork`, at which a child closes all descriptors of ours.
                is_pythons = subprocess.Popen.__module__ == "subprocess"
                environ, descriptors = lock._hand_over(with_descriptors=is_pythons)
                _run(cmd, cwd, {**(extra_environ or {}), **environ}, descriptors)
            else:
                runner(cmd, cwd, {**(extra_environ or {}), **lock.environ})

    return run


def _is_default(runner: object) -> bool:
    """Whether a runner is pyproject_hooks' own, of which ours does all and hands more down."""
    module, name = getattr(runner, "__module__", ""), getattr(runner, "__name__", "")
    return name == "default_subprocess_runner" and "pyproject_hooks" in module.split(".")


def _run(
    cmd: Sequence[str],
    cwd: str | None = None,
    extra_environ: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> None:
    """Run a command to its end, whatever interrupts it: only then the tree may be released."""
    environ = {**os.environ, **(extra_environ or {})}
    kind: type[subprocess.Popen[bytes]] = subprocess.Popen
    process = kind.__new__(kind)
    try:
        # Interrupted in here, it may have started the command already.
        process.__init__(cmd, cwd=cwd, env=environ, pass_fds=descriptors)  # type: ignore[misc]
        status = process.wait()
    except BaseException:
        if getattr(process, "pid", None) is not None:
            _end(process)
        raise
    if status:
        raise subprocess.CalledProcessError(status, cmd)


def _end(process: subprocess.Popen[Any]) -> None:
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
