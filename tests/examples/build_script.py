"""A build script of one's own, with the lock as a decorator.

python build_script.py SOURCE_TREE OUTPUT_DIRECTORY
"""

import subprocess
import sys
from pathlib import Path

from source_tree_lock import source_tree_lock


@source_tree_lock(lambda source_tree, out: source_tree)
def build(source_tree: str, out: str) -> None:
    Path(source_tree, "answer.py").write_text("ANSWER = 42\n")
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", out]
    subprocess.run(command, cwd=source_tree, check=True)


if __name__ == "__main__":
    build(*sys.argv[1:])
