"""Which trees are setuptools', and so locked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from source_tree_lock.adapters import is_setuptools

OURS = "source_tree_lock.build_meta"
RAPIDS = "build-backend = 'rapids_build_backend.build'\n[tool.rapids-build-backend]\n"
#: What [build-system] says.
TABLES = [
    ("", True),
    ("requires = ['setuptools']", True),
    ("build-backend = 'setuptools.build_meta'", True),
    ("build-backend = 'setuptools.build_meta:__legacy__'", True),
    ("build-backend = 'x'\nbackend-path = ['.']", True),
    ("build-backend = 'pbr.build'", True),
    ("build-backend = 'jupyter_packaging.build_api'", True),
    ("build-backend = 'scikit_build_core.setuptools.build_meta'", True),
    (f"{RAPIDS}build-backend = 'setuptools.build_meta'", True),
    (f"{RAPIDS}build-backend = 'scikit_build_core.build'", False),
    (f"{RAPIDS}build-backend = '{OURS}'", False),
    (RAPIDS, True),
    ("requires = ['x', ' SetupTools[core] >= 70']\nbuild-backend = 'x'", True),
    ("requires = ['setuptools_scm']\nbuild-backend = 'x'", True),
    ("requires = ['not-setuptools', 'x; extra == \"setuptools\"']\nbuild-backend = 'x'", False),
    (f"build-backend = '{OURS}:__legacy__'", False),
    (f"requires = ['setuptools']\nbuild-backend = '{OURS}'\nbackend-path = ['.']", False),
    ("build-backend = 'setuptools.build_meta_x'", False),
    ("build-backend = 'flit_core.buildapi'", False),
    ("build-backend = ['flit_core.buildapi']", True),
    ("build-backend = 'flit_core.buildapi'\nrequires = [5]", True),
    ("build-backend = '\udcff'", True),
    ("x = " + "[" * 100_000, True),
]
#: All of pyproject.toml.
FILES = [
    (text, True) for text in ("", "[project]\nname = 'x'", "[build-system", "build-system = 5")
]
FILES += [(f"[build-system]\n{table}", expected) for table, expected in TABLES]


@pytest.mark.parametrize(("text", "expected"), FILES, ids=lambda each: ascii(each)[:60])
def test_which_trees_are_setuptools(tree: Path, text: str, expected: bool) -> None:
    (tree / "pyproject.toml").write_bytes(text.encode(errors="surrogateescape"))
    assert is_setuptools(tree) is expected
    assert is_setuptools(os.fsencode(tree)) is expected


def test_a_pyproject_toml_that_is_missing_or_cannot_be_read_locks(tree: Path) -> None:
    assert is_setuptools(tree)
    (tree / "pyproject.toml").mkdir()
    assert is_setuptools(tree)
