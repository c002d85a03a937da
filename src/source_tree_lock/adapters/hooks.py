"""An object with PEP 517 and PEP 660 hooks, each of them under the lock."""

from __future__ import annotations

import functools

from .._lock import source_tree_lock
from .rule import is_setuptools
from .runner import locked_runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Final, TypeVar

    from typing_extensions import Unpack

    from .._options import LockOptions
    from .._paths.tree import AnyPath
    from .rule import Rule

    Hooks = TypeVar("Hooks")

#: All hooks of PEP 517 and PEP 660.
HOOK_NAMES: Final = frozenset(
    (
        "build_editable",
        "build_sdist",
        "build_wheel",
        "get_requires_for_build_editable",
        "get_requires_for_build_sdist",
        "get_requires_for_build_wheel",
        "prepare_metadata_for_build_editable",
        "prepare_metadata_for_build_wheel",
    )
)
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
    **lock_options: Unpack[LockOptions],
) -> Hooks:
    """The same object, or module, with every hook under the lock of its source tree.

    What is no hook passes through. A ``pyproject_hooks.BuildBackendHookCaller`` hands the hold
    over to its hooks. Other objects have no way to: take the lock around them or in the
    backend, not in both, or the backend waits for its own frontend.

    Args:
        hooks: for example a ``BuildBackendHookCaller``, one of ``pyproject_api``'s frontends,
            or a backend module.
        source_tree: by default the one that the object itself names, else the working
            directory at the time of the call.
        when: tells of a source tree whether to lock it.
        lock_options: ``timeout``, ``digest``, ``lock_dir`` and ``on_wait``, as for
            `source_tree_lock`.

    Raises:
        TypeError, ValueError: a lock option makes no sense.
    """
    source_tree_lock(**lock_options)  # said here, not at the first hook
    # It answers for the object in everything, as far as a type checker is concerned.
    return _LockedHooks(hooks, source_tree, when, lock_options)  # type: ignore[return-value]


class _LockedHooks:
    _locked_hooks: Any
    _locked_tree: AnyPath | None
    _locked_when: Rule
    _locked_options: LockOptions

    def __init__(
        self, hooks: object, source_tree: AnyPath | None, when: Rule, lock_options: LockOptions
    ) -> None:
        vars(self).update(
            _locked_hooks=hooks,
            _locked_tree=source_tree,
            _locked_when=when,
            _locked_options=lock_options,
        )

    @property  # type: ignore[misc]  # so that isinstance sees the object behind it
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._locked_hooks.__class__

    def __getattr__(self, name: str) -> Any:
        hooks = vars(self).get("_locked_hooks", _NONE_YET)
        attribute = getattr(hooks, name)
        if name == _HAS_HOOKS:
            return _LockedHooks(
                attribute, self._locked_tree, self._locked_when, self._locked_options
            )
        return self._lock_around(attribute) if name in _RUNS_HOOKS else attribute

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._locked_hooks, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._locked_hooks, name)

    def __dir__(self) -> Iterable[str]:
        return dir(self._locked_hooks)

    def __repr__(self) -> str:
        return f"locked_hooks({self._locked_hooks!r})"

    def _lock_around(self, hook: Callable[..., object]) -> Callable[..., object]:
        hooks, options = self._locked_hooks, self._locked_options

        @functools.wraps(hook)
        def locked(*args: object, **kwargs: object) -> object:
            tree = self._tree()
            if not self._locked_when(tree):
                return hook(*args, **kwargs)
            with source_tree_lock(tree, **options):
                runner = getattr(hooks, "_subprocess_runner", None)
                if runner is None:
                    return hook(*args, **kwargs)
                if _is_default(runner):
                    runner = None
                # It changes the object for the time of the call, while this thread alone
                # holds the tree; the runner enters the tree again and hands it over.
                handing = locked_runner(runner, when=lambda _: True, **options)
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


def _is_default(runner: object) -> bool:
    """Whether a runner is pyproject_hooks' own, of which ours does all and hands more down."""
    module, name = getattr(runner, "__module__", ""), getattr(runner, "__name__", "")
    return name == "default_subprocess_runner" and "pyproject_hooks" in module.split(".")
