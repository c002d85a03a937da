"""Who holds a tree: the right one or nobody, whatever a lock file says."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import HOLD, PRELUDE, WITHOUT_ROOTS_RIGHTS, Child, held_elsewhere, unshared

from source_tree_lock import Holder, LockUnavailable, _kernel_lock, _proc, source_tree_lock

from .crowd import BARE, BECOMES, WAIT, a_record, awaited_holder, flock_1, linux_only, record_of

pytestmark = linux_only
HOST = os.uname().nodename
USER = pwd.getpwuid(os.geteuid()).pw_name


def test_a_python_holder_is_named_by_pid_program_host_user_and_start(
    tree: Path, tmp_path: Path
) -> None:
    script = tmp_path / "build-all-of-it.py"  # longer than the kernel's 15 letters
    script.write_text(PRELUDE + textwrap.dedent(HOLD))
    before = time.time()
    with Child(BECOMES, sys.executable, script, tree, "--password=SECRET") as child:
        child.expect("held")
        assert (holder := awaited_holder(tree)) is not None
        assert before - 0.01 <= (holder.since or 0) <= time.time() + 0.01
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


def test_a_stopped_holder_is_told_as_such(tree: Path) -> None:
    with Child(BARE, source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        for number, state in ((signal.SIGSTOP, os.WSTOPPED), (signal.SIGCONT, os.WCONTINUED)):
            os.kill(child.pid, number)
            os.waitid(os.P_PID, child.pid, state)
            assert (holder := awaited_holder(tree)) is not None
            assert (holder.pid, holder.is_stopped) == (child.pid, number == signal.SIGSTOP)


def test_one_that_left_its_lock_to_a_child_is_not_named_and_nobody_else_is(tree: Path) -> None:
    # flock(1) itself, which the kernel names, has ended by then.
    lock = source_tree_lock(tree)
    script = 'exec 9>"$0"; flock 9; echo held; read line'
    with Child(BECOMES, "sh", "-c", script, lock.lock_file) as child:
        child.expect("held")
        assert lock.locked()
        assert awaited_holder(tree) is None


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
        with Child(script, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
            child.expect(f"{holder.pid} {errno.EACCES} True")


def test_a_tree_that_knows_no_locks_is_held_by_nobody_and_one_that_cannot_tell_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: _kernel_lock.KernelLock) -> bool:
        raise OSError(number, os.strerror(number))

    lock = source_tree_lock(tree)
    monkeypatch.setattr(_kernel_lock.KernelLock, "try_lock", refuse)
    number = errno.EOPNOTSUPP
    assert not lock.locked()
    number = errno.ENOLCK
    with pytest.raises(LockUnavailable) as caught:
        lock.locked()
    assert (caught.value.errno, caught.value.filename) == (number, str(tree))


def test_a_lock_whose_holder_the_kernels_list_does_not_tell_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older kernels list a holder in another pid namespace as 0, and OFD locks are nobody's."""
    tmp_path.joinpath("locks").write_text(
        "1: FLOCK  ADVISORY  WRITE 0 fe:00:4711 0 EOF\n"
        "2: OFDLCK ADVISORY  WRITE -1 fe:00:4711 0 EOF\n"
        "3: FLOCK  MANDATORY READ 18 103:100000:18446744073709551615 0 EOF\n"
    )
    monkeypatch.setattr(_proc, "PROC", str(tmp_path))
    keys = (os.makedev(0xFE, 0), 4711), (os.makedev(0x103, 0x100000), 2**64 - 1)
    assert _proc.kernel_holders(*keys) == [None, 18]


def test_a_lock_that_the_kernel_left_out_of_a_long_list_once_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = "1: FLOCK  ADVISORY  WRITE 7 fe:00:1 0 EOF\n" * 60  # a page, cut short
    lists = iter([others, others + "2: FLOCK  ADVISORY  WRITE 18 fe:00:4711 0 EOF\n", others])
    monkeypatch.setattr(_proc, "_read", lambda name: next(lists).encode())
    assert _proc.kernel_holders((os.makedev(0xFE, 0), 4711)) == [18]


