"""Who holds a tree: the right one or nobody, whatever a lock file says."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from support import (
    HOLD,
    LIMIT,
    PRELUDE,
    WITHOUT_ROOTS_RIGHTS,
    Child,
    held_elsewhere,
    is_free,
    unshared,
    uv_build,
    wait_until_blocked,
    write_project,
)

from source_tree_lock import Holder, LockUnavailable, _kernel_lock, _proc, source_tree_lock

from .crowd import (
    BARE,
    BECOMES_ANOTHER,
    OWN_PIDS,
    WAIT,
    a_record,
    awaited_holder,
    flock_1,
    linux_only,
    on_btrfs,
    on_host,
    on_overlay,
    record_of,
    root_only,
)

pytestmark = linux_only
#: Becomes another program by exec(2), and so keeps the pipes and the pid.
BECOMES = "import os; os.execv(sys.argv[1], sys.argv[1:])"
HOST = os.uname().nodename if sys.platform == "linux" else ""
USER = _proc.user_of(os.getpid())


def test_a_python_holder_is_named_by_pid_program_host_user_and_start(
    tree: Path, tmp_path: Path
) -> None:
    script = tmp_path / "build-all-of-it.py"  # longer than the kernel's 15 letters
    script.write_text(PRELUDE + textwrap.dedent(HOLD))
    before = time.time()
    with Child(BECOMES, sys.executable, script, tree, "--password=SECRET") as child:
        child.expect("held")
        holder = awaited_holder(tree)
        assert holder is not None
        assert holder.since is not None
        assert before - 0.01 <= holder.since <= time.time() + 0.01
        assert holder == Holder(child.pid, script.name, HOST, holder.since, USER)
        assert b"SECRET" not in source_tree_lock(tree).lock_file.read_bytes()


@pytest.mark.parametrize("mode", ["--exclusive", "--shared"])
def test_flock_1_is_named_and_a_record_of_another_process_is_not_believed(
    mode: str, tree: Path
) -> None:
    lock_file = source_tree_lock(tree).lock_file
    with flock_1(lock_file, mode) as pid, Child("heard()") as child:
        assert awaited_holder(tree) == Holder(pid, "flock", HOST, user=USER)
        for is_running in (True, False):
            if not is_running:
                child.kill()
            lock_file.write_bytes(a_record(pid=child.pid))
            assert awaited_holder(tree) == Holder(pid, "flock", HOST, user=USER)


def test_a_script_that_leaves_no_record_is_named_in_letters_that_no_terminal_obeys(
    tree: Path, tmp_path: Path
) -> None:
    script = tmp_path / "\033[31ma-name-of-more-than-15-letters"
    script.write_text(f"#!{sys.executable}\n{PRELUDE}{textwrap.dedent(BARE)}")
    script.chmod(0o755)
    with Child(BECOMES, script, source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        name = "__31ma-name-of-more-than-15-letters"
        assert awaited_holder(tree) == Holder(child.pid, name, HOST, user=USER)


def test_a_real_uv_build_is_named(tree: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)  # opening it waits for the test
    write_project(tree, f"if 'bdist_wheel' in __import__('sys').argv: open({str(go)!r}).close()")
    process = uv_build(tree)
    try:
        with open(go, "w"):
            assert awaited_holder(tree) == Holder(process.pid, "uv", HOST, user=USER)
    finally:
        process.kill()
        process.wait(LIMIT)


def test_of_two_holders_the_one_of_the_tree_is_named(tree: Path, tmp_path: Path) -> None:
    """The other one has the lock file, and waits for the tree."""
    holding = held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)})
    with holding as child, Child(HOLD, tree) as late:
        wait_until_blocked(late.pid)
        assert not is_free(source_tree_lock(tree).lock_file)
        assert (holder := awaited_holder(tree)) is not None
        assert holder.pid == child.pid


@pytest.mark.parametrize("script", [HOLD, BARE], ids=["with a record", "without"])
def test_a_stopped_holder_is_told_as_such(script: str, tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    with Child(script, tree if script == HOLD else lock_file) as child:
        child.expect("held")
        for number, state, is_stopped in (
            (signal.SIGSTOP, os.WSTOPPED, True),
            (signal.SIGCONT, os.WCONTINUED, False),
        ):
            os.kill(child.pid, number)
            os.waitid(os.P_PID, child.pid, state)
            assert (holder := awaited_holder(tree)) is not None
            assert (holder.pid, holder.is_stopped) == (child.pid, is_stopped)


def test_one_that_left_its_lock_to_a_child_is_not_named_and_nobody_else_is(tree: Path) -> None:
    # flock(1) itself, which the kernel names, has ended by then.
    lock = source_tree_lock(tree)
    script = 'exec 9>"$0"; flock 9; echo; read line'
    command = ["sh", "-c", script, str(lock.lock_file)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"\n"
        try:
            assert lock.locked()
            assert awaited_holder(tree) is None
        finally:
            shell.kill()


def test_nobody_is_named_when_nobody_holds(tree: Path) -> None:
    lock = source_tree_lock(tree)
    assert (lock.locked(), lock.holder()) == (False, None)
    with lock:
        pass
    assert (lock.locked(), lock.holder()) == (False, None)
    # What a process leaves behind that was killed, and is not waited for yet.
    with held_elsewhere(tree) as child:
        child.process.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert record_of(lock.lock_file)["pid"] == child.pid
        assert (lock.locked(), lock.holder()) == (False, None)
    # A lock of another kind.
    with Child(BARE.replace("fcntl.flock(", "fcntl.lockf("), lock.lock_file) as child:
        child.expect("held")
        assert (lock.locked(), lock.holder()) == (False, None)
        with source_tree_lock(tree, timeout=0):
            pass


def test_a_process_that_may_not_see_the_lock_file_is_told_of_the_tree(
    tree: Path, temp_dir: Path
) -> None:
    script = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        try:
            lock.locked()
        except LockUnavailable as error:
            tell(lock.holder().pid, error.errno, error.filename == str(lock.lock_file))
    """
    with held_elsewhere(tree) as holder:
        temp_dir.chmod(0)
        try:
            with Child(script, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
                child.expect(f"{holder.pid} {errno.EACCES} True")
        finally:
            temp_dir.chmod(0o700)


def test_a_tree_that_knows_no_locks_is_held_by_nobody_and_one_that_cannot_tell_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = source_tree_lock(tree)
    with lock:
        pass
    real, code = _kernel_lock.KernelLock.try_lock, errno.EOPNOTSUPP

    def refuse(self: _kernel_lock.KernelLock) -> bool:
        if self.path == str(tree):
            raise OSError(code, os.strerror(code))
        return real(self)

    monkeypatch.setattr(_kernel_lock.KernelLock, "try_lock", refuse)
    assert not lock.locked()
    code = errno.ENOLCK
    with pytest.raises(LockUnavailable) as caught:
        lock.locked()
    assert (caught.value.errno, caught.value.filename) == (code, str(tree))


# The kernel's list

LOCKS = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:4711 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:01:4711 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:47111 0 EOF
4: OFDLCK ADVISORY  WRITE -1 fe:00:4711 0 EOF
5: FLOCK  ADVISORY  WRITE 0 fe:00:4712 0 EOF
6: FLOCK  ADVISORY  WRITE 14 fe:00:4713 0 EOF
6: -> FLOCK  ADVISORY  WRITE 15 fe:00:4713 0 EOF
7: -> FLOCK  ADVISORY  WRITE 16 fe:00:4714 0 EOF
8: FLOCK  ADVISORY  READ 17 fe:00:4715 0 EOF
9: FLOCK  MANDATORY READ 18 103:100000:18446744073709551615 0 EOF
10: LEASE  ACTIVE    WRITE 19 fe:00:4716 0 EOF
11: DELEG  ACTIVE    READ 20 fe:00:4716 0 EOF
"""
#: The holders in it, by device and inode.
HOLDERS = {
    (0xFE, 0, 4711): None,  # locks of another kind, device or inode
    (0xFE, 0, 4712): None,  # a holder of another pid namespace
    (0xFE, 0, 4713): 14,  # not the one that waits
    (0xFE, 0, 4714): None,  # only waiting
    (0xFE, 0, 4715): 17,  # shared
    (0x103, 0x100000, 2**64 - 1): 18,  # large numbers
    (0xFE, 0, 4716): None,  # a lease
}


def test_the_kernels_list_is_read_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("locks").write_text(LOCKS)
    monkeypatch.setattr(_proc, "PROC", str(tmp_path))
    keys = [(os.makedev(*device), inode) for *device, inode in HOLDERS]
    assert _proc.kernel_holders(*keys) == list(HOLDERS.values())


# Where the kernel's list does not tell


@root_only
@pytest.mark.parametrize(
    "way", ["outside", "outside, of the number of an ancestor", "inside", "other user"]
)
def test_a_holder_of_another_pid_namespace_or_user_is_named_as_such(way: str, tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    other_pids = unshared(*OWN_PIDS)
    if way == "inside":
        with Child(HOLD, tree, prefix=other_pids) as child:
            child.expect("held")
            inside = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().strip()
            assert record_of(lock_file)["pid"] == 1
            holder = awaited_holder(tree)
            assert holder is not None
            assert holder.pid == int(inside)
    elif way == "other user":
        become = """os.set_inheritable(file.fileno(), True)
    command = ["setpriv", "--reuid", "65534", "--clear-groups", "sh", "-c", "echo held; read word"]
    os.execvp(command[0], command)"""
        with Child(BARE.replace('tell("held")', f"import os; {become}"), lock_file) as child:
            child.expect("held")
            assert awaited_holder(tree) == Holder(child.pid, "sh", HOST, user="nobody")
    elif way == "outside":
        with held_elsewhere(tree) as holding, Child(WAIT, tree, prefix=other_pids) as child:
            assert f"(pid {holding.pid}, in another container)" in child.line()
    else:  # the waiting process has a parent of this number
        look = PRELUDE + textwrap.dedent(WAIT)
        wait = f"import subprocess\nsubprocess.run([sys.executable, '-c', {look!r}, sys.argv[1]])"
        with flock_1(lock_file):
            lock_file.write_bytes(a_record(pid=1))
            with Child(wait, tree, prefix=other_pids) as child:
                assert "(pid 1, in another container)" in child.line()
                assert child.line().startswith("for ")  # and no WARNING before


@root_only
def test_a_holder_on_another_host_is_named_with_it(tree: Path) -> None:
    """Each is process 1 on its host: a stranger to itself, and the ancestor of nobody here."""
    look = """
        from source_tree_lock import source_tree_lock
        holder = source_tree_lock(sys.argv[1]).holder()
        tell(holder.pid, holder.host, holder.is_local, " on node1 for " in str(holder))
    """
    with on_host("node1", HOLD, tree) as holder:
        holder.expect("held")
        with on_host("node2", look, tree) as waiter:
            waiter.expect("1 node1 False True")


# File systems where stat(2) may tell another device than /proc/locks


@pytest.fixture(params=["btrfs", "overlay", "mixed overlay", "mixed overlay, xino"])
def mounted_at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounts, as root")
    directory = tmp_path / "mounted"
    directory.mkdir()
    ways = {
        "btrfs": on_btrfs(directory),
        "overlay": on_overlay(directory, "", mixed=False),
        "mixed overlay": on_overlay(directory, ",xino=off", mixed=True),
        "mixed overlay, xino": on_overlay(directory, ",xino=on", mixed=True),
    }
    with ways[request.param] as root:
        (root / "tree").mkdir()
        yield root


def test_on_btrfs_and_overlays_the_right_holder_is_named_or_none(mounted_at: Path) -> None:
    tree, lock_dir = mounted_at / "tree", mounted_at / "locks"
    lock = source_tree_lock(tree, lock_dir=lock_dir)
    environ = {"SOURCE_TREE_LOCK_DIR": str(lock_dir)}
    assert (lock.locked(), lock.holder()) == (False, None)
    with held_elsewhere(tree, environ=environ) as child:
        holder = lock.holder()
        assert lock.locked()
        assert holder is not None
        assert (holder.pid, holder.host) == (child.pid, HOST)
        assert not lock.acquire(blocking=False)
        child.kill()  # and leaves its record behind
        assert (lock.locked(), lock.holder()) == (False, None)
    with flock_1(lock.lock_file) as pid:
        assert lock.locked()
        assert lock.holder() in (None, Holder(pid, "flock", HOST, user=USER))
    with Child(BECOMES_ANOTHER, tree, lock_dir) as child:  # a record of a process that left
        child.expect("other")
        assert record_of(lock.lock_file)["pid"] == child.pid
        assert (lock.locked(), lock.holder()) == (False, None)
        with flock_1(lock.lock_file) as pid:
            assert lock.holder() in (None, Holder(pid, "flock", HOST, user=USER))


@root_only
def test_the_inode_number_of_another_file_or_subvolume_names_nobody(tmp_path: Path) -> None:
    with on_btrfs(tmp_path) as root:
        here, there = root, root.parent / "other"
        assert os.stat(here).st_ino == os.stat(there).st_ino
        with held_elsewhere(there):
            lock = source_tree_lock(here)
            assert (lock.locked(), lock.holder()) == (False, None)
