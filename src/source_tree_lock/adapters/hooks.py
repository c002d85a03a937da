"""An object with PEP 517 and PEP 660 hooks, each of them under the lock."""

from __future__ import annotations

import functools
from _collections_abc import Callable, Iterable  # collections.abc, without the package around it

from .._hook_names import HOOK_NAMES
from .._lock import SourceTreeLock, lock_like, source_tree_lock
from .._options import LockOptions
from .._paths.tree import AnyPath
from .output import said_by, with_say
from .runner import runner_by
from .which_trees import Rule, is_setuptools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    from typing_extensions import Unpack

    Hooks = TypeVar("Hooks")
else:  # for `typing.get_type_hints`
    Hooks = object
    Unpack = dict

# pyproject_api's way to the metadata of a backend that cannot prepare them: it builds a wheel.
_RUNS_HOOKS: Final = HOOK_NAMES | {"metadata_from_built"}
_HAS_HOOKS: Final = "__legacy__"
#: What a copy has before it is given the hooks.
_NONE_YET: Final = object()


def locked_hooks(
    hooks: Hooks,
    source_tree: AnyPath | None = None,
    *,
    when: Rule = is_setuptools,
    also: Iterable[str] = (),
    say: Callable[[str], object] | None = None,
    **lock_options: Unpack[LockOptions],
) -> Hooks:
    """The same object, or module, with every hook under the lock of its source tree.

    What is no hook passes through. A ``pyproject_hooks.BuildBackendHookCaller`` hands the hold
    over to its hooks. Other objects have no way to; there the lock file says that the tree is
    held on behalf of their hooks, so that a backend which locks too gets in (on Linux; elsewhere
    take the lock in one of the two only).

    Args:
        hooks: for example a ``BuildBackendHookCaller``, one of ``pyproject_api``'s frontends,
            or a backend module.
        source_tree: by default the one that the object itself names, else the working
            directory at the time of the call.
        when: decides whether the hooks of a source tree are locked.
        also: names of further hooks of the object, beyond those of PEP 517 and PEP 660.
        say: called with each sentence that the library has to say: whom a wait is for, and
            warnings. They go to the log of ``logging`` otherwise.
        lock_options: ``timeout``, ``digest``, ``lock_dir``, ``on_wait`` and ``while_waiting``,
            as for `source_tree_lock`.

    Raises:
        TypeError, ValueError: a lock option makes no sense.
    """
    anywhere = source_tree_lock(**with_say(lock_options, say))  # what makes no sense is said now
    names = _RUNS_HOOKS.union(also)
    # It answers for the object in everything, as far as a type checker is concerned.
    return _LockedHooks(hooks, source_tree, when, names, anywhere, say)  # type: ignore[return-value]


class _LockedHooks:
    _locked_hooks: Any
    _locked_tree: AnyPath | None
    _locked_when: Rule
    _locked_names: frozenset[str]
    _locked_anywhere: SourceTreeLock
    _locked_say: Callable[[str], object] | None

    def __init__(
        self,
        hooks: object,
        source_tree: AnyPath | None,
        when: Rule,
        names: frozenset[str],
        anywhere: SourceTreeLock,
        say: Callable[[str], object] | None,
    ) -> None:
        vars(self).update(
            _locked_hooks=hooks,
            _locked_tree=source_tree,
            _locked_when=when,
            _locked_names=names,
            _locked_anywhere=anywhere,
            _locked_say=say,
        )

    @property  # type: ignore[misc]  # so that isinstance sees the object behind it
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._locked_hooks.__class__

    def __getattr__(self, name: str) -> Any:
        hooks = vars(self).get("_locked_hooks", _NONE_YET)
        attribute = getattr(hooks, name)
        if name == _HAS_HOOKS:
            return _LockedHooks(
                attribute,
                self._locked_tree,
                self._locked_when,
                self._locked_names,
                self._locked_anywhere,
                self._locked_say,
            )
        return self._lock_around(attribute) if name in self._locked_names else attribute

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._locked_hooks, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._locked_hooks, name)

    def __dir__(self) -> Iterable[str]:
        return dir(self._locked_hooks)

    def __repr__(self) -> str:
        return f"locked_hooks({self._locked_hooks!r})"

    def _lock_around(self, hook: Callable[..., object]) -> Callable[..., object]:
        hooks = self._locked_hooks

        @functools.wraps(hook)
        def locked(*args: object, **kwargs: object) -> object:
            tree = self._tree()
            if not self._locked_when(tree):
                return hook(*args, **kwargs)
            lock = lock_like(self._locked_anywhere, tree)
            runner = getattr(hooks, "_subprocess_runner", None)
            # Who is not handed the hold finds in the record that it is held on its behalf.
            lock._request.is_for_hooks = runner is None
            with said_by(self._locked_say), lock:
                if runner is None:
                    return hook(*args, **kwargs)
                # It changes the object for the time of the call, while this thread alone
                # holds the tree; the runner enters the tree again and hands it over.
                handing = runner_by(lock, runner, lambda _: True, None)
                with hooks.subprocess_runner(handing):
                    return hook(*args, **kwargs)

        return locked

    def _tree(self) -> AnyPath:
        if self._locked_tree is not None:
            return self._locked_tree
        # `source_dir` is BuildBackendHookCaller's; pyproject_api's frontends have no public name.
        for name in ("source_dir", "_root"):
            tree: AnyPath | None = getattr(self._locked_hooks, name, None)
            if tree is not None:
                return tree
        return "."
