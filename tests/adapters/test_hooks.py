"""An object whose hooks run under the lock, and which is as it was in everything else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from support import is_free

from source_tree_lock import source_tree_lock
from source_tree_lock.adapters import locked_hooks


class Frontend:
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


def test_what_is_no_hook_passes_through(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    frontend = Frontend()
    hooks = locked_hooks(frontend)
    assert isinstance(hooks, Frontend)
    assert hooks.name == "mine"
    hooks.name = "yours"
    assert frontend.name == "yours"
    assert hooks.build_wheel("here") == "yours here"
    assert hooks.build_wheel(wheel_directory="there") == "yours there"
    del hooks.name
    assert frontend.name == "mine"
    assert hooks.greet()
    assert not locked_hooks(frontend, also=["greet"]).greet()  # a hook beyond the standards
    assert "build_wheel" in dir(hooks)
    assert repr(frontend) in repr(hooks)
    hook = hooks.build_wheel
    assert (hook.__name__, hook.__doc__) == ("build_wheel", "Build it.")
    assert not hasattr(hooks, "build_editable")  # a hook that it does not have
    with pytest.raises(AttributeError, match="build_editable"):
        _ = hooks.build_editable  # type: ignore[attr-defined]
