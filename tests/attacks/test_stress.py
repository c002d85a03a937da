"""Processes with many threads, tasks and children at once: one at a time in a tree, always."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from support import LIMIT, is_free, start

from source_tree_lock import source_tree_lock

PROCESSES = 3
THREADS = 16


def _seconds(*, is_long: bool) -> int:
    """Longer where threads run at once, in the midst of each other's steps."""
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return 600 if is_long else 3 if has_gil else 10


@pytest.mark.timeout(600 + 9 * LIMIT)
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who was killed")
def test_all_kinds_of_callers_are_inside_one_at_a_time_and_leave_nothing(
    tmp_path: Path, long_run: bool
) -> None:
    directory = tmp_path / "trees"
    directory.mkdir()
    seconds = _seconds(is_long=long_run)
    command = [sys.executable, "-m", "attacks.stress", directory, seconds, THREADS]
    here = Path(__file__).parents[1]
    processes = [start(*command, number, cwd=here) for number in range(PROCESSES)]
    try:
        outputs = [process.communicate(timeout=seconds + 8 * LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        results = json.loads(output.splitlines()[-1])
        assert results["failures"] == [], output
        assert len(results["gone"]) == 6, f"a way was never gone: {results['gone']}"
    for tree in directory.iterdir():
        assert is_free(tree)
        assert all(map(is_free, tmp_path.joinpath("temp").glob("*.lock")))
        marker = tree / "inside"  # of one that was killed inside
        assert os.listdir(tree) in ([], ["inside"] if marker.is_symlink() else [])
        with source_tree_lock(tree, timeout=0):
            pass