#: What unshare(1) needs for pids of one's own.
OWN_PIDS = ("--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_holder_without_a_record_is_named_with_its_user(tree: Path) -> None:
    become = """import os
    os.set_inheritable(file.fileno(), True)
    os.setuid(65534)
    os.execv("/bin/sh", ["sh", "-c", "echo held; read word"])"""
    script = BARE.replace('tell("held")', become)
    with Child(script, source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        assert awaited_holder(tree) == Holder(child.pid, "sh", HOST, user="nobody")


def test_a_holder_inside_another_pid_namespace_is_named_by_its_pid_here(tree: Path) -> None:
    with held_elsewhere(tree, prefix=unshared(*OWN_PIDS)) as child:
        inside = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
        assert record_of(source_tree_lock(tree).lock_file)["pid"] == 1
        assert (holder := awaited_holder(tree)) is not None
        assert holder.pid == int(inside)


def test_a_holder_outside_of_the_pid_namespace_is_a_stranger(tree: Path) -> None:
    other_pids = unshared(*OWN_PIDS)
    with held_elsewhere(tree) as holding, Child(WAIT, tree, prefix=other_pids) as child:
        assert f"(pid {holding.pid}, in another container)" in child.line()


def test_a_holder_on_another_host_is_named_with_it(tree: Path) -> None:
    """The parent of the waiter is process 1 too, and no ancestor of the waiter holds the tree."""
    look = PRELUDE + textwrap.dedent(WAIT)
    wait = f"import subprocess\nsubprocess.run([sys.executable, '-c', {look!r}, sys.argv[1]])"
    host = (*unshared("--uts", *OWN_PIDS), "sh", "-c", 'hostname "$0"; exec "$@"')
    with (
        held_elsewhere(tree, prefix=(*host, "node1")),
        Child(wait, tree, prefix=(*host, "node2")) as waiter,
    ):
        assert "(pid 1) on node1 to leave" in waiter.line()
        assert waiter.line().startswith("for ")  # and no WARNING before


# File systems where stat(2) may tell another device than /proc/locks

#: How each is mounted on the directory `at`, with the trees `tree` and `other` in it.
BTRFS = """
    truncate -s 114M image
    mkfs.btrfs -q image
    mount -o loop image at
    btrfs subvolume create at/tree
    btrfs subvolume create at/other
"""
OVERLAY = """
    mkdir lower upper/upper upper/work
    mount -t overlay -o lowerdir=lower,upperdir=upper/upper,workdir=upper/work$1 overlay at
    mkdir at/tree at/other
"""
MIXED = f"mount -t tmpfs tmpfs upper{OVERLAY}"


@pytest.fixture(params=[(BTRFS, ""), (OVERLAY, ""), (MIXED, ",xino=off"), (MIXED, ",xino=on")])
def mounted_at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    script, option = request.param
    command = ["sh", "-ec", f"mkdir at upper\n{script}", "sh", option]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if not made.returncode:
        yield tmp_path / "at"
    subprocess.run(["umount", "--lazy", "at", "upper"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    if made.returncode:
        pytest.skip(f"cannot be mounted here: {made.stderr}")


def test_on_btrfs_and_overlays_the_right_holder_is_named_or_none(mounted_at: Path) -> None:
    tree, other = mounted_at / "tree", mounted_at / "other"
    lock_dir = tree / "locks"
    lock = source_tree_lock(tree, lock_dir=lock_dir)
    environ = {"SOURCE_TREE_LOCK_DIR": str(lock_dir)}
    # Two subvolumes of btrfs have one inode number.
    assert (tree.stat().st_ino == other.stat().st_ino) == (tree.stat().st_ino == 256)
    with held_elsewhere(other, environ=environ):
        assert (lock.locked(), lock.holder()) == (False, None)
    with held_elsewhere(tree, environ=environ) as child:
        assert lock.locked()
        assert (holder := lock.holder()) is not None
        assert (holder.pid, holder.host) == (child.pid, HOST)
        assert not lock.acquire(blocking=False)
        child.kill()  # and leaves its record behind
        assert (lock.locked(), lock.holder()) == (False, None)
    # One that becomes another program leaves its record, and its pid lives.
    become = "import os; os.execvp('sh', ['sh', '-c', 'echo other; read line'])"
    with Child(HOLD.replace("heard()", become), tree, environ=environ) as child:
        child.expect("held")
        child.expect("other")
        assert record_of(lock.lock_file)["pid"] == child.pid
        assert (lock.locked(), lock.holder()) == (False, None)
        with flock_1(lock.lock_file) as pid:
            assert lock.locked()
            assert lock.holder() in (None, Holder(pid, "flock", HOST, user=USER))
