"""Processes with many threads, tasks and children at once: one at a time in a tree, always."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support import LIMIT, is_free, start

from source_tree_lock import source_tree_lock


@pytest.mark.timeout(600 + 9 * LIMIT)
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who was killed")
def test_all_kinds_of_callers_are_inside_one_at_a_time_and_leave_nothing(
    tmp_path: Path, long_run: bool
) -> None:
    directory = tmp_path / "trees"
    directory.mkdir()
    # Longer where threads run at once, in the midst of each other's steps.
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    seconds = 600 if long_run else 3 if has_gil else 10
    command = [sys.executable, "-m", "attacks.stress", directory, seconds, 16]
    processes = [start(*command, number, cwd=Path(__file__).parents[1]) for number in range(3)]
    try:
        outputs = [process.communicate(timeout=seconds + 8 * LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(outputs)
    for tree in directory.iterdir():
        assert is_free(tree)
        marker = tree / "inside"  # of one that was killed inside
        assert os.listdir(tree) in ([], ["inside"] if marker.is_symlink() else [])
        with source_tree_lock(tree, timeout=0):
            pass
    assert all(map(is_free, tmp_path.joinpath("temp").glob("*.lock")))
