"""tox and tox-uv: the packaging backend runs under ``source-tree-lock run``."""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tox.plugin import impl

from ._shared import interrupts, replace

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path
    from typing import Any

    from tox.execute.api import ExecuteOptions, ExecuteStatus
    from tox.execute.pep517_backend import LocalSubProcessPep517Executor as Executor
    from tox.execute.request import ExecuteRequest
else:
    Executor = object

#: Starts this library with the module search path of this process.
_START = """
import sys
sys.path[:] = {path!r}
from source_tree_lock.__main__ import main
sys.exit(main())
"""
_MESSAGE = re.compile(rb"source-tree-lock: ([^\r\n\x1b]+)\r?\n")
#: How often the plugin looks for new messages during a wait, in seconds.
_POLL_INTERVAL = 0.1

_log = logging.getLogger(__name__)


@impl
def tox_register_tox_env() -> None:
    """Lock what tox builds. tox calls this when it starts.

    tox-uv's packaging environments take the executor of their backends from tox.
    """
    replace(
        "tox",
        "tox.tox_env.python.virtual_env.package.pyproject",
        "LocalSubProcessPep517Executor",
        lambda executor: type("LockingExecutor", (_Locking, executor), {}),
    )


@functools.cache
def _run_command() -> Sequence[str]:
    """Return the command that starts ``source-tree-lock run``; empty if it cannot be started.

    The backend's environment is the project's to set, and Python's own variables in it must not
    decide what is imported. So the command ignores them (``-I``) and is told where this process
    finds modules: the library may come from PYTHONPATH, from the user's site directory or from a
    pex. The working directory is left out, since it has the project's modules.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [each for each in map(os.path.abspath, sys.path) if each == root or each != os.getcwd()]
    command = (sys.executable, "-I", "-c", _START.format(path=[*path, root]), "run")
    with suppress(OSError, subprocess.SubprocessError):
        # It does not end if `sys.executable` is another program, say.
        shown = subprocess.check_output(
            [*command, "--help"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
        )
        if b"source-tree-lock" in shown:
            return command
    python = sys.executable or "an unknown Python"
    _log.warning("builds are not locked, because %s cannot start source-tree-lock", python)
    return ()


class _Locking(Executor):
    """Comes before tox's executor of backends: a backend of setuptools starts under the lock."""

    # The backend, while it runs. If tox renames this, builds are locked, and nothing is reported.
    _local_execute: Any = None

    def __init__(self, colored: bool, cmd: Sequence[str], env: dict[str, str], cwd: Path) -> None:
        # Imported when something is built: most commands of tox build nothing.
        from ..adapters import is_setuptools

        self._is_locked = is_setuptools(cwd) and bool(_run_command())
        if self._is_locked:
            cmd = [*_run_command(), str(cwd), "--", *cmd]
            # tox passes on only the variables that the project's configuration names.
            ours = [name for name in os.environ if name.startswith("SOURCE_TREE_LOCK_")]
            env = {**{name: os.environ[name] for name in ours}, **env}
        super().__init__(colored, cmd, env, cwd)

    @contextmanager
    def call(
        self, request: ExecuteRequest, *args: Any, **kwargs: Any
    ) -> Generator[ExecuteStatus, None, None]:
        """Run one hook. The backend ends after it, so that the tree is released.

        tox itself keeps a backend whose name is not setuptools' until all commands have run, and
        then asks it to exit.
        """
        if self._is_locked and request.run_id == "_exit" and self._local_execute is None:
            raise BrokenPipeError  # this is how tox learns that it has exited
        try:
            with super().call(request, *args, **kwargs) as status:
                yield status
        finally:
            if self._is_locked:
                is_alive = self.is_alive
                self.close()
                self.is_alive = is_alive  # tox asks it to exit, as it does without the lock

    def local_execute(self, options: ExecuteOptions) -> Any:
        """Start the backend, unless it runs. Another thread watches the wait meanwhile."""
        if not self._is_locked or self._local_execute is not None:
            return super().local_execute(options)
        is_over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(is_over,), daemon=True)
        watcher.start()
        try:
            return super().local_execute(options)
        finally:
            is_over.set()
            watcher.join()

    def _watch(self, is_over: threading.Event) -> None:
        """Until the backend has started: pass on the messages of ``run``, and end it on Ctrl-C."""
        ends, passed_on = False, 0
        while not ends:
            ends = is_over.wait(_POLL_INTERVAL)
            if self._local_execute is not None:
                instance, status = self._local_execute
                messages = _MESSAGE.findall(bytes(status.err))
                for message in messages[passed_on:]:
                    _log.warning("%s", message.decode(errors="replace"))
                passed_on = len(messages)
                if interrupts and not ends and instance.process is not None:
                    instance.process.terminate()
                    return
