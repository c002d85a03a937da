"""A frontend written with `pyproject_api`, as tox is.

python frontend_pyproject_api.py SOURCE_TREE OUTPUT_DIRECTORY
"""

import sys
from pathlib import Path

from pyproject_api import SubprocessFrontend

from source_tree_lock.adapters import locked_hooks


def build(source_tree: str, out: str) -> Path:
    project = SubprocessFrontend.create_args_from_folder(Path(source_tree))
    frontend = locked_hooks(SubprocessFrontend(*project[:-1]))
    frontend.get_requires_for_build_wheel()
    return frontend.build_wheel(Path(out)).wheel


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
