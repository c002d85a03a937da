"""Who holds a tree: the right one or nobody, whatever a lock file says."""

from __future__ import annotations

import errno
import json
import os
import re
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
    uv_build,
    wait_until,
    wait_until_blocked,
    write_project,
)

from source_tree_lock import Holder, LockUnavailable, _kernel_lock, source_tree_lock
from source_tree_lock._holder import find, proc_locks, processes
from source_tree_lock._holder.processes import host

from .crowd import (
    BARE,
    WAIT,
    a_record,
    flock_1,
    in_another_pid_namespace,
    linux_only,
    on_btrfs,
    on_host,
    on_overlay,
    put,
    record_of,
    root_only,
    whom_a_wait_is_for,
)


@linux_only
def test_a_python_holder_is_named_by_pid_program_host_and_start(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "build-all.py"
    script.write_text(PRELUDE + textwrap.dedent(HOLD))
    before = time.time()
    # It becomes the script by exec(2), and so keeps the pipes and the pid.
    become = "import os; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    with Child(become, script, tree, "--password=SECRET") as child:
        child.expect("held")
        after = time.time()
        holder = whom_a_wait_is_for(tree)
        assert holder is not None
        assert (holder.pid, holder.program, holder.host) == (child.pid, "build-all.py", host())
        assert holder.since is not None
        assert before - 0.01 <= holder.since <= after + 0.01
        assert b"SECRET" not in source_tree_lock(tree).lock_file.read_bytes()


@linux_only
def test_a_real_uv_build_is_named(tree: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    inside = tmp_path / "inside"
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
        holder = whom_a_wait_is_for(tree)
        assert holder == Holder(process.pid, "uv", host())
        with open(go, "w"):
            pass
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait(LIMIT)


@linux_only
@pytest.mark.parametrize("mode", ["--exclusive", "--shared"])
def test_flock_1_is_named(tree: Path, mode: str) -> None:
    with flock_1(source_tree_lock(tree).lock_file, mode) as process:
        assert whom_a_wait_is_for(tree) == Holder(process.pid, "flock", host())


@linux_only
def test_a_holder_in_another_thread_of_this_process_is_named(tree: Path) -> None:
    with held_by_thread(tree):
        holder = whom_a_wait_is_for(tree)
        assert holder is not None
        assert (holder.pid, holder.program) == (os.getpid(), processes.program())


@linux_only
def test_a_holder_with_another_lock_directory_is_named(tree: Path, tmp_path: Path) -> None:
    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}) as child:
        holder = whom_a_wait_is_for(tree)
        assert holder is not None
        assert holder.pid == child.pid


@linux_only
def test_who_waits_for_the_tree_with_the_lock_file_taken_is_not_the_holder(
    tree: Path, tmp_path: Path
) -> None:
    wait = HOLD  # the same, but it does not get so far
    with (
        held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}) as child,
        Child(wait, tree) as late,
    ):
        wait_until_blocked(late.pid)
        assert not is_free(source_tree_lock(tree).lock_file)
        holder = whom_a_wait_is_for(tree)
        assert holder is not None
        assert holder.pid == child.pid
        child.say()
        late.expect("held")


