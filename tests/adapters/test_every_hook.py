"""Every hook runs under the lock, through whatever calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from build import ProjectBuilder
from projects import ALL_COMMANDS, Witness, call_all_hooks
from pyproject_hooks import default_subprocess_runner, quiet_subprocess_runner
from support import Child, is_free, write_project

from source_tree_lock import source_tree_lock
from source_tree_lock.adapters import locked_hooks, locked_runner

from .callers import caller, pyproject_api_frontend

# setuptools warns of each editable installation, and pyproject_hooks passes that on.
pytestmark = pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning")


def by_constructor(tree: Path, out: Path) -> set[str]:
    call_all_hooks(caller(tree, locked_runner()), out)
    return ALL_COMMANDS


def by_context_manager(tree: Path, out: Path) -> set[str]:
    hooks = caller(tree)
    with hooks.subprocess_runner(locked_runner(quiet_subprocess_runner)):
        hooks.build_wheel(str(out))
    return {"bdist_wheel"}


def by_project_builder(tree: Path, out: Path) -> set[str]:
    builder = ProjectBuilder(tree, runner=locked_runner())
    builder.get_requires_for_build("wheel")
    builder.metadata_path(out)
    builder.build("wheel", out)
    return {"egg_info", "dist_info", "bdist_wheel"}


def by_hook_caller(tree: Path, out: Path) -> set[str]:
    hooks = caller(tree)
    # A private name of pyproject_hooks, which has no public one: without it, no hold is handed on.
    assert hooks._subprocess_runner is default_subprocess_runner
    call_all_hooks(locked_hooks(hooks), out)
    assert hooks._subprocess_runner is default_subprocess_runner
    return ALL_COMMANDS


def by_pyproject_api(tree: Path, out: Path) -> set[str]:
    frontend = locked_hooks(pyproject_api_frontend(tree))
    frontend.get_requires_for_build_wheel()
    frontend.prepare_metadata_for_build_wheel(out / "metadata")
    assert frontend.build_wheel(out).wheel.is_file()
    frontend.get_requires_for_build_sdist()
    assert frontend.build_sdist(out).sdist.is_file()
    frontend.get_requires_for_build_editable()
    frontend.prepare_metadata_for_build_editable(out / "editable")
    frontend.build_editable(out)
    frontend.metadata_from_built(out / "built", "wheel")
    return ALL_COMMANDS


IN_PROCESS = """
    import sys, setuptools.build_meta
    from source_tree_lock.adapters import locked_hooks
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


def by_module(tree: Path, out: Path, kind: str = "module") -> set[str]:
    with Child(IN_PROCESS, kind, out, cwd=tree) as child:
        while child.line() != "done":
            pass
    return ALL_COMMANDS


def by_legacy_backend(tree: Path, out: Path) -> set[str]:
    return by_module(tree, out, "legacy")


@pytest.mark.parametrize(
    "by",
    [
        by_constructor,
        by_context_manager,
        by_project_builder,
        by_hook_caller,
        by_pyproject_api,
        by_module,
        by_legacy_backend,
    ],
)
def test_every_hook_runs_under_the_lock(
    tree: Path, tmp_path: Path, no_leaks: object, by: Callable[[Path, Path], set[str]]
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    commands = by(tree, tmp_path)
    assert witness.report() == {f"{command} locked" for command in commands}
    assert is_free(source_tree_lock(tree).lock_file)


def test_without_an_adapter_no_hook_runs_under_the_lock(tree: Path, tmp_path: Path) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    call_all_hooks(caller(tree), tmp_path)
    assert witness.report() == {f"{command} unlocked" for command in ALL_COMMANDS}
