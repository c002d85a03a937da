"""An object whose hooks run under the lock, and which is as it was in everything else."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pyproject_hooks import BuildBackendHookCaller
from support import held_elsewhere, is_free

from source_tree_lock import LockTimeout, source_tree_lock
from source_tree_lock.adapters import locked_hooks


class Frontend:
    """Something with hooks."""

    name = "mine"

    def build_wheel(self, wheel_directory: str) -> str:
        """Build it."""
        return f"{self.name} {wheel_directory}"

    def can_lock(self) -> bool:
        return is_free(source_tree_lock().lock_file)


def test_a_source_tree_that_is_named_is_the_one_that_is_locked(tree: Path, tmp_path: Path) -> None:
    hooks = SimpleNamespace(build_wheel=lambda: is_free(source_tree_lock(tree).lock_file))
    assert not locked_hooks(hooks, tree).build_wheel()
    assert locked_hooks(hooks, tmp_path).build_wheel()
    assert hooks.build_wheel()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_locks_as_well(make: Callable[[Any], Any], tree: Path) -> None:
    hooks = BuildBackendHookCaller(str(tree), "setuptools.build_meta")
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        make(locked_hooks(hooks, timeout=0)).get_requires_for_build_wheel()


def test_what_is_no_hook_and_not_named_passes_through(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    frontend = Frontend()
    hooks = locked_hooks(frontend)
    hooks.name = "yours"
    assert (hooks.name, frontend.name) == ("yours", "yours")
    assert hooks.build_wheel("here") == "yours here"
    assert hooks.build_wheel(wheel_directory="there") == "yours there"
    del hooks.name
    assert frontend.name == "mine"
    assert hooks.can_lock()
    assert not locked_hooks(frontend, also=["can_lock"]).can_lock()
    assert "build_wheel" in dir(hooks)
    assert repr(frontend) in repr(hooks)
    hook = hooks.build_wheel
    assert (hook.__name__, hook.__doc__) == ("build_wheel", "Build it.")
    assert not hasattr(hooks, "build_editable")  # a hook that it does not have
    assert isinstance(hooks, Frontend)
    assert not isinstance(hooks, ModuleType)
    assert isinstance(locked_hooks(sys), ModuleType)
