"""64 threads at once, with the GIL on and off: one at a time in a tree, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import LIMIT

THREADS = 64


def _seconds(*, is_long: bool) -> int:
    """Longer where threads run at once, in the midst of each other's steps."""
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return 600 if is_long else 5 if has_gil else 60


@pytest.mark.timeout(600 + 9 * LIMIT)
def test_threads_of_all_kinds_are_inside_one_at_a_time_and_leave_nothing(
    tmp_path: Path, long_run: bool, count_cases: Callable[[int], None]
) -> None:
    directory = tmp_path / "trees"
    directory.mkdir()
    seconds = _seconds(is_long=long_run)
    command = [sys.executable, "-m", "attacks.stress", directory, seconds, THREADS]
    done = subprocess.run(
        list(map(str, command)),
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 8 * LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["failures"] == [], "\n".join(told["failures"]) + done.stderr
    assert len(told["gone"]) == 9, "a way was never gone"
    count_cases(sum(told["gone"].values()))
