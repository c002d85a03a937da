"""What calls the hooks of a backend: pyproject_hooks, pyproject_api, build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyproject_api import SubprocessFrontend
from pyproject_hooks import BuildBackendHookCaller
from support import LIMIT

if TYPE_CHECKING:
    from source_tree_lock.adapters.runner import Runner

BACKEND = "setuptools.build_meta"
#: For a setup.py: a deadlock is an error rather than a wait.
TAKES_THE_LOCK = f"""
from source_tree_lock import source_tree_lock
with source_tree_lock(timeout={LIMIT / 2}):
    pass
"""


def caller(
    tree: Path, runner: Runner | None = None, backend: str = BACKEND
) -> BuildBackendHookCaller:
    return BuildBackendHookCaller(str(tree), backend, runner=runner)


def pyproject_api_frontend(tree: Path) -> SubprocessFrontend:
    return SubprocessFrontend(*SubprocessFrontend.create_args_from_folder(tree)[:-1])


class ThisEnvironment:
    """Of the kind that `build` makes for isolated builds, without installing anything."""

    python_executable = sys.executable

    def make_extra_environ(self) -> dict[str, str]:
        return {"MARK": "isolated"}


#: For a test of what both adapters keep.
either = pytest.mark.parametrize("adapter", ["locked_runner", "locked_hooks"])
