"""Frontends written with `build`, with `pyproject_hooks`, and with `pyproject_api` as tox is.

python frontends.py build|pyproject_hooks|pyproject_api SOURCE_TREE OUTPUT_DIRECTORY
"""

import sys
from pathlib import Path

from build import ProjectBuilder
from pyproject_api import SubprocessFrontend
from pyproject_hooks import BuildBackendHookCaller

from source_tree_lock.adapters import locked_hooks, locked_runner


def with_build(source_tree: str, out: str) -> None:
    builder = ProjectBuilder(source_tree, runner=locked_runner())
    builder.get_requires_for_build("wheel")
    builder.build("wheel", out)


def with_pyproject_hooks(source_tree: str, out: str) -> None:
    hooks = locked_hooks(BuildBackendHookCaller(source_tree, "setuptools.build_meta"))
    hooks.get_requires_for_build_wheel()
    hooks.build_wheel(out)


def with_pyproject_api(source_tree: str, out: str) -> None:
    project = SubprocessFrontend.create_args_from_folder(Path(source_tree))
    frontend = locked_hooks(SubprocessFrontend(*project[:-1]))
    frontend.get_requires_for_build_wheel()
    frontend.build_wheel(Path(out))


if __name__ == "__main__":
    globals()[f"with_{sys.argv[1]}"](*sys.argv[2:])
