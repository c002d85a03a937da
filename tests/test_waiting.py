"""Waiting: in the kernel's queue, for one lock after the other, and ended by Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_line import line_of, lock_file_of
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    wait_until,
    wait_until_asleep,
    wait_until_blocked,
)
from ways import WAITS, script

from source_tree_lock import (
    LockTimeout,
    source_tree_lock,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no queue to wait in")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture
def lock_file(tree: Path) -> Iterator[Path]:
    yield from lock_file_of(tree)


# A free tree


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

    with source_tree_lock(tree):
        pass  # what portalocker imports the first time, such as redis, makes classes of threads
    monkeypatch.setattr(time, "sleep", never)
    monkeypatch.setattr(threading, "Thread", never)
    with source_tree_lock(tree, timeout=timeout, on_wait=never):
        pass
    asyncio.run(main())
    assert [record for record in caplog.records if record.name == "source_tree_lock"] == []


# In the kernel's queue


def voluntary_switches(pid: int) -> int:
    """How often the threads of a process went to sleep so far (proc_pid_status(5))."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_for_the_lock_file_sleeps_in_the_kernel_until_it_is_granted(
    wait: str, tree: Path
) -> None:
    with held_elsewhere(tree) as holder, Child(script(wait), tree) as waiter:
        wait_until_blocked(waiter.pid)
        # The thread that waits for another one may be about to fall asleep still.
        time.sleep(0.1)
        before = voluntary_switches(waiter.pid)
        assert before > 0
        assert waiter.is_silent(0.3)
        assert voluntary_switches(waiter.pid) == before, "it woke up, and so it polls"
        holder.say()
        waiter.expect("held")


# Ctrl-C

#: A child that is interrupted during its wait, tells so, and lives on.
INTERRUPTED = """
# Python 3.15 loses a Ctrl-C that comes in the midst of an import ("Exception ignored").
import json
from source_tree_lock import _handover, _waiting
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def wait():
    try:
        {}
    except KeyboardInterrupt:
        tell("interrupted")
wait()
heard()
leads = [os.path.realpath(f"/proc/self/fd/{{each}}") for each in os.listdir("/proc/self/fd")]
tell("left", *[each for each in leads if each == os.path.realpath(tree)])
heard()
"""


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_for_the_lock_file_at_once_and_leaves_nothing_locked(
    wait: str, tree: Path, lock_file: Path
) -> None:
    work = script(wait, INTERRUPTED)
    with held_elsewhere(tree) as holder, Child(work, tree) as waiter:
        wait_until_asleep(waiter.pid)
        waiter.process.send_signal(signal.SIGINT)
        waiter.expect("interrupted")
        assert not is_free(lock_file), "the holder was not needed"
        holder.say()
        holder.expect("released")
        wait_until(lambda: is_free(lock_file))
        assert is_free(tree)
        waiter.say()
        waiter.expect("left")


@linux_only
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_for_the_tree_at_once_and_leaves_nothing_locked(
    wait: str, tree: Path, tmp_path: Path, lock_file: Path
) -> None:
    elsewhere = {"TMPDIR": str(tmp_path)}
    work = script(wait, INTERRUPTED)
    with held_elsewhere(tree, environ=elsewhere) as holder, Child(work, tree) as waiter:
        wait_until(lambda: lock_file.exists() and not is_free(lock_file))
        waiter.process.send_signal(signal.SIGINT)
        waiter.expect("interrupted")
        assert is_free(lock_file)
        assert not is_free(tree), "the holder was not needed"
        holder.say()
        holder.expect("released")
        assert is_free(tree)
        waiter.say()
        waiter.expect("left")


# The second lock


def test_giving_up_the_wait_for_the_tree_releases_the_lock_file_at_once(
    tree: Path, tmp_path: Path, lock_file: Path, no_leaks: object
) -> None:
    async def main() -> None:
        with pytest.raises(LockTimeout):
            await source_tree_lock(tree, timeout=0.01).__aenter__()

    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}):
        assert not source_tree_lock(tree).acquire(timeout=0.01)
        assert is_free(lock_file)
        asyncio.run(main())
        assert is_free(lock_file)
        assert line_of(lock_file) is None


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_for_the_tree_ends_with_its_holder(wait: str, tree: Path, tmp_path: Path) -> None:
    elsewhere = {"TMPDIR": str(tmp_path)}
    lock_file = source_tree_lock(tree).lock_file
    holding = held_elsewhere(tree, environ=elsewhere)
    with holding as holder, Child(script(wait), tree) as waiter:
        wait_until(lambda: lock_file.exists() and not is_free(lock_file))
        assert waiter.is_silent(0.1)
        holder.say()
        waiter.expect("held")
        assert not is_free(tree)


@linux_only
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["for ever", "in time"])
def test_a_symlink_that_is_turned_to_another_tree_during_a_wait_is_followed_there(
    timeout: float | None, tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    other.mkdir()
    link.symlink_to(tree)
    waiting, entered, leave = threading.Event(), threading.Event(), threading.Event()
    lock = source_tree_lock(link, timeout=timeout, on_wait=lambda _: waiting.set())

    def enter() -> None:
        with lock:
            entered.set()
            assert leave.wait(LIMIT)

    thread = threading.Thread(target=enter)
    with held_elsewhere(tree) as child:
        thread.start()
        assert waiting.wait(LIMIT)
        wait_until_blocked(os.getpid())
        link.unlink()
        link.symlink_to(other)
        child.say()
        child.expect("released")
    try:
        assert entered.wait(LIMIT)
        assert not is_free(other)
        assert is_free(tree)
        assert is_free(source_tree_lock(tree).lock_file)
    finally:
        leave.set()
        thread.join(LIMIT)
