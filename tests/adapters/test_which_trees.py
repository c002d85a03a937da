"""Which trees are setuptools', and so locked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from projects import Witness
from pyproject_hooks import quiet_subprocess_runner
from support import held_elsewhere, is_free, write_project

from source_tree_lock import source_tree_lock
from source_tree_lock.adapters import is_setuptools, locked_hooks, locked_runner

from .callers import caller, pyproject_api_frontend

SETUPTOOLS_TABLE = {
    "no pyproject.toml": (None, True),
    "empty": ("", True),
    "no build-system": ("[project]\nname = 'x'", True),
    "no build-backend": ("[build-system]\nrequires = ['setuptools']", True),
    "setuptools": ("[build-system]\nbuild-backend = 'setuptools.build_meta'", True),
    "legacy": ("[build-system]\nbuild-backend = 'setuptools.build_meta:__legacy__'", True),
    "a wrapper": ("[build-system]\nbuild-backend = 'pbr.build'", True),
    "another wrapper": ("[build-system]\nbuild-backend = 'jupyter_packaging.build_api'", True),
    "setuptools among what it requires": (
        "[build-system]\nrequires = ['x', 'SetupTools[core] >= 70']\nbuild-backend = 'x'",
        True,
    ),
    "a name that begins so": (
        "[build-system]\nrequires = ['setuptools-scm']\nbuild-backend = 'hatchling.build'",
        False,
    ),
    "ours": ("[build-system]\nbuild-backend = 'source_tree_lock.build_meta'", False),
    "our legacy": ("[build-system]\nbuild-backend='source_tree_lock.build_meta:__legacy__'", False),
    "in tree": ("[build-system]\nbuild-backend = 'x'\nbackend-path = ['.']", True),
    "ours, with a path": (
        "[build-system]\nbuild-backend = 'source_tree_lock.build_meta'\nbackend-path = ['.']",
        False,
    ),
    "a longer name": ("[build-system]\nbuild-backend = 'setuptools.build_meta_x'", False),
    "flit": ("[build-system]\nbuild-backend = 'flit_core.buildapi'", False),
    "hatchling": ("[build-system]\nbuild-backend = 'hatchling.build'", False),
    "maturin": ("[build-system]\nbuild-backend = 'maturin'", False),
    "poetry": ("[build-system]\nbuild-backend = 'poetry.core.masonry.api'", False),
    "meson": ("[build-system]\nbuild-backend = 'mesonpy'", False),
    "broken": ("[build-system", True),
    "not UTF-8": ("[build-system]\nbuild-backend = '\udcff'", True),
    "no table": ("build-system = 5", True),
    "a list of backends": ("[build-system]\nbuild-backend = ['flit_core.buildapi']", True),
    "too deep": ("x = " + "[" * 100_000, True),
}


@pytest.mark.parametrize("name", SETUPTOOLS_TABLE)
def test_which_trees_are_setuptools(tree: Path, name: str) -> None:
    text, expected = SETUPTOOLS_TABLE[name]
    if text is not None:
        (tree / "pyproject.toml").write_bytes(text.encode(errors="surrogateescape"))
    assert is_setuptools(tree) is expected
    assert is_setuptools(os.fsencode(tree)) is expected
    assert is_setuptools(str(tree)) is expected


def test_a_pyproject_toml_that_cannot_be_read_locks(tree: Path) -> None:
    (tree / "pyproject.toml").mkdir()
    assert is_setuptools(tree)


#: Of the kind that flit, hatchling and maturin are: a hook that writes nothing into the tree.
OTHER_BACKEND = """
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return "built.whl"
"""


@pytest.mark.parametrize("module", ["flit_core.buildapi", "hatchling.build", "maturin"])
def test_other_backends_do_not_wait_for_a_held_tree(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    path = tmp_path / "site" / (module.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True)
    (path.parent / "__init__.py").touch()  # so that it comes before one that is installed
    path.write_text(OTHER_BACKEND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    (tree / "pyproject.toml").write_text(
        f"[build-system]\nrequires = []\nbuild-backend = '{module}'\n"
    )
    with held_elsewhere(tree):
        for runner in (locked_runner(timeout=0), locked_runner(quiet_subprocess_runner, timeout=0)):
            assert caller(tree, runner, module).build_wheel(str(tmp_path)) == "built.whl"
        hooks = locked_hooks(caller(tree, None, module), timeout=0)
        assert hooks.build_wheel(str(tmp_path)) == "built.whl"
        frontend = locked_hooks(pyproject_api_frontend(tree), timeout=0)
        assert frontend.build_wheel(tmp_path).wheel == tmp_path / "built.whl"


def test_any_other_rule_may_say_which_trees_are_locked(tree: Path, tmp_path: Path) -> None:
    asked: list[object] = []

    def never(source_tree: object) -> bool:
        asked.append(source_tree)
        return False

    witness = Witness(tree)
    write_project(tree, witness.setup)
    caller(tree, locked_runner(when=never)).build_wheel(str(tmp_path))
    locked_hooks(caller(tree), when=never).build_wheel(str(tmp_path))
    assert witness.report() == {"bdist_wheel unlocked"}
    assert [os.fspath(each) for each in asked] == [str(tree)] * 2  # type: ignore[call-overload]
    (tree / "pyproject.toml").write_text("[build-system]\nbuild-backend = 'maturin'")
    caller(tree, locked_runner(when=lambda _: True)).build_wheel(str(tmp_path))
    assert witness.report() == {"bdist_wheel locked"}


def test_a_broken_pyproject_toml_is_the_frontends_to_report(tree: Path) -> None:
    (tree / "pyproject.toml").write_text("[build-system")
    free: list[bool] = []
    lock_file = source_tree_lock(tree).lock_file
    locked_runner(lambda *_, **__: free.append(is_free(lock_file)))(["x"], str(tree))
    assert free == [False]
