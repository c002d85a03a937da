"""One wheel of a source tree (1) into a directory (2) by pypa/build, with the lock or not (3)."""

import sys

from build import ProjectBuilder

tree, wheels, lock = sys.argv[1:]
if lock == "locked":
    from source_tree_lock.adapters import locked_runner  # its import counts

    builder = ProjectBuilder(tree, runner=locked_runner())
else:
    builder = ProjectBuilder(tree)
builder.get_requires_for_build("wheel")  # a hook that writes into the tree as well
builder.build("wheel", wheels)
