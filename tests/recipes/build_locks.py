"""What build would have beside its own modules: the lock around every hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from build import _ctx

from source_tree_lock import SourceTreeLockError
from source_tree_lock.adapters import locked_runner

Runner = Callable[..., None]


def locked(runner: Runner | None, fail: Callable[[str], object]) -> Runner:
    """A runner that says who holds the tree, and ends build with a line when the time is up."""
    run = locked_runner(runner, say=_ctx.log)

    def run_or_say_why_not(*args: Any, **kwargs: Any) -> None:
        try:
            run(*args, **kwargs)
        except SourceTreeLockError as error:
            fail(str(error))

    return run_or_say_why_not
