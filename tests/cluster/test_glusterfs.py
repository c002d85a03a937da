"""Two hosts that share a source tree on a GlusterFS volume, with the lock files on it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import HOLD, LIMIT, Child, wait_until

from .volume import Volume, missing

#: Enters, tells whether it got in, and writes into the tree when it is told to. Arguments: the
#: tree; seconds to wait, if there is a limit.
BUILD = """
    import logging, os, sys
    from source_tree_lock import LockTimeout, LockUnavailable, source_tree_lock
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s: %(message)s")
    lock = source_tree_lock(sys.argv[1], timeout=float(sys.argv[2]) if sys.argv[2:] else None)
    try:
        with lock:
            tell("held")
            while heard() == "write":
                try:
                    with open(sys.argv[1] + "/built", "a") as file:
                        os.fsync(file.fileno())
                    tell("written")
                except OSError:
                    tell("cannot write")
        tell("left")
    except (LockTimeout, LockUnavailable) as error:
        tell(type(error).__name__, error)
"""

#: Enters so many times, and fails when it is not alone.
TAKE_TURNS = """
    import os, sys
    from source_tree_lock import source_tree_lock
    tell("ready")
    heard()
    tree = sys.argv[1]
    for _ in range(int(sys.argv[2])):
        with source_tree_lock(tree):
            os.mkdir(f"{tree}/inside")
            os.rmdir(f"{tree}/inside")
    tell("done")
"""

Start = Callable[..., Child]
_FLOCK = {"x86_64": "73", "aarch64": "32"}  # numbers of the system call


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    """One volume for all tests, since it takes seconds to make."""
    if reason := missing():
        pytest.skip(f"a real cluster file system {reason}")
    with ExitStack() as stack:
        yield Volume(tmp_path_factory.mktemp("glusterfs"), stack)


@pytest.fixture
def start(volume: Volume, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a process on a host, whose first argument is a new tree on the volume."""
    volume.wait_until_reached()
    tree = volume.path / request.node.name
    volume.first.seen(tree).mkdir()
    with ExitStack() as stack:

        def start(number: int, script: str, *arguments: object, **environ: str) -> Child:
            host = (volume.first, volume.second)[number - 1]
            locks = {"SOURCE_TREE_LOCK_DIR": str(volume.path / "locks")}
            environ = {**host.environ, **locks, **environ}
            child = Child(script, tree, *arguments, prefix=host.prefix, environ=environ)
            return stack.enter_context(child)

        yield start


def wait_until_blocked(child: Child) -> None:
    """Until a thread of it is in flock(2): /proc/locks lists no waiters of FUSE."""

    def is_blocked() -> bool:
        threads = Path(f"/proc/{child.pid}/task").glob("*/syscall")
        return any(path.read_text().split()[0] == _FLOCK[platform.machine()] for path in threads)

    wait_until(is_blocked)


@pytest.mark.parametrize("is_killed", [False, True])
def test_another_host_is_kept_out_and_told_who_holds(is_killed: bool, start: Start) -> None:
    holder = start(1, HOLD)
    holder.expect("held")
    told = start(2, BUILD, 0.5).line()
    assert told.startswith("LockTimeout")
    assert f"(pid {holder.pid}) on host1" in told
    waiter = start(2, HOLD)
    wait_until_blocked(waiter)
    holder.kill() if is_killed else holder.say()
    waiter.expect("held")


def test_all_processes_of_both_hosts_get_their_turn_alone(start: Start) -> None:
    crew = [start(number, TAKE_TURNS, 8) for number in (1, 2) * 8]
    for child in crew:
        child.expect("ready")
    for child in crew:
        child.say()
    for child in crew:
        child.expect("done")


def test_a_host_that_is_cut_off_loses_the_tree_and_disturbs_nobody_when_it_is_back(
    volume: Volume, start: Start
) -> None:
    holder = start(1, BUILD)
    holder.expect("held")
    waiter = start(2, BUILD)
    wait_until_blocked(waiter)
    volume.first.cut_off()
    try:
        holder.say("write")
        waiter.expect("held")
        holder.expect("cannot write")
    finally:
        volume.first.reconnect()
    volume.wait_until_reached()
    holder.say("leave")
    holder.expect("left")
    assert start(1, BUILD, 0.5).line().startswith("LockTimeout")
    waiter.say("write")
    waiter.expect("written")


@pytest.mark.parametrize("end", ["it is cut off", "the brick is stopped"])
def test_a_wait_that_the_file_system_ends_is_an_error_and_lets_nobody_in(
    end: str, volume: Volume, start: Start
) -> None:
    start(1, HOLD).expect("held")
    waiters = [start(2, BUILD), start(2, BUILD, LIMIT)]
    for waiter in waiters:
        wait_until_blocked(waiter)
    volume.second.cut_off() if end == "it is cut off" else volume.stop_brick()
    told = [waiter.line() for waiter in waiters]
    volume.second.reconnect() if end == "it is cut off" else volume.start_brick()
    for line in told:
        assert line.startswith("LockUnavailable")
        assert str(volume.path) in line
    if end == "the brick is stopped":
        start(2, HOLD).expect("held")  # though the first host has not left


def test_without_a_shared_lock_directory_both_hosts_get_in_and_are_warned(start: Start) -> None:
    for host in 1, 2:
        build = start(host, BUILD, LIMIT, SOURCE_TREE_LOCK_DIR="")
        warning = build.line()
        assert warning.startswith("WARNING: Other hosts that share source tree")
        assert "(fuse.glusterfs)" in warning
        assert "SOURCE_TREE_LOCK_DIR" in warning
        build.expect("held")


_HAND_OVER = """
    import os, subprocess, sys
    from source_tree_lock import source_tree_lock
    with source_tree_lock(sys.argv[1]) as lock:
        tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
        child = "from source_tree_lock import source_tree_lock\\n"
        child += f"with source_tree_lock({sys.argv[1]!r}, timeout=60): print('inside', flush=True)"
        subprocess.run([sys.executable, "-c", child], env={**os.environ, **lock.environ})
        heard()
"""

_ENTER_AS_IF_HANDED_OVER = """
    import json, os, sys
    from source_tree_lock import source_tree_lock
    [hold] = json.loads(sys.argv[2])
    status = os.stat(sys.argv[1])
    hold["tree"] = [status.st_dev, status.st_ino]  # by chance, they may be those of the other host
    os.environ["SOURCE_TREE_LOCK_HELD"] = json.dumps([hold])
    # The record's host is of another boot, which two namespaces of one machine cannot be.
    from source_tree_lock import _record
    _record.pid_scope = lambda _: ("host2", "another-boot", 0)
    tell(source_tree_lock(sys.argv[1]).acquire(timeout=0.5))
"""


def test_a_hold_is_handed_to_a_child_process_and_not_to_another_host(start: Start) -> None:
    holder = start(1, _HAND_OVER)
    handed_over = holder.line()
    holder.expect("inside")
    # As a batch system does it that gives a job's environment to every node. What is read there
    # of the record may be out of date, so that it is not believed.
    start(2, _ENTER_AS_IF_HANDED_OVER, handed_over).expect("False")
