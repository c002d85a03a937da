"""An interpreter that has imported nothing yet, to see what the library imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typing_extensions
from support import LIMIT

import source_tree_lock

SOURCE = Path(source_tree_lock.__file__).parent


def in_a_bare_interpreter(code: str, *options: str) -> str:
    """What code prints that can import the library."""
    needed = [str(SOURCE.parent), str(Path(typing_extensions.__file__).parent)]
    prelude = f"import sys; sys.path[:0] = {needed[:1]!r}; sys.path += {needed[1:]!r}\n"
    return subprocess.run(
        [sys.executable, *options, "-c", prelude + code],
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    ).stdout
