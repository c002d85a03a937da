"""Wrap an object with PEP 517 and PEP 660 hooks so that each hook runs under the lock."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

from .. import AnyPath, LockOptions, SourceTreeLock
from .._lock import LockForChildren
from ._new_in_python_3_11 import Unpack
from .messages import Say, prepare_options, redirect_messages
from .runner import run_hook
from .which_trees import Rule, is_setuptools

Hooks = TypeVar("Hooks")

#: Those of PEP 517 and PEP 660. `metadata_from_built` is how pyproject_api gets the metadata of a
#: backend that has no hook for it: it builds a wheel.
_HOOK_NAMES = frozenset(
    """
    build_editable build_sdist build_wheel
    get_requires_for_build_editable get_requires_for_build_sdist get_requires_for_build_wheel
    prepare_metadata_for_build_editable prepare_metadata_for_build_wheel metadata_from_built
    """.split()
)


def locked_hooks(
    hooks: Hooks,
    source_tree: AnyPath | None = None,
    *,
    when: Rule = is_setuptools,
    also: Iterable[str] = (),
    say: Say | None = None,
    **lock_options: Unpack[LockOptions],
) -> Hooks:
    """Return the same object, or module, with every hook under the lock of its source tree.

    All other attributes pass through. The hooks of a ``pyproject_hooks.BuildBackendHookCaller``
    are handed the hold. Other objects offer no way to do so. For those, the lock file records
    that the tree is held on behalf of child processes, so that a backend which takes the lock
    itself does not wait for its own frontend. This works on Linux; elsewhere take the lock either
    here or in the backend.

    Args:
        hooks: for example a ``BuildBackendHookCaller``, one of ``pyproject_api``'s frontends,
            or a backend module.
        source_tree: by default the one that the object names, else the working directory at the
            time of the call.
        when: decides whether the hooks of a source tree are locked.
        also: names of further methods to lock, beyond the hooks of PEP 517 and PEP 660.
        say: called with each sentence that the library reports, such as the start and the end
            of a wait, and warnings. By default they go to `logging`.
        lock_options: keyword arguments of `SourceTreeLock`, such as ``timeout`` in seconds.

    Raises:
        TypeError, ValueError: a lock option is invalid.

    A locked hook raises `LockTimeout` or `LockUnavailable` if the tree could not be locked; the
    hook has not run then.
    """
    options = prepare_options(lock_options, say)

    names = _HOOK_NAMES.union(also)

    def get(owner: Any, name: str) -> Any:
        hook = getattr(owner, name)
        if name == "__legacy__":
            return _LockedHooks(hook, get)
        if name not in names:
            return hook

        @functools.wraps(hook)
        def locked(*args: object, **kwargs: object) -> object:
            # BuildBackendHookCaller has `source_dir`; pyproject_api's frontends no public name.
            named: Any = getattr(owner, "source_dir", None) or getattr(owner, "_root", ".")
            tree: AnyPath = named if source_tree is None else source_tree
            if not when(tree):
                return hook(*args, **kwargs)
            # pyproject_hooks has no public name for the runner of a hook caller.
            runner = getattr(owner, "_subprocess_runner", None)
            make_lock = LockForChildren if runner is None else SourceTreeLock
            with redirect_messages(say), make_lock(tree, **options) as lock, ExitStack() as stack:
                if runner is not None:
                    # This changes the hook caller for the time of the call. No other thread is
                    # affected: one that calls a hook of this tree waits for this hold.
                    run = functools.partial(run_hook, lock, runner)
                    stack.enter_context(owner.subprocess_runner(run))
                return hook(*args, **kwargs)

        return locked

    # The wrapper answers for the object in everything, so it has the object's type.
    return _LockedHooks(hooks, get)  # type: ignore[return-value]


class _LockedHooks:
    # A copy has no attributes of its own at first: `copy` looks some up before it sets them.
    _locked_hooks: Any = None
    _locked_get: Callable[[Any, str], Any] = getattr

    def __init__(self, hooks: object, get: Callable[[Any, str], Any]) -> None:
        vars(self).update(_locked_hooks=hooks, _locked_get=get)

    @property  # type: ignore[misc]  # so that isinstance sees the wrapped object
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._locked_hooks.__class__

    def __getattr__(self, name: str) -> Any:
        return self._locked_get(self._locked_hooks, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._locked_hooks, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._locked_hooks, name)

    def __dir__(self) -> Iterable[str]:
        return dir(self._locked_hooks)

    def __repr__(self) -> str:
        return f"locked_hooks({self._locked_hooks!r})"
