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
    held_by_thread,
    held_elsewhere,
    is_free,
    unshared,
    uv_build,
    wait_until,
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
    put,
    record_of,
    root_only,
)

pytestmark = linux_only
HOST = os.uname().nodename if sys.platform == "linux" else ""
USER = _proc.user_of(os.getpid())


def test_a_python_holder_is_named_by_pid_program_host_user_and_start(
    tree: Path, tmp_path: Path
) -> None:
    script = tmp_path / "build-all-of-it.py"  # longer than the kernel's 15 letters
    script.write_text(PRELUDE + textwrap.dedent(HOLD))
    before = time.time()
    # It becomes the script by exec(2), and so keeps the pipes and the pid.
    become = "import os; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    with Child(become, script, tree, "--password=SECRET") as child:
        child.expect("held")
        after = time.time()
        holder = awaited_holder(tree)
        assert holder is not None
        assert holder.since is not None
        assert before - 0.01 <= holder.since <= after + 0.01
        assert holder == Holder(child.pid, "build-all-of-it.py", HOST, holder.since, USER)
        assert b"SECRET" not in source_tree_lock(tree).lock_file.read_bytes()


@pytest.mark.parametrize("way", ["--exclusive", "--shared", "a script of a long name"])
def test_a_holder_that_leaves_no_record_is_named(way: str, tree: Path, tmp_path: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    if way.startswith("--"):
        with flock_1(lock_file, way) as pid:
            assert awaited_holder(tree) == Holder(pid, "flock", HOST, user=USER)
        return
    script = tmp_path / "a-name-of-more-than-15-letters"
    script.write_text(f"#!{sys.executable}\n{PRELUDE}{textwrap.dedent(BARE)}")
    script.chmod(0o755)
    become = "import os; os.execv(sys.argv[1], sys.argv[1:])"
    with Child(become, script, lock_file) as child:
        child.expect("held")
        assert awaited_holder(tree) == Holder(child.pid, script.name, HOST, user=USER)


def test_a_real_uv_build_is_named(tree: Path, tmp_path: Path) -> None:
    go, inside = tmp_path / "go", tmp_path / "inside"
    os.mkfifo(go)
    # Opening the pipe waits for the test. A hook that is run twice waits once.
    setup = f"""
        import os, sys
        if "bdist_wheel" in sys.argv and not os.path.exists({str(inside)!r}):
            open({str(inside)!r}, "w").close()
            open({str(go)!r}).close()
    """
    write_project(tree, setup)
    process = uv_build(tree)
    try:
        wait_until(inside.exists)
        assert awaited_holder(tree) == Holder(process.pid, "uv", HOST, user=USER)
        with open(go, "w"):
            pass
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait(LIMIT)


def test_a_holder_in_another_thread_of_this_process_is_named(tree: Path) -> None:
    with held_by_thread(tree):
        holder = awaited_holder(tree)
        assert holder is not None
        assert holder.pid == os.getpid()


def test_of_two_holders_the_one_of_the_tree_is_named(tree: Path, tmp_path: Path) -> None:
    """The other one has the lock file, and waits for the tree."""
    holding = held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)})
    with holding as child, Child(HOLD, tree) as late:
        wait_until_blocked(late.pid)
        assert not is_free(source_tree_lock(tree).lock_file)
        holder = awaited_holder(tree)
        assert holder is not None
        assert holder.pid == child.pid
        child.say()
        late.expect("held")


@pytest.mark.parametrize("has_record", [True, False])
def test_a_stopped_holder_is_told_as_such(has_record: bool, tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    script, argument = (HOLD, tree) if has_record else (BARE, lock_file)
    with Child(script, argument) as child:
        child.expect("held")
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        holder = awaited_holder(tree)
        assert holder is not None
        assert (holder.pid, holder.is_stopped) == (child.pid, True)
        os.kill(child.pid, signal.SIGCONT)
        os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        holder = awaited_holder(tree)
        assert holder is not None
        assert not holder.is_stopped


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


@pytest.mark.parametrize("is_running", [False, True])
def test_the_record_of_another_process_than_the_holder_is_not_believed(
    is_running: bool, tree: Path
) -> None:
    lock_file = source_tree_lock(tree).lock_file
    with Child("tell('here')\nheard()") as child, flock_1(lock_file) as pid:
        child.expect("here")
        if not is_running:
            child.kill()
        put(lock_file, a_record(pid=child.pid))
        assert awaited_holder(tree) == Holder(pid, "flock", HOST, user=USER)


def test_of_a_program_name_that_a_terminal_would_obey_only_letters_are_told(tree: Path) -> None:
    rename = 'open("/proc/self/comm", "w").write("\\033[31mred")\n    '
    with Child(f"\n    {rename}{BARE}", source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        assert awaited_holder(tree) == Holder(child.pid, "__31mred", HOST, user=USER)


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
    errors = iter([errno.EOPNOTSUPP, errno.EOPNOTSUPP, errno.ENOLCK])

    def refuse(_: object) -> bool:
        raise OSError(code := next(errors), os.strerror(code))

    monkeypatch.setattr(_kernel_lock.KernelLock, "try_lock", refuse)
    assert not lock.locked()
    with pytest.raises(LockUnavailable, match="cannot determine") as caught:
        lock.locked()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOLCK, str(lock.lock_file))


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
            put(lock_file, a_record(pid=1))
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
