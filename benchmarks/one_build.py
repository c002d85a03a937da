"""One wheel, built as a frontend builds it, in a process of its own.

It tells when it is ready and waits for a line, so that many of them start at once.
Arguments: the source tree, the directory for the wheel, and whether to take the lock.
"""

from __future__ import annotations

import sys

from build import ProjectBuilder
from pyproject_hooks import default_subprocess_runner


def main(tree: str, wheels: str, lock: str) -> None:
    runner = default_subprocess_runner
    if lock == "locked":
        from source_tree_lock.adapters import locked_runner  # its import counts

        runner = locked_runner()
    builder = ProjectBuilder(tree, runner=runner)
    print("ready", flush=True)
    if not sys.stdin.readline():
        raise SystemExit("whoever started this build has gone")
    builder.get_requires_for_build("wheel")  # a hook that writes into the tree as well
    builder.build("wheel", wheels)


if __name__ == "__main__":
    main(*sys.argv[1:])
