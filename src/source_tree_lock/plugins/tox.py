"""tox and tox-uv: the packaging backend runs under ``source-tree-lock run``."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from contextlib import contextmanager

from tox.plugin import impl

from ._shared import is_interrupted, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path
    from typing import Any, Final

    from tox.execute.api import ExecuteOptions, ExecuteStatus
    from tox.execute.local_sub_process import LocalSubProcessExecuteInstance
    from tox.execute.pep517_backend import LocalSubProcessPep517Executor as Executor
    from tox.execute.request import ExecuteRequest
else:
    Executor = object

#: This library, and no module of the project's, whatever the environment of the backend names.
_RUN: Final[Sequence[str]] = (
    *(sys.executable, "-E"),
    *(("-P",) if sys.version_info >= (3, 11) else ()),
    *("-m", "source_tree_lock", "run"),
)
_LINE: Final = re.compile(rb"source-tree-lock: ([^\r\n\x1b]+)")
#: How often a wait is looked at, in seconds.
_LOOK_EVERY: Final = 0.1


@impl
def tox_register_tox_env() -> None:
    """Lock what tox builds; it calls this when it starts.

    tox-uv's packaging environments take the executor of their backends from tox.
    """
    replace(
        "tox",
        "tox.tox_env.python.virtual_env.package.pyproject",
        "LocalSubProcessPep517Executor",
        lambda executor: type("LockingExecutor", (_Locking, executor), {}),
    )


class _Locking(Executor):
    """In front of tox's executor of backends: a backend of setuptools starts under the lock."""

    def __init__(self, colored: bool, cmd: Sequence[str], env: dict[str, str], cwd: Path) -> None:
        from ..adapters import is_setuptools

        self._locks = is_setuptools(cwd)
        if self._locks:
            cmd = [*_RUN, str(cwd), "--", *cmd]
            # tox hands down what a project's configuration names, and no more.
            ours = {name: os.environ[name] for name in os.environ if _is_ours(name)}
            env = {**ours, **env}
        super().__init__(colored, cmd, env, cwd)

    @contextmanager
    def call(
        self, request: ExecuteRequest, *args: Any, **kwargs: Any
    ) -> Generator[ExecuteStatus, None, None]:
        """Run one hook. The backend ends with it, so that the hold does.

        tox itself keeps a backend that is not called setuptools until all commands have run, and
        then asks it to exit.
        """
        if self._locks and request.run_id == "_exit" and self._running() is None:
            raise BrokenPipeError  # for tox: it has exited
        try:
            with super().call(request, *args, **kwargs) as status:
                yield status
        finally:
            if self._locks:
                is_alive = self.is_alive
                self.close()
                self.is_alive = is_alive  # tox asks it to exit, as it does without the lock

    def local_execute(
        self, options: ExecuteOptions
    ) -> tuple[LocalSubProcessExecuteInstance, ExecuteStatus]:
        """Start the backend, unless it runs; meanwhile another thread watches the wait."""
        over = threading.Event()
        if self._locks and self._running() is None:
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            return super().local_execute(options)
        finally:
            over.set()

    def _running(self) -> tuple[LocalSubProcessExecuteInstance, ExecuteStatus] | None:
        """The backend, if it runs. Where tox does not tell, it is locked and nothing is said."""
        return getattr(self, "_local_execute", None)

    def _watch(self, over: threading.Event) -> None:
        """Until the backend has started: pass on who holds the tree, and end it on Ctrl-C."""
        said, told = b"", False
        while not over.wait(_LOOK_EVERY):
            running = self._running()
            if running is None:
                continue
            instance, status = running
            if is_interrupted() and instance.process is not None:
                instance.process.terminate()
                return
            before, said = said, bytes(status.err)
            line = _LINE.search(said)
            if line and said == before and not told:  # all of it has arrived
                logging.getLogger(__name__).warning("%s", line[1].decode(errors="replace"))
                told = True


def _is_ours(variable: str) -> bool:
    return variable.startswith("SOURCE_TREE_LOCK_")
