"""An object whose hooks run under the lock, and which is as it was in everything else."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from projects import ALL_COMMANDS, Witness, call_all_hooks
from pyproject_hooks import BuildBackendHookCaller
from support import Child, held_elsewhere, is_free, write_project

from source_tree_lock import LockTimeout, source_tree_lock
from source_tree_lock.adapters import locked_hooks

from .callers import caller, pyproject_api_frontend

# setuptools warns of each editable installation, and pyproject_hooks passes that on.
pytestmark = pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning")


def test_every_hook_of_a_hook_caller_runs_under_the_lock(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    hooks = caller(tree)
    runner = hooks._subprocess_runner
    call_all_hooks(locked_hooks(hooks), tmp_path)
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}
    assert hooks._subprocess_runner is runner
    assert is_free(source_tree_lock(tree).lock_file)


def test_every_hook_of_pyproject_apis_frontend_runs_under_the_lock(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    frontend = locked_hooks(pyproject_api_frontend(tree))
    frontend.get_requires_for_build_wheel()
    frontend.prepare_metadata_for_build_wheel(tmp_path / "metadata")
    assert frontend.build_wheel(tmp_path).wheel.is_file()
    frontend.get_requires_for_build_sdist()
    assert frontend.build_sdist(tmp_path).sdist.is_file()
    frontend.get_requires_for_build_editable()
    frontend.prepare_metadata_for_build_editable(tmp_path / "editable")
    frontend.build_editable(tmp_path)
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}
    frontend.metadata_from_built(tmp_path / "built", "wheel")
    assert witness.report() == {"bdist_wheel locked"}


BACKEND_IN_PROCESS = """
    import importlib, sys
    from source_tree_lock.adapters import locked_hooks
    import setuptools.build_meta
    backend = locked_hooks(setuptools.build_meta)
    if sys.argv[1] == "legacy":
        backend = backend.__legacy__
    out = sys.argv[2]
    backend.get_requires_for_build_wheel()
    backend.prepare_metadata_for_build_wheel(metadata_directory=out)
    backend.build_wheel(out, config_settings=None, metadata_directory=None)
    backend.build_sdist(sdist_directory=out)
    backend.build_editable(out)
    tell("done")
"""


@pytest.mark.parametrize("kind", ["module", "legacy"])
def test_every_hook_of_a_backend_runs_under_the_lock(tree: Path, tmp_path: Path, kind: str) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    with Child(BACKEND_IN_PROCESS, kind, tmp_path, cwd=tree) as child:
        while child.line() != "done":
            pass
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}


def test_a_source_tree_that_is_named_is_the_one_that_is_locked(tree: Path, tmp_path: Path) -> None:
    class Backend:
        def build_wheel(self) -> bool:
            return is_free(source_tree_lock(tree).lock_file)

    assert not locked_hooks(Backend(), tree).build_wheel()
    assert locked_hooks(Backend(), tmp_path).build_wheel()
    assert Backend().build_wheel()


class Frontend:
    """Something with hooks."""

    name = "mine"

    def build_wheel(self, wheel_directory: str) -> str:
        """Build it."""
        return f"{self.name} {wheel_directory}"

    def greet(self) -> bool:
        return is_free(source_tree_lock().lock_file)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_locks_as_well(
    make: Callable[[BuildBackendHookCaller], BuildBackendHookCaller], tree: Path
) -> None:
    write_project(tree)
    hooks = make(locked_hooks(caller(tree), timeout=0))
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        hooks.get_requires_for_build_wheel()


def test_what_is_no_hook_passes_through(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    frontend = Frontend()
    hooks = locked_hooks(frontend)
    assert hooks.name == "mine"
    hooks.name = "yours"
    assert frontend.name == "yours"
    assert hooks.build_wheel("here") == "yours here"
    assert hooks.build_wheel(wheel_directory="there") == "yours there"
    del hooks.name
    assert frontend.name == "mine"
    assert hooks.greet()
    assert "build_wheel" in dir(hooks)
    assert repr(frontend) in repr(hooks)


def test_a_locked_object_is_of_the_same_kind(tree: Path) -> None:
    assert isinstance(locked_hooks(Frontend()), Frontend)
    assert isinstance(locked_hooks(caller(tree)), BuildBackendHookCaller)
    assert isinstance(locked_hooks(sys), ModuleType)
    assert not isinstance(locked_hooks(Frontend()), BuildBackendHookCaller)


def test_optional_hooks_are_there_if_they_were(tree: Path) -> None:
    hooks = locked_hooks(Frontend())
    assert hasattr(hooks, "build_wheel")
    assert not hasattr(hooks, "build_editable")
    with pytest.raises(AttributeError, match="build_editable"):
        _ = hooks.build_editable  # type: ignore[attr-defined]


def test_a_hook_beyond_the_standards_is_locked_when_it_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    hooks = locked_hooks(Frontend(), also=["greet"])
    assert not hooks.greet()
    assert hooks.build_wheel("here") == "mine here"
    assert hooks.name == "mine"
    assert is_free(source_tree_lock().lock_file)


def test_the_legacy_hooks_of_a_backend_are_locked_too(tree: Path) -> None:
    class Hooks:
        def build_wheel(self) -> bool:
            return is_free(tree)

    class Backend(Hooks):
        __legacy__ = Hooks()

    legacy = locked_hooks(Backend(), source_tree=tree).__legacy__
    assert isinstance(legacy, Hooks)
    assert not legacy.build_wheel()
    assert is_free(tree)


def test_a_hook_keeps_its_name_and_its_words(tree: Path) -> None:
    hook = locked_hooks(Frontend()).build_wheel
    assert (hook.__name__, hook.__doc__) == ("build_wheel", "Build it.")
