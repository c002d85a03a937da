"""Hold several source trees at once, and run a command that builds in all of them.

python several_trees.py "COMMAND" SOURCE_TREE...
"""

import os
import subprocess
import sys
from contextlib import ExitStack

from source_tree_lock import source_tree_lock


def run_in_all(command: str, source_trees: list[str]) -> None:
    # Everybody takes them in the same order: two processes that each hold one tree and wait for
    # the other's would wait forever.
    in_order = sorted({os.path.realpath(tree) for tree in source_trees})
    with ExitStack() as stack:
        locks = [stack.enter_context(source_tree_lock(tree)) for tree in in_order]
        environ = os.environ | locks[-1].environ  # of all the trees that this thread holds
        subprocess.run(command, shell=True, env=environ, check=True)


if __name__ == "__main__":
    run_in_all(sys.argv[1], sys.argv[2:])
