"""Waiting: in the kernel's queue, for one lock after the other, and ended at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from in_line import has_queue, lock_file
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    wait_until,
    wait_until_asleep,
    wait_until_blocked,
    waiters,
)
from ways import WAITS, script

from source_tree_lock import LockTimeout, source_tree_lock

__all__ = ["lock_file"]  # a fixture
pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no queue to wait in")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
#: What the holder has: with another temporary directory, it is the tree alone.
blocked_by = pytest.mark.parametrize("blocked_by", ["lock file", "tree"])


def environ_of_holder(blocked_by: str, tmp_path: Path) -> dict[str, str]:
    return {"TMPDIR": str(tmp_path)} if blocked_by == "tree" else {}


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_free_tree_costs_no_thread_no_sleep_and_no_log(
    timeout: float | None,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    no_leaks: object,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a free tree needs none of this")

    async def main() -> None:
        monkeypatch.setattr(asyncio, "sleep", never)
        async with source_tree_lock(tree, timeout=timeout, on_wait=never):
            pass

    monkeypatch.setattr(time, "sleep", never)
    monkeypatch.setattr(threading, "Thread", never)
    with source_tree_lock(tree, timeout=timeout, on_wait=never):
        pass
    asyncio.run(main())
    assert [record for record in caplog.records if record.name == "source_tree_lock"] == []


def voluntary_switches(pid: int) -> int:
    """How often the threads of a process went to sleep so far (proc_pid_status(5))."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@linux_only
@blocked_by
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_sleeps_in_the_kernels_queue_until_it_is_granted(
    wait: str, blocked_by: str, tree: Path, tmp_path: Path, lock_file: Path
) -> None:
    environ = environ_of_holder(blocked_by, tmp_path)
    with held_elsewhere(tree, environ=environ) as holder, Child(script(wait), tree) as waiter:
        wait_until_blocked(waiter.pid)
        assert waiters(tree if blocked_by == "tree" else lock_file) == [waiter.pid]
        assert is_free(lock_file) is False
        # The thread that waits for another one may be about to fall asleep still.
        time.sleep(0.1)
        started, before = time.monotonic(), voluntary_switches(waiter.pid)
        assert before > 0
        assert waiter.is_silent(0.4)
        # It looks once a second; who asks again and again does so every 50 ms.
        woken = voluntary_switches(waiter.pid) - before
        assert woken <= 3 * (time.monotonic() - started + 1)
        holder.say()
        waiter.expect("held")
        assert not is_free(tree)


#: A child that is interrupted during its wait, tells so, and lives on.
INTERRUPTED = """
# Python 3.15 loses a Ctrl-C that comes in the midst of an import ("Exception ignored").
import json
from source_tree_lock import _deadlocks, _handover, _wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def wait():
    try:
        {}
    except KeyboardInterrupt:
        tell("interrupted")
wait()
heard()
def is_open(path):  # its thread may be about to close what it was granted for nobody
    return path in [os.path.realpath(f"{{fds}}/{{each}}") for each in os.listdir(fds)]
fds = "/proc/self/fd"
while is_open(os.path.realpath(tree)):
    time.sleep(0.001)
tell("left nothing open")
heard()
"""


@linux_only
@blocked_by
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_at_once_and_leaves_nothing_locked(
    wait: str, blocked_by: str, tree: Path, tmp_path: Path, lock_file: Path
) -> None:
    environ = environ_of_holder(blocked_by, tmp_path)
    work = script(wait, INTERRUPTED)
    with held_elsewhere(tree, environ=environ) as holder, Child(work, tree) as waiter:
        wait_until_asleep(waiter.pid)
        waiter.process.send_signal(signal.SIGINT)
        waiter.expect("interrupted")
        assert holder.is_silent(0), "the holder was not needed"
        assert is_free(lock_file) is (blocked_by == "tree")
        holder.say()
        holder.expect("released")
        wait_until(lambda: is_free(lock_file) and is_free(tree))
        waiter.say()
        waiter.expect("left nothing open")


def test_giving_up_the_wait_for_the_tree_releases_the_lock_file_at_once(
    tree: Path, tmp_path: Path, lock_file: Path, no_leaks: object
) -> None:
    async def main() -> None:
        with pytest.raises(LockTimeout):
            await source_tree_lock(tree, timeout=0.1).__aenter__()

    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}):
        assert not source_tree_lock(tree).acquire(timeout=0.1)
        assert is_free(lock_file)
        asyncio.run(main())
        assert is_free(lock_file)
        assert not has_queue(lock_file)


@linux_only
@blocked_by
@pytest.mark.parametrize("turned", [False, True], ids=["kept", "turned"])
def test_a_symlink_is_followed_to_where_it_leads_when_the_wait_is_over(
    turned: bool, blocked_by: str, tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    other.mkdir()
    link.symlink_to(tree)
    entered, leave = threading.Event(), threading.Event()

    def enter() -> None:
        with source_tree_lock(link):
            entered.set()
            assert leave.wait(LIMIT)

    thread = threading.Thread(target=enter)
    with held_elsewhere(tree, environ=environ_of_holder(blocked_by, tmp_path)) as holder:
        thread.start()
        wait_until_blocked(os.getpid())
        if turned:
            link.unlink()
            link.symlink_to(other)
        holder.say()
        holder.expect("released")
    try:
        assert entered.wait(LIMIT)
        held, free = (other, tree) if turned else (tree, other)
        assert not is_free(held)
        assert is_free(free)
        assert is_free(source_tree_lock(free).lock_file)
    finally:
        leave.set()
        thread.join(LIMIT)


@linux_only
def test_a_tree_that_is_removed_while_it_is_waited_for_is_told_as_such(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    caught: list[BaseException] = []

    def enter() -> None:
        with pytest.raises(FileNotFoundError, match="no such source tree") as error:
            source_tree_lock(tree).acquire()
        caught.append(error.value)

    thread = threading.Thread(target=enter)
    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}) as holder:
        thread.start()
        wait_until_blocked(os.getpid())
        tree.rmdir()
        holder.say()
        thread.join(LIMIT)
    assert caught
