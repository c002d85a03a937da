"""What calls the hooks of a backend: pyproject_hooks, pyproject_api, build; and both adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyproject_api import SubprocessFrontend
from pyproject_hooks import BuildBackendHookCaller

from source_tree_lock.adapters import Runner, locked_hooks, locked_runner

BACKEND = "setuptools.build_meta"


def caller(
    tree: Path, runner: Runner | None = None, backend: str = BACKEND
) -> BuildBackendHookCaller:
    return BuildBackendHookCaller(str(tree), backend, runner=runner)


def pyproject_api_frontend(tree: Path) -> SubprocessFrontend:
    return SubprocessFrontend(*SubprocessFrontend.create_args_from_folder(tree)[:-1])


def _runner(tree: Path, body: Callable[[], object], **options: Any) -> None:
    locked_runner(lambda *_: body(), **options)(["a hook"], str(tree))


def _hooks(tree: Path, body: Callable[[], object], **options: Any) -> None:
    locked_hooks(SimpleNamespace(build_wheel=body), tree, **options).build_wheel()


#: For what both adapters promise: each runs a function as a hook of a tree.
either = pytest.mark.parametrize("run_hook", [_runner, _hooks], ids=["runner", "hooks"])
RunHook = Callable[..., None]
