"""Processes with many threads, tasks and children at once: one at a time in a tree, always."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import LIMIT, is_free

from source_tree_lock import source_tree_lock

PROCESSES = 3
THREADS = 16
#: How many ways a thread may go.
WAYS = 12


def _seconds(*, is_long: bool) -> int:
    """Longer where threads run at once, in the midst of each other's steps."""
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return 600 if is_long else 5 if has_gil else 20


@pytest.mark.timeout(600 + 9 * LIMIT)
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who was killed")
def test_all_kinds_of_callers_are_inside_one_at_a_time_and_leave_nothing(
    tmp_path: Path, long_run: bool, count_cases: Callable[[int], None]
) -> None:
    pytest.importorskip("trio")
    directory = tmp_path / "trees"
    directory.mkdir()
    seconds = _seconds(is_long=long_run)
    command = [sys.executable, "-m", "attacks.stress", str(directory), str(seconds), str(THREADS)]
    processes = [
        subprocess.Popen(
            [*command, str(number)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=seconds + 8 * LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    cases = 0
    for process, (told, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, told + errors
        results = json.loads(told)
        assert results["failures"] == [], "\n".join(results["failures"]) + errors
        assert len(results["gone"]) == WAYS, f"a way was never gone: {results['gone']}"
        cases += sum(results["gone"].values())
    for tree in directory.iterdir():
        assert is_free(tree)
        assert all(map(is_free, tmp_path.joinpath("temp").glob("*.lock")))
        marker = tree / "inside"  # of one that was killed inside
        assert os.listdir(tree) in ([], ["inside"] if marker.is_symlink() else [])
        with source_tree_lock(tree, timeout=0):
            pass
    count_cases(cases)
