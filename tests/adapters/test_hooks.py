"""An object whose hooks run under the lock, and which is as it was in everything else."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from pyproject_hooks import BuildBackendHookCaller
from support import held_elsewhere, is_free

from source_tree_lock import LockTimeout, source_tree_lock
from source_tree_lock.adapters import locked_hooks

from .callers import caller


class Frontend:
    """Something with hooks."""

    name = "mine"

    def build_wheel(self, wheel_directory: str) -> str:
        """Build it."""
        return f"{self.name} {wheel_directory}"

    def greet(self) -> bool:
        return is_free(source_tree_lock().lock_file)


def test_a_source_tree_that_is_named_is_the_one_that_is_locked(tree: Path, tmp_path: Path) -> None:
    hooks = SimpleNamespace(build_wheel=lambda: is_free(source_tree_lock(tree).lock_file))
    assert not locked_hooks(hooks, tree).build_wheel()
    assert locked_hooks(hooks, tmp_path).build_wheel()
    assert hooks.build_wheel()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_locks_as_well(
    make: Callable[[BuildBackendHookCaller], BuildBackendHookCaller], tree: Path
) -> None:
    hooks = make(locked_hooks(caller(tree), timeout=0))
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        hooks.get_requires_for_build_wheel()


def test_what_is_no_hook_passes_through(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    frontend = Frontend()
    hooks = locked_hooks(frontend)
    hooks.name = "yours"
    assert (hooks.name, frontend.name) == ("yours", "yours")
    assert hooks.build_wheel("here") == "yours here"
    assert hooks.build_wheel(wheel_directory="there") == "yours there"
    del hooks.name
    assert frontend.name == "mine"
    assert hooks.greet()
    assert "build_wheel" in dir(hooks)
    assert repr(frontend) in repr(hooks)
    hook = hooks.build_wheel
    assert (hook.__name__, hook.__doc__) == ("build_wheel", "Build it.")
    assert not hasattr(hooks, "build_editable")  # a hook that it does not have
    assert isinstance(hooks, Frontend)
    assert not isinstance(hooks, ModuleType)
    assert isinstance(locked_hooks(sys), ModuleType)


def test_a_hook_beyond_the_standards_is_locked_when_it_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    hooks = locked_hooks(Frontend(), also=["greet"])
    assert not hooks.greet()
    assert is_free(source_tree_lock().lock_file)
