"""What pip would have beside its own modules: the lock around every hook of a local project.

A tree that pip has unpacked itself is nobody else's. It is not locked and leaves no lock file.
pip would vendor the library: ``pip --python`` runs in an environment that does not have it. Here
it is imported at the first hook of a local project.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pip._internal.exceptions import InstallationError

Runner = Callable[..., None]
logger = logging.getLogger("pip._internal.source_tree_lock")

if TYPE_CHECKING:
    from pip._vendor.pyproject_hooks import BuildBackendHookCaller as _HookCaller
else:
    _HookCaller = object


class LockedHooks(_HookCaller):
    """In front of the caller of hooks, which is given another runner for each of them."""

    config_holder: Any

    @contextmanager
    def subprocess_runner(self, runner: Runner) -> Iterator[None]:
        """Give it a runner, which holds the tree of a local project."""
        requirement = self.config_holder
        is_local = requirement.editable or requirement.link.is_existing_dir()
        with super().subprocess_runner(_locked(runner) if is_local else runner):
            yield


def _locked(runner: Runner) -> Runner:
    from source_tree_lock import SourceTreeLockError
    from source_tree_lock.adapters import locked_runner

    run = locked_runner(runner, say=logger.info)

    def run_or_say_why_not(*args: Any, **kwargs: Any) -> None:
        try:
            run(*args, **kwargs)
        except SourceTreeLockError as error:
            raise InstallationError(str(error)) from error

    return run_or_say_why_not
