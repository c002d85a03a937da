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
    first, last = SOURCE.parent, Path(typing_extensions.__file__).parent
    prelude = f"import sys; sys.path = [{str(first)!r}, *sys.path, {str(last)!r}]\n"
    command = [sys.executable, *options, "-c", prelude + code]
    return subprocess.check_output(command, text=True, timeout=LIMIT)
