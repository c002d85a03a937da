"""A frontend written with `pyproject_hooks`.

python frontend_pyproject_hooks.py SOURCE_TREE OUTPUT_DIRECTORY
"""

import sys

from pyproject_hooks import BuildBackendHookCaller

from source_tree_lock.adapters import locked_hooks


def build(source_tree: str, out: str) -> str:
    hooks = locked_hooks(BuildBackendHookCaller(source_tree, "setuptools.build_meta"))
    hooks.get_requires_for_build_wheel()
    return hooks.build_wheel(out)


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
