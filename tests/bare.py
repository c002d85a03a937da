"""An interpreter that has imported nothing yet, to see what the library imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import LIMIT

import source_tree_lock

SOURCE = Path(source_tree_lock.__file__).parent


def in_a_bare_interpreter(code: str, *options: str) -> str:
    """What code prints that can import the library."""
    prelude = f"import sys; sys.path[:0] = {[str(SOURCE.parent)]!r}\n"
    return subprocess.run(
        [sys.executable, *options, "-c", prelude + code],
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    ).stdout
