"""What calls the hooks of a backend: pyproject_hooks, pyproject_api."""

from __future__ import annotations

from pathlib import Path

from pyproject_api import SubprocessFrontend
from pyproject_hooks import BuildBackendHookCaller

from source_tree_lock.adapters import Runner


def caller(tree: Path, runner: Runner | None = None) -> BuildBackendHookCaller:
    return BuildBackendHookCaller(str(tree), "setuptools.build_meta", runner=runner)


def pyproject_api_frontend(tree: Path) -> SubprocessFrontend:
    return SubprocessFrontend(*SubprocessFrontend.create_args_from_folder(tree)[:-1])
