"""A frontend written with `build`: every hook runs while nobody else builds in the tree.

python frontend_build.py SOURCE_TREE OUTPUT_DIRECTORY
"""

import sys

from build import ProjectBuilder

from source_tree_lock.adapters import locked_runner


def build(source_tree: str, out: str) -> str:
    builder = ProjectBuilder(source_tree, runner=locked_runner())
    builder.get_requires_for_build("wheel")
    return builder.build("wheel", out)


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
