"""Every hook runs under the lock, through whatever calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from projects import ALL_COMMANDS, Witness, call_all_hooks
from pyproject_api import SubprocessFrontend
from pyproject_hooks import BuildBackendHookCaller, default_subprocess_runner
from support import Child, is_free, write_project

from source_tree_lock import source_tree_lock
from source_tree_lock.adapters import Runner, locked_hooks, locked_runner


def caller(tree: Path, runner: Runner | None = None) -> BuildBackendHookCaller:
    return BuildBackendHookCaller(str(tree), "setuptools.build_meta", runner=runner)


def pyproject_api_frontend(tree: Path) -> SubprocessFrontend:
    return SubprocessFrontend(*SubprocessFrontend.create_args_from_folder(tree)[:-1])


def by_runner(tree: Path, out: Path) -> None:
    call_all_hooks(caller(tree, locked_runner()), out)


def by_hook_caller(tree: Path, out: Path) -> None:
    hooks = caller(tree)
    # A private name of pyproject_hooks, which has no public one: without it, no hold is handed on.
    assert hooks._subprocess_runner is default_subprocess_runner
    call_all_hooks(locked_hooks(hooks), out)
    assert hooks._subprocess_runner is default_subprocess_runner


def by_pyproject_api(tree: Path, out: Path) -> None:
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


IN_PROCESS = """
    import setuptools.build_meta
    from source_tree_lock.adapters import locked_hooks
    sys.path.append(sys.argv[3])
    from projects import call_all_hooks
    hooks = locked_hooks(setuptools.build_meta)
    call_all_hooks(hooks.__legacy__ if sys.argv[1] == "legacy" else hooks, sys.argv[2])
    tell("done")
"""


def in_process(kind: str, tree: Path, out: Path) -> None:
    with Child(IN_PROCESS, kind, out, Path(__file__).parents[1], cwd=tree) as child:
        assert child.rest()[-1] == "done"


# setuptools warns of each editable installation, and pyproject_hooks passes that on.
@pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning")
@pytest.mark.parametrize(
    "call",
    [
        by_runner,
        pytest.param(by_hook_caller, marks=pytest.mark.long),
        pytest.param(by_pyproject_api, marks=pytest.mark.long),
        pytest.param(partial(in_process, "module"), id="module"),
        pytest.param(partial(in_process, "legacy"), id="legacy", marks=pytest.mark.long),
    ],
)
def test_every_hook_runs_under_the_lock(
    tree: Path, tmp_path: Path, no_leaks: object, call: Callable[[Path, Path], None]
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    call(tree, tmp_path)
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}
    assert is_free(source_tree_lock(tree).lock_file)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, only the first hands the hold on")
@pytest.mark.parametrize("make", [caller, pyproject_api_frontend])
def test_a_hook_that_takes_the_lock_is_let_in(
    make: Callable[[Path], Any], tree: Path, tmp_path: Path
) -> None:
    takes_it = "from source_tree_lock import source_tree_lock\nwith source_tree_lock(timeout=30): 0"
    write_project(tree, takes_it)
    locked_hooks(make(tree)).build_wheel(tmp_path)
    assert list(tmp_path.glob("*.whl"))
