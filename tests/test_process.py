"""What is known of processes, and what is not."""

from __future__ import annotations

import io
import os
import sys

import pytest

from source_tree_lock import _process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def test_of_a_process_that_is_not_there_nothing_is_known() -> None:
    pid = 2**30  # above pid_max(5): one that has just ended may be another's already
    assert _process.program_of(pid) is None
    assert _process.working_directory_of(pid) is None
    assert not _process.is_alive(pid)
    assert not _process.has_run_since(pid, 0.0)


def test_a_process_that_was_started_later_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _process.has_run_since(os.getpid(), 0.0)
    real = open

    def without_boot_time(path: str, mode: str) -> object:
        return io.BytesIO(b"cpu 1 2 3\n") if path == "/proc/stat" else real(path, mode)

    # Without the boot time it cannot be told, and a living process is believed.
    monkeypatch.setattr(_process, "open", without_boot_time, raising=False)
    assert _process.has_run_since(os.getpid(), 0.0)
