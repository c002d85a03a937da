"""Who holds a tree: the right one or nobody, whatever a lock file says."""

from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import (
    FLOCK,
    HOLD,
    PRELUDE,
    Child,
    held_elsewhere,
    unshared,
)

from source_tree_lock import Holder, LockUnavailable, _kernel_lock, _proc, source_tree_lock

from .crowd import (
    WAIT,
    a_record,
    awaited_holder,
    flock_1,
    linux_only,
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
    script.write_text(f"#!{sys.executable}\n{PRELUDE}{textwrap.dedent(FLOCK)}")
    script.chmod(0o755)
    lock_file = source_tree_lock(tree).lock_file
    lock_file.touch()
    with Child(BECOMES, script, lock_file) as child:
        child.expect("locked")
        name = "__31ma-name-of-more-than-15-letters"
        assert awaited_holder(tree) == Holder(child.pid, name, HOST, user=USER)


@pytest.mark.parametrize("script", [HOLD, FLOCK], ids=["with a record", "without"])
def test_a_stopped_holder_is_told_as_such(script: str, tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    lock_file.touch()
    with Child(script, tree if script == HOLD else lock_file) as child:
        child.line()
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
    script = "import os; os.execvp('sh', ['sh', '-c', sys.argv[2], sys.argv[1]])"
    with Child(script, lock.lock_file, 'exec 9>"$0"; flock 9; echo held; read line') as shell:
        shell.expect("held")
        assert lock.locked()
        assert awaited_holder(tree) is None


def test_nobody_is_named_when_nobody_holds(tree: Path) -> None:
    lock = source_tree_lock(tree)
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
    script = FLOCK.replace("O_RDONLY", "O_RDWR").replace("fcntl.flock(", "fcntl.lockf(")
    with Child(script, lock.lock_file) as child:
        child.expect("locked")
        assert (lock.locked(), lock.holder()) == (False, None)
        with source_tree_lock(tree, timeout=0):
            pass


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
1: POSIX  ADVISORY  WRITE 11 fe:00:1 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:01:1 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:11 0 EOF
4: OFDLCK ADVISORY  WRITE -1 fe:00:1 0 EOF
5: FLOCK  ADVISORY  WRITE 0 fe:00:2 0 EOF
6: FLOCK  ADVISORY  WRITE 14 fe:00:3 0 EOF
6: -> FLOCK  ADVISORY  WRITE 15 fe:00:3 0 EOF
7: -> FLOCK  ADVISORY  WRITE 16 fe:00:4 0 EOF
8: FLOCK  ADVISORY  READ 17 fe:00:5 0 EOF
9: FLOCK  MANDATORY READ 18 103:100000:18446744073709551615 0 EOF
10: LEASE  ACTIVE    WRITE 19 fe:00:6 0 EOF
"""
#: The holders in it, by device and inode.
HOLDERS = {
    (0xFE, 0, 1): None,  # locks of another kind, device or inode
    (0xFE, 0, 2): None,  # a holder of another pid namespace
    (0xFE, 0, 3): 14,  # not the one that waits
    (0xFE, 0, 4): None,  # only waiting
    (0xFE, 0, 5): 17,  # shared
    (0x103, 0x100000, 2**64 - 1): 18,  # large numbers
    (0xFE, 0, 6): None,  # a lease
}


def test_the_kernels_list_is_read_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("locks").write_text(LOCKS)
    monkeypatch.setattr(_proc, "PROC", str(tmp_path))
    keys = [(os.makedev(*device), inode) for *device, inode in HOLDERS]
    assert _proc.kernel_holders(*keys) == list(HOLDERS.values())


# Where the kernel's list does not tell


@root_only
def test_a_holder_of_another_pid_namespace_is_named_as_such(tree: Path) -> None:
    other_pids = unshared("--pid", "--fork", "--kill-child", "--mount-proc")
    with Child(HOLD, tree, prefix=other_pids) as child:
        child.expect("held")
        inside = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().strip()
        assert record_of(source_tree_lock(tree).lock_file)["pid"] == 1
        holder = awaited_holder(tree)
        assert holder is not None
        assert holder.pid == int(inside)
    with held_elsewhere(tree) as outside, Child(WAIT, tree, prefix=other_pids) as child:
        assert f"(pid {outside.pid}, in another container)" in child.line()


@root_only
def test_a_holder_of_another_user_is_named_as_such(tree: Path) -> None:
    becomes = """
    os.set_inheritable(descriptor, True)
    command = "setpriv --reuid 65534 --clear-groups sh -c".split()
    os.execvp(command[0], [*command, "echo other; read word"])
    """
    lock_file = source_tree_lock(tree).lock_file
    lock_file.touch()
    with Child(FLOCK + becomes, lock_file) as child:
        child.expect("locked")
        child.say()
        child.expect("other")
        assert awaited_holder(tree) == Holder(child.pid, "sh", HOST, user="nobody")