@linux_only
def test_who_left_its_lock_to_a_child_is_not_named_and_nobody_else_is(tree: Path) -> None:
    # flock(1) itself, which the kernel names, has ended by then.
    lock = source_tree_lock(tree)
    with subprocess.Popen(
        ["sh", "-c", 'exec 9>"$0"; flock 9; echo; read line', str(lock.lock_file)],
        stdin=PIPE,
        stdout=PIPE,
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"\n"
        try:
            assert lock.is_held()
            assert whom_a_wait_is_for(tree) is None
        finally:
            shell.kill()


@root_only
def test_another_users_process_is_named_though_it_cannot_be_looked_into(tree: Path) -> None:
    # Without this capability root may not look into a process that has it.
    blind = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace")
    look = """
        import os
        from source_tree_lock import source_tree_lock
        try:
            os.listdir(f"/proc/{sys.argv[2]}/fdinfo")
        except PermissionError:
            holder = source_tree_lock(sys.argv[1]).holder()
            tell(holder and holder.pid)
    """
    with held_elsewhere(tree) as child, Child(look, tree, child.pid, prefix=blind) as looking:
        looking.expect(str(child.pid))


@linux_only
def test_nobody_is_named_when_nobody_holds(tree: Path) -> None:
    lock = source_tree_lock(tree)
    assert lock.holder() is None
    with lock:
        pass
    assert lock.holder() is None


@linux_only
def test_a_holder_that_became_another_program_is_not_named(tree: Path) -> None:
    # Its record stays, and its pid lives.
    become = """
        import os
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        lock.acquire()
        os.execvp("sh", ["sh", "-c", "echo other; read line"])
    """
    with Child(become, tree) as child:
        child.expect("other")
        lock = source_tree_lock(tree)
        assert record_of(lock.lock_file)["pid"] == child.pid
        assert lock.holder() is None
        with flock_1(lock.lock_file) as process:
            assert whom_a_wait_is_for(tree) == Holder(process.pid, "flock", host())


@linux_only
def test_of_a_program_name_that_a_terminal_would_obey_only_letters_are_told(tree: Path) -> None:
    rename = 'open("/proc/self/comm", "w").write("\\033[31mred")\n    '
    with Child(f"\n    {rename}{BARE}", source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        holder = whom_a_wait_is_for(tree)
        assert holder == Holder(child.pid, "__31mred", host())
        assert str(holder) == f"__31mred (pid {child.pid})"


@linux_only
def test_a_posix_lock_on_the_lock_file_is_not_taken_for_a_hold(tree: Path) -> None:
    script = BARE.replace("fcntl.flock(", "fcntl.lockf(")
    with Child(script, source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        assert source_tree_lock(tree).holder() is None
        with source_tree_lock(tree, timeout=0):
            pass


@linux_only
def test_who_may_not_see_the_lock_file_is_told_of_the_tree_and_that_it_cannot_tell(
    tree: Path, temp_dir: Path
) -> None:
    script = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        try:
            lock.is_held()
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


@linux_only
def test_a_tree_that_knows_no_locks_is_held_by_nobody_and_one_that_cannot_tell_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = source_tree_lock(tree)
    with lock:
        pass
    errors = iter([errno.EOPNOTSUPP, errno.EOPNOTSUPP, errno.ENOLCK])

    def refuse(_: object) -> bool:
        raise OSError(code := next(errors), os.strerror(code))

    monkeypatch.setattr(find, "_names_all", lambda _: False)  # so that it has to be tried
    monkeypatch.setattr(_kernel_lock.KernelLock, "try_lock", refuse)
    assert not lock.is_held()
    with pytest.raises(LockUnavailable, match="cannot tell") as caught:
        lock.is_held()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOLCK, str(lock.lock_file))


# Where the kernel's list does not tell


@root_only
def test_a_holder_outside_of_the_pid_namespace_is_named_as_such(tree: Path) -> None:
    with held_elsewhere(tree) as holder, in_another_pid_namespace(WAIT, tree) as child:
        who = rf"python\S* \(pid {holder.pid} of another container or host\)"
        line = child.line()
        wait = rf"INFO waiting (\d+ s )?for {who} to leave {re.escape(str(tree))}"
        assert re.fullmatch(wait, line), line
        holder.say()
        assert child.line().startswith("for python")
        child.expect("entered")


@root_only
def test_a_pid_of_another_namespace_is_never_taken_for_an_ancestors(tree: Path) -> None:
    # In its own namespace, the child is process 1 and has a child that waits.
    lock_file = source_tree_lock(tree).lock_file
    wait = f"""
        import subprocess
        subprocess.run([sys.executable, "-c", {PRELUDE + textwrap.dedent(WAIT)!r}, sys.argv[1]])
    """
    with flock_1(lock_file):
        put(lock_file, a_record(pid=1))
        with in_another_pid_namespace(wait, tree) as child:
            line = child.line()
            assert line.startswith("INFO "), line
            assert "pid 1 of another container or host" in line
            assert child.line().startswith("for ")  # and no WARNING before


@root_only
def test_a_holder_inside_of_a_pid_namespace_has_its_pid_of_this_one(tree: Path) -> None:
    with in_another_pid_namespace(HOLD, tree) as child:
        child.expect("held")
        inside = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().strip()
        assert record_of(source_tree_lock(tree).lock_file)["pid"] == 1
        holder = whom_a_wait_is_for(tree)
        assert holder is not None
        assert holder.pid == int(inside)
        child.say()
        child.expect("released")


@root_only
def test_another_host_is_named_where_the_kernel_does_not_know(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    put(lock_file, a_record(host="node7.example", pid=4711))
    look = """
        from source_tree_lock import source_tree_lock
        tell(str(source_tree_lock(sys.argv[1]).holder()).split(" for ")[0])
    """
    with in_another_pid_namespace(look, tree) as child:
        child.expect("build (pid 4711) on node7.example")


#: Tries a tree for a moment. Arguments: the tree; what another process handed over, or nothing.
ENTER = """
    import logging, os, sys
    from source_tree_lock import LockTimeout, source_tree_lock
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s: %(message)s")
    if sys.argv[2:]:
        os.environ["SOURCE_TREE_LOCK_HELD"] = sys.argv[2]
    try:
        with source_tree_lock(sys.argv[1], timeout=0.2):
            tell("inside")
    except LockTimeout as error:
        tell(repr(error.holder))
        tell(error)
"""


#: Holds a tree, and tells what hands the hold over.
HAND_OVER = """
    import sys
    from source_tree_lock import source_tree_lock
    with source_tree_lock(sys.argv[1]) as lock:
        tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
        heard()
"""


@root_only
def test_a_holder_on_another_host_is_named_with_it_and_not_taken_for_a_process_here(
    tree: Path,
) -> None:
    # Each is process 1 on its host: a stranger to itself, and the ancestor of nobody here.
    with on_host("node1", HOLD, tree) as holder:
        holder.expect("held")
        with on_host("node2", ENTER, tree) as waiter:
            told = waiter.line()
            assert told.startswith("Holder(pid=1, program='")
            assert ", host='node1', since=" in told
            assert "(pid 1) on node1 for " in waiter.line()


@root_only
def test_a_hold_is_not_handed_to_a_process_under_another_kernel(tree: Path) -> None:
    with on_host("node1", HAND_OVER, tree) as holder:
        handed_over = holder.line()
        lock_file = source_tree_lock(tree).lock_file
        put(lock_file, json.dumps({**record_of(lock_file), "boot": "another"}).encode())
        with on_host("node2", ENTER, tree, handed_over) as child:
            assert "host='node1'" in child.line()


class Mounted:
    """A file system of a kind, with a tree and a lock directory on it."""

    def __init__(self, root: Path) -> None:
        self.tree = root / "tree"
        self.lock_dir = root / "locks"
        for directory in (self.tree, self.lock_dir):
            directory.mkdir(exist_ok=True)

    def lock_file(self) -> Path:
        return source_tree_lock(self.tree, lock_dir=self.lock_dir).lock_file


@pytest.fixture(params=["btrfs", "overlay", "mixed overlay", "mixed overlay, xino"])
def other_device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """File systems where stat(2) may tell another device than /proc/locks."""
    if sys.platform != "linux" or os.geteuid() != 0:
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
        yield Mounted(root)


def test_on_btrfs_and_overlays_the_right_one_is_named_or_none(other_device: Mounted) -> None:
    lock = source_tree_lock(other_device.tree, lock_dir=other_device.lock_dir)
    environ = {"SOURCE_TREE_LOCK_DIR": str(other_device.lock_dir)}
    assert (lock.is_held(), lock.holder()) == (False, None)
    with held_elsewhere(other_device.tree, environ=environ) as child:
        holder = lock.holder()
        assert lock.is_held()
        assert holder is not None
        assert (holder.pid, holder.host) == (child.pid, host())
        assert not lock.acquire(blocking=False)
        child.kill()  # and leaves its record behind
        assert (lock.is_held(), lock.holder()) == (False, None)
    with flock_1(lock.lock_file) as process:
        assert lock.is_held()
        assert lock.holder() in (None, Holder(process.pid, "flock", host()))


def test_on_btrfs_and_overlays_the_record_of_who_let_go_without_a_word_names_nobody(
    other_device: Mounted,
) -> None:
    become = """
        import os
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1], lock_dir=sys.argv[2])
        lock.acquire()
        os.execvp("sh", ["sh", "-c", "echo other; read line"])
    """
    with Child(become, other_device.tree, other_device.lock_dir) as child:
        child.expect("other")
        lock_file = other_device.lock_file()
        assert record_of(lock_file)["pid"] == child.pid
        lock = source_tree_lock(other_device.tree, lock_dir=other_device.lock_dir)
        assert (lock.is_held(), lock.holder()) == (False, None)
        with flock_1(lock_file) as process:
            assert lock.holder() in (None, Holder(process.pid, "flock", host()))


@root_only
def test_on_btrfs_the_same_inode_of_another_subvolume_is_a_strangers(tmp_path: Path) -> None:
    with on_btrfs(tmp_path) as root:
        here, there = (Mounted(each).tree for each in (root, root.parent / "other"))
        assert os.stat(here).st_ino == os.stat(there).st_ino
        with held_elsewhere(there):
            lock = source_tree_lock(here)
            assert (lock.is_held(), lock.holder()) == (False, None)


@root_only
def test_on_a_mixed_overlay_a_file_with_the_number_of_a_directory_is_a_strangers(
    tmp_path: Path,
) -> None:
    # There the inode of a file is that of its layer, and that of a directory is the overlay's.
    with on_overlay(tmp_path, ",xino=off", mixed=True) as root:
        files = [root / f"file{number}" for number in range(40)]
        trees = [root / f"tree{number}" for number in range(40)]
        for path in files:
            path.touch()
        for path in trees:
            path.mkdir()
        hold_all = """
            import fcntl
            files = [open(name, "a") for name in sys.argv[1:]]
            for file in files:
                fcntl.flock(file, fcntl.LOCK_EX)
            tell("held")
            heard()
        """
        with Child(hold_all, *files) as child:
            child.expect("held")
            inodes = {path: (os.stat(path).st_dev, os.stat(path).st_ino) for path in trees}
            taken_for = [
                path for path in trees if proc_locks.kernel_holder(inodes[path]) == child.pid
            ]
            if not taken_for:
                pytest.skip("no two of them have the same number here")
            for path in taken_for:
                lock = source_tree_lock(path)
                assert (lock.is_held(), lock.holder()) == (False, None)
