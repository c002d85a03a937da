"""tox and tox-uv: the packaging backend runs under ``source-tree-lock run``."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from contextlib import contextmanager

from tox.plugin import impl

from ._shared import is_interrupted, is_on, listen_for_ctrl_c, say_unlocked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path
    from typing import Any, Final

    from tox.execute.api import ExecuteOptions, ExecuteStatus
    from tox.execute.local_sub_process import LocalSubProcessExecuteInstance
    from tox.execute.pep517_backend import LocalSubProcessPep517Executor

#: This library and no module of the project, whatever the environment of the backend says.
_RUN: Final = [
    *(sys.executable, "-E"),
    *(["-P"] if sys.version_info >= (3, 11) else []),
    *("-m", "source_tree_lock", "run"),
]
_LINE: Final = re.compile(rb"source-tree-lock: ([^\r\n\x1b]+)")
#: How often a wait is looked at, in seconds.
_LOOK_EVERY: Final = 0.1


@impl
def tox_register_tox_env() -> None:
    """Have every packaging environment start its backend under the lock.

    The name is that of the executor of backends, which tox-uv's environments take from tox too.
    """
    if not is_on():
        return
    try:
        from tox.tox_env.python.virtual_env.package import pyproject

        executor = pyproject.LocalSubProcessPep517Executor
    except (ImportError, AttributeError) as error:
        say_unlocked("tox", error)
        return
    if executor.__module__ != __name__:  # else this process has run tox before
        listen_for_ctrl_c()
        pyproject.LocalSubProcessPep517Executor = _locked(executor)  # type: ignore[misc]


def _locked(
    executor: type[LocalSubProcessPep517Executor],
) -> type[LocalSubProcessPep517Executor]:
    """The same executor, which locks the trees of setuptools."""

    class LockedExecutor(executor):  # type: ignore[valid-type, misc]
        def __init__(
            self, colored: bool, cmd: Sequence[str], env: dict[str, str], cwd: Path
        ) -> None:
            from ..adapters import is_setuptools

            self._locks = is_setuptools(cwd)
            if self._locks:
                cmd = [*_RUN, str(cwd), "--", *cmd]
                # tox passes on what a project's configuration names, and no more.
                ours = {name: os.environ[name] for name in os.environ if _is_ours(name)}
                env = {**ours, **env}
            super().__init__(colored, cmd, env, cwd)

        @contextmanager
        def call(self, *args: Any, **kwargs: Any) -> Generator[ExecuteStatus, None, None]:
            try:
                with super().call(*args, **kwargs) as status:
                    yield status
            finally:
                # tox keeps some backends for the next hook, and their hold would outlast the
                # commands of the environment.
                if self._locks:
                    self.close()

        def local_execute(
            self, options: ExecuteOptions
        ) -> tuple[LocalSubProcessExecuteInstance, ExecuteStatus]:
            over = threading.Event()
            watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
            if self._locks and self._local_execute is None:
                watch.start()
            try:
                return super().local_execute(options)
            finally:
                over.set()

        def _watch(self, over: threading.Event) -> None:
            """While the backend does not start: say why, and end it when tox is to end."""
            seen, told = b"", False
            while not over.wait(_LOOK_EVERY):
                if self._local_execute is None:
                    continue
                instance, status = self._local_execute
                if is_interrupted() and instance.process is not None:
                    instance.process.terminate()
                    return
                before, seen = seen, bytes(status.err)
                line = _LINE.search(seen)
                if line and seen == before and not told:  # the whole of it has arrived
                    logging.warning("%s", line[1].decode(errors="replace"))
                    told = True

    return LockedExecutor


def _is_ours(variable: str) -> bool:
    return variable.startswith("SOURCE_TREE_LOCK_")
