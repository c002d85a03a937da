"""Who holds a tree: the right one or nobody, whatever a lock file says, and it stops no one."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    stop_for_good,
    uv_build,
    wait_until,
    wait_until_blocked,
    write_project,
)

from source_tree_lock import (
    Holder,
    LockTimeout,
    LockUnavailable,
    _kernel,
    _process,
    _record,
    _who_holds,
    source_tree_lock,
)
from source_tree_lock._record import RECORD_START

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
root_only = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts and namespaces, as root"
)

#: Holds the lock file itself, by a bare flock(2), and tells it. Arguments: the lock file.
BARE = """
    import fcntl
    file = open(sys.argv[1], "a")
    fcntl.flock(file, fcntl.LOCK_EX)
    tell("held")
    heard()
"""

#: Waits for a tree and tells whom for, after what is logged. Arguments: the tree.
WAIT = """
    import logging
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
    with source_tree_lock(sys.argv[1], on_wait=lambda holder: tell("for", holder)):
        tell("entered")
"""


def host() -> str:
    return _process.host()


def whom_a_wait_is_for(tree: Path) -> Holder | None:
    """Whom a waiting process names: in `on_wait`, in the error and when it looks."""
    named: list[Holder | None] = []
    timeout = 0.02
    while not named:  # on a loaded machine, the first attempt alone takes longer
        with (
            pytest.raises(LockTimeout) as caught,
            source_tree_lock(tree, timeout=timeout, on_wait=named.append),
        ):
            pass
        timeout *= 2
    assert named == [caught.value.holder]
    looked = source_tree_lock(tree).holder()
    assert looked == named[0]
    return looked


@contextmanager
def flock_1(lock_file: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """flock(1) holds a file until the end of the block."""
    lock_file.touch()
    with subprocess.Popen(
        ["flock", *options, str(lock_file), "sh", "-c", "echo; exec cat"],
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            stop_for_good(process)


def record_of(lock_file: Path) -> dict[str, object]:
    """What the lock file says."""
    found = json.loads(lock_file.read_bytes()[RECORD_START:])
    assert isinstance(found, dict)
    return found


def put(lock_file: Path, record: bytes) -> None:
    """Have the lock file say anything."""
    with open(lock_file, "r+b" if lock_file.exists() else "w+b") as file:
        file.seek(RECORD_START)
        file.truncate()
        file.write(record)


def a_record(**changes: object) -> bytes:
    """The record of this very process, but for some changes."""
    fields = {
        "pid": os.getpid(),
        "host": host(),
        "program": "build",
        "pid_namespace": _process.pid_namespace(),
        "since": time.time(),
        "token": "ab" * 16,
        **changes,
    }
    return json.dumps({name: value for name, value in fields.items() if value != "absent"}).encode()


# The right one


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
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with source_tree_lock(tree):
            held.set()
            done.wait(LIMIT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(LIMIT)
        holder = whom_a_wait_is_for(tree)
        assert holder is not None
        assert (holder.pid, holder.program) == (os.getpid(), _process.program())
    finally:
        done.set()
        thread.join()


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
def test_a_shell_that_locked_its_own_descriptor_is_named(tree: Path) -> None:
    # flock(1) itself, which the kernel names, has ended by then.
    lock_file = source_tree_lock(tree).lock_file
    with subprocess.Popen(
        ["sh", "-c", 'exec 9>"$0"; flock 9; echo; read line', str(lock_file)],
        stdin=PIPE,
        stdout=PIPE,
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"\n"
        try:
            assert whom_a_wait_is_for(tree) == Holder(shell.pid, "sh", host())
        finally:
            shell.kill()


@linux_only
def test_a_child_that_outlives_the_holder_is_named(tree: Path) -> None:
    orphan = """
        import fcntl, os, subprocess
        file = open(sys.argv[1], "a")
        fcntl.flock(file, fcntl.LOCK_EX)
        tell("held")
        heard()
        child = subprocess.Popen(["cat"], pass_fds=[file.fileno()], stdin=subprocess.PIPE)
        tell(child.pid)
        heard()
        os.kill(os.getpid(), 9)
    """
    with Child(orphan, source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        # Then the pipe is the test's as well, and ends the child.
        child.say()
        pid = int(child.line())
        pipe = os.open(f"/proc/{child.pid}/fd/{_the_pipe_to(child.pid, pid)}", os.O_WRONLY)
        try:
            child.say()
            assert child.process.wait(LIMIT) == -signal.SIGKILL
            assert whom_a_wait_is_for(tree) == Holder(pid, "cat", host())
        finally:
            os.close(pipe)


def _the_pipe_to(pid: int, child: int) -> str:
    """The descriptor of a process that leads to the standard input of its child."""
    wanted = os.readlink(f"/proc/{child}/fd/0")
    descriptors = os.listdir(f"/proc/{pid}/fd")
    return next(each for each in descriptors if os.readlink(f"/proc/{pid}/fd/{each}") == wanted)


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
        source_tree_lock(sys.argv[1]).acquire()
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
def test_a_program_name_that_a_terminal_would_obey_is_not_told(tree: Path) -> None:
    rename = 'open("/proc/self/comm", "w").write("\\033[31mred")\n    '
    with Child(f"\n    {rename}{BARE}", source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        holder = whom_a_wait_is_for(tree)
        assert holder == Holder(child.pid, None, host())
        assert str(holder) == f"pid {child.pid}"


@linux_only
def test_a_posix_lock_on_the_lock_file_is_not_taken_for_a_hold(tree: Path) -> None:
    script = BARE.replace("fcntl.flock(", "fcntl.lockf(")
    with Child(script, source_tree_lock(tree).lock_file) as child:
        child.expect("held")
        assert source_tree_lock(tree).holder() is None
        with source_tree_lock(tree, timeout=0):
            pass


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


@linux_only
@pytest.mark.parametrize(
    ("device", "inode", "pid"),
    [
        pytest.param((0xFE, 0), 4711, None, id="locks of another kind, device or inode"),
        pytest.param((0xFE, 0), 4712, None, id="a holder of another pid namespace"),
        pytest.param((0xFE, 0), 4713, 14, id="not one that waits"),
        pytest.param((0xFE, 0), 4714, None, id="only waiting"),
        pytest.param((0xFE, 0), 4715, 17, id="shared"),
        pytest.param((0x103, 0x100000), 2**64 - 1, 18, id="large numbers"),
        pytest.param((0xFE, 0), 4716, None, id="a lease"),
    ],
)
def test_the_kernels_list_is_read_exactly(
    device: tuple[int, int], inode: int, pid: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_open(path: str, mode: str) -> io.BytesIO:
        assert (path, mode) == ("/proc/locks", "rb")
        return io.BytesIO(LOCKS.encode())

    monkeypatch.setattr(_who_holds, "open", fake_open, raising=False)
    assert _who_holds.kernel_holder((os.makedev(*device), inode)) == pid


@linux_only
def test_a_lock_that_a_look_at_a_changing_list_overlooks_is_found_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = LOCKS.splitlines(keepends=True)
    looks = iter(["".join(lines[:count]) for count in (5, 4, 6)])
    monkeypatch.setattr(
        _who_holds, "open", lambda *_: io.BytesIO(next(looks).encode()), raising=False
    )
    assert _who_holds.kernel_holder((os.makedev(0xFE, 0), 4713)) == 14


# Nothing in a lock file is trusted


def read(lock_file: Path, record: bytes) -> _record.Record | None:
    put(lock_file, record)
    return _record.read_record(str(lock_file))


def test_a_well_formed_record_is_read(tmp_path: Path) -> None:
    record = read(tmp_path / "a.lock", a_record(pid=4711, program="bäcker", since=12.5))
    assert record is not None
    assert record.holder == Holder(4711, "bäcker", host(), 12.5)
    assert (record.token, record.pid_namespace) == ("ab" * 16, _process.pid_namespace())


BAD_VALUES: list[tuple[str, object]] = [
    ("pid", "absent"),
    ("pid", 0),
    ("pid", -1),
    ("pid", 2**31),
    ("pid", 10**400),
    ("pid", 4711.0),
    ("pid", True),
    ("pid", "4711"),
    ("pid", None),
    ("pid", float("nan")),
    ("pid", [4711]),
    ("since", "absent"),
    ("since", float("nan")),
    ("since", float("inf")),
    ("since", float("-inf")),
    ("since", -1.0),
    ("since", 1e300),
    ("since", True),
    ("since", "yesterday"),
    ("pid_namespace", "absent"),
    ("pid_namespace", -1),
    ("pid_namespace", 2**65),
    ("pid_namespace", 1.5),
    ("pid_namespace", False),
    ("program", "absent"),
    ("program", ""),
    ("program", 7),
    ("program", None),
    ("program", "x" * 256),
    ("program", "two\nlines"),
    ("program", "\033[31mred"),
    ("program", "\x9b31mred"),
    ("program", "over\rwritten"),
    ("program", "nul\0"),
    ("program", "\u202egnp.exe"),
    ("program", "\ud800"),
    ("program", ["build"]),
    ("host", "absent"),
    ("host", ""),
    ("host", {}),
    ("host", "\033]0;title\007"),
    ("host", "x" * 256),
    ("token", "absent"),
    ("token", ""),
    ("token", 7),
    ("token", "\033c"),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD_VALUES, ids=[f"{name}-{value!r:.24}" for name, value in BAD_VALUES]
)
def test_a_record_with_a_value_that_makes_no_sense_is_none(
    name: str, value: object, tmp_path: Path
) -> None:
    assert read(tmp_path / "a.lock", a_record()) is not None
    assert read(tmp_path / "a.lock", a_record(**{name: value})) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\n" * 150, id="blank"),
        pytest.param(b"\0" * 150, id="zeros"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"4711", id="a number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"NaN", id="not a number"),
        pytest.param(b"[" * 4096, id="deep nesting"),
        pytest.param(b'{"a":' * 800, id="deep nesting of objects"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param('{"program": "Bäcker"}'.encode("latin-1"), id="not UTF-8"),
        pytest.param(b"\033[2J" * 100, id="terminal escapes"),
        pytest.param(a_record() + b"\n" + a_record(), id="two records"),
        pytest.param(a_record() + b"x" * 10, id="a tail"),
        pytest.param(a_record(more="y" * 4096), id="longer than a record is"),
        pytest.param(b"x" * 3_000_000, id="megabytes"),
    ],
)
def test_what_is_no_record_is_none(data: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "a.lock", data) is None


def test_no_more_than_a_record_is_read_of_a_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def spy(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return b""

    monkeypatch.setattr(os, "pread", spy)
    read(tmp_path / "a.lock", b"x" * 100_000)
    assert sizes == [4096]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "missing"])
def test_what_is_no_lock_file_has_no_record(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    if kind == "symlink":
        put(tmp_path / "target", a_record())
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert _record.read_record(str(path)) is None


@pytest.mark.skipif(os.name != "posix", reason="a Windows lock keeps a junk record from the test")
def test_junk_in_a_lock_file_keeps_nobody_from_locking_and_reaches_no_log(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    lock_file = source_tree_lock(tree).lock_file
    put(lock_file, b"\033[31mEVIL\033]0;\007" * 200_000)
    with flock_1(lock_file):
        holder = whom_a_wait_is_for(tree)
    assert "EVIL" not in caplog.text
    assert "\033" not in caplog.text + str(holder)
    with source_tree_lock(tree, timeout=LIMIT):
        # What is left of it behind the record would make the record junk.
        assert record_of(lock_file)["pid"] == os.getpid()


def test_the_record_of_a_process_that_lives_is_not_stale(tmp_path: Path) -> None:
    record = read(tmp_path / "a.lock", a_record())
    assert record is not None
    assert record.is_from_here()
    assert not record.is_stale()


def test_the_record_of_a_dead_process_is_stale(tmp_path: Path) -> None:
    with Child("") as child:
        pass
    record = read(tmp_path / "a.lock", a_record(pid=child.pid))
    assert record is not None
    assert record.is_stale()


@linux_only
def test_the_record_of_a_zombie_is_stale(tmp_path: Path) -> None:
    with Child("tell('here')") as child:
        child.expect("here")
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        record = read(tmp_path / "a.lock", a_record(pid=child.pid))
        assert record is not None
        assert record.is_stale()


@linux_only
def test_a_record_from_before_its_process_started_is_stale(tmp_path: Path) -> None:
    # The pid was given to another program since.
    record = read(tmp_path / "a.lock", a_record(since=time.time() - 7 * 24 * 3600))
    assert record is not None
    assert record.is_stale()


@pytest.mark.parametrize("change", ["host", "pid_namespace"])
def test_the_record_of_another_host_or_pid_namespace_is_never_stale(
    change: str, tmp_path: Path
) -> None:
    with Child("") as child:
        pass
    value = {"host": "elsewhere.example", "pid_namespace": 4711}[change]
    record = read(tmp_path / "a.lock", a_record(pid=child.pid, since=1.0, **{change: value}))
    assert record is not None
    assert not record.is_from_here()
    assert not record.is_stale()


# Where the kernel's list does not tell


@contextmanager
def in_another_pid_namespace(script: str, *arguments: object) -> Iterator[Child]:
    """A child that cannot see the processes of this namespace."""
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with Child(script, *arguments, prefix=prefix) as child:
        yield child


@root_only
def test_a_holder_outside_of_the_pid_namespace_is_named_as_such(tree: Path) -> None:
    with held_elsewhere(tree) as holder, in_another_pid_namespace(WAIT, tree) as child:
        expected = rf"INFO Waiting for source tree '{tree}', held by "
        expected += rf"python\S* \(pid {holder.pid} of another container or host\) for \d+ s\."
        line = child.line()
        assert re.fullmatch(expected, line), line
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


class Mounted:
    """A file system of a kind, with a tree and a lock directory on it."""

    def __init__(self, root: Path) -> None:
        self.tree = root / "tree"
        self.lock_dir = root / "locks"
        for directory in (self.tree, self.lock_dir):
            directory.mkdir(exist_ok=True)

    def lock_file(self) -> Path:
        return source_tree_lock(self.tree, lock_dir=self.lock_dir).lock_file


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    target = str(arguments[-1])
    if subprocess.run(["mount", *map(str, arguments)], stderr=PIPE).returncode != 0:
        pytest.skip(f"cannot mount {arguments}")
    try:
        yield
    finally:
        # What was killed may take a moment to let go of its files.
        wait_until(lambda: subprocess.run(["umount", target], stderr=PIPE).returncode == 0)


@contextmanager
def on_btrfs(directory: Path) -> Iterator[Path]:
    """The root of a subvolume, whose device number is another one than in /proc/locks."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("there is no mkfs.btrfs")
    image, root = directory / "image", directory / "btrfs"
    with open(image, "wb") as file:
        file.truncate(114 * 2**20)  # the least that it takes
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, stderr=PIPE)
    root.mkdir()
    with mounted("-o", "loop", image, root):
        for name in ("volume", "other"):
            command = ["btrfs", "subvolume", "create", str(root / name)]
            subprocess.run(command, check=True, stdout=PIPE)
        yield root / "volume"


@contextmanager
def on_overlay(directory: Path, options: str, *, mixed: bool) -> Iterator[Path]:
    """An overlay of one file system, or of two."""
    layers = {name: directory / name for name in ("lower", "upper", "merged")}
    for layer in layers.values():
        layer.mkdir()
    with ExitStack() as stack:
        if mixed:
            stack.enter_context(mounted("-t", "tmpfs", "tmpfs", layers["upper"]))
        upper, work = layers["upper"] / "upper", layers["upper"] / "work"
        upper.mkdir()
        work.mkdir()
        where = f"lowerdir={layers['lower']},upperdir={upper},workdir={work}{options}"
        merged = layers["merged"]
        stack.enter_context(mounted("-t", "overlay", "overlay", "-o", where, merged))
        yield merged


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
    assert (lock._is_held(), lock.holder()) == (False, None)
    with held_elsewhere(other_device.tree, environ=environ) as child:
        holder = lock.holder()
        assert lock._is_held()
        assert holder is not None
        assert (holder.pid, holder.host) == (child.pid, host())
        assert not lock.acquire(blocking=False)
        child.kill()  # and leaves its record behind
        assert (lock._is_held(), lock.holder()) == (False, None)
    with flock_1(lock.lock_file) as process:
        assert lock._is_held()
        assert lock.holder() == Holder(process.pid, "flock", host())


def test_on_btrfs_and_overlays_the_record_of_who_let_go_without_a_word_names_nobody(
    other_device: Mounted,
) -> None:
    become = """
        import os
        from source_tree_lock import source_tree_lock
        source_tree_lock(sys.argv[1], lock_dir=sys.argv[2]).acquire()
        os.execvp("sh", ["sh", "-c", "echo other; read line"])
    """
    with Child(become, other_device.tree, other_device.lock_dir) as child:
        child.expect("other")
        lock_file = other_device.lock_file()
        assert record_of(lock_file)["pid"] == child.pid
        lock = source_tree_lock(other_device.tree, lock_dir=other_device.lock_dir)
        assert (lock._is_held(), lock.holder()) == (False, None)
        with flock_1(lock_file) as process:
            assert lock.holder() == Holder(process.pid, "flock", host())


@root_only
def test_on_btrfs_the_same_inode_of_another_subvolume_is_a_strangers(tmp_path: Path) -> None:
    with on_btrfs(tmp_path) as root:
        here, there = (Mounted(each).tree for each in (root, root.parent / "other"))
        assert os.stat(here).st_ino == os.stat(there).st_ino
        with held_elsewhere(there):
            lock = source_tree_lock(here)
            assert (lock._is_held(), lock.holder()) == (False, None)


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
                path for path in trees if _who_holds.kernel_holder(inodes[path]) == child.pid
            ]
            if not taken_for:
                pytest.skip("no two of them have the same number here")
            for path in taken_for:
                lock = source_tree_lock(path)
                assert (lock._is_held(), lock.holder()) == (False, None)


@linux_only
def test_a_process_that_ends_while_it_is_looked_at_is_no_holder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listdir(path: str) -> list[str]:
        if path.endswith("/fd"):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), path)
        return listdir_(path)

    listdir_ = os.listdir
    lock = source_tree_lock(tree)
    with flock_1(lock.lock_file):
        monkeypatch.setattr(_who_holds, "kernel_holders", lambda *_: {})  # as elsewhere
        monkeypatch.setattr(_who_holds, "_names_all", lambda _: False)
        assert lock.holder() is not None
        monkeypatch.setattr(os, "listdir", listdir)
        assert lock.holder() is None


@linux_only
def test_who_is_in_at_last_is_found_where_others_get_in_and_out_all_the_time(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = itertools.count(2**30)  # above pid_max(5)
    lock = source_tree_lock(tree)
    with flock_1(lock.lock_file) as process:
        monkeypatch.setattr(
            _who_holds, "kernel_holders", lambda *inodes: {each: next(dead) for each in inodes}
        )
        holder = lock.holder()
        assert holder is not None
        assert holder.pid == process.pid


# The record is a courtesy


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

    monkeypatch.setattr(_who_holds, "_names_all", lambda _: False)  # so that it has to be tried
    monkeypatch.setattr(_kernel.KernelLock, "try_lock", refuse)
    assert not lock._is_held()
    with pytest.raises(LockUnavailable, match="cannot tell") as caught:
        lock._is_held()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOLCK, str(lock.lock_file))


@pytest.mark.skipif(os.name != "posix", reason="a held lock file is read as a whole")
def test_the_record_is_there_while_the_tree_is_held_and_blank_afterwards(tree: Path) -> None:
    lock = source_tree_lock(tree)
    with lock:
        record = record_of(lock.lock_file)
        assert (record["pid"], record["host"]) == (os.getpid(), host())
        assert record["program"] == _process.program()
    assert lock.lock_file.read_bytes().strip() == b""


@pytest.mark.skipif(os.name != "posix", reason="the command is a link")
@pytest.mark.parametrize(
    "way", ["script", "private", "private below", "module", "package", "hook", "code", "bare"]
)
def test_a_program_is_called_what_people_call_it(way: str, tree: Path, tmp_path: Path) -> None:
    code = f"""
from source_tree_lock import source_tree_lock
with source_tree_lock({str(tree)!r}) as lock:
    print(lock.lock_file.read_text())
"""
    (tmp_path / "builder").mkdir()
    (tmp_path / "builder" / "__main__.py").write_text(code)
    (tmp_path / "one_module.py").write_text(code)
    hooks = tmp_path / "frontend" / "vendored"
    hooks.mkdir(parents=True)
    for directory in (hooks.parent, hooks):
        directory.joinpath("__init__.py").touch()
    hooks.joinpath("_in_process.py").write_text(code)
    (tmp_path / "a script").write_text(code)
    (tmp_path / "_private").write_text(code)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "_private").write_text(code)
    if "private" in way:
        (tmp_path / "__init__.py").touch()  # a relative path ends here, and goes no further up
    arguments, expected = {
        "script": (["./a script", "secret"], "a script"),
        "private": (["_private", "secret"], "_private"),
        "private below": (["below/_private", "secret"], "_private"),
        "module": (["-m", "one_module", "secret"], "one_module.py"),
        "package": (["-m", "builder", "secret"], "builder"),
        "hook": (["frontend/vendored/_in_process.py", "secret"], "frontend"),
        "code": (["-c", code, "secret"], os.path.basename(sys.executable)),
        "bare": (["-"], os.path.basename(sys.executable)),
    }[way]
    told = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        input=code.encode(),
        stdout=PIPE,
        check=True,
        timeout=LIMIT,
    ).stdout
    assert json.loads(told)["program"] == expected
    assert b"secret" not in told


def held_without_a_record(tree: Path, lock_dir: Path, prefix: tuple[str, ...] = ()) -> None:
    """A process can hold the tree, and says at once that this cannot be handed over."""
    hold = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        with source_tree_lock(sys.argv[1], lock_dir=sys.argv[2]) as lock:
            tell("held")
            heard()
            try:
                lock.environ
            except LockUnavailable as error:
                tell(str(error))
            else:
                tell("handed over")
        tell("released")
    """
    lock = source_tree_lock(tree, lock_dir=lock_dir)
    with Child(hold, tree, lock_dir, prefix=prefix) as child:
        child.expect("held")
        assert not is_free(lock.lock_file)
        if sys.platform == "linux":
            holder = lock.holder()
            assert holder is not None
            assert holder.pid == child.pid
        child.say()
        assert "cannot be handed over" in child.line()
        child.expect("released")
        assert is_free(lock.lock_file)


@root_only
def test_a_full_disk_keeps_nobody_from_locking(tree: Path, tmp_path: Path) -> None:
    lock_dir = tmp_path / "full"
    lock_dir.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", lock_dir):
        (lock_dir / "filling").write_bytes(b"x" * 4096)
        with pytest.raises(OSError, match="No space left"):
            (lock_dir / "another").write_bytes(b"x")
        held_without_a_record(tree, lock_dir)
        assert source_tree_lock(tree, lock_dir=lock_dir).lock_file.stat().st_size == 0


@linux_only
def test_a_lock_file_that_may_only_be_read_keeps_nobody_from_locking(
    tree: Path, tmp_path: Path
) -> None:
    lock_file = source_tree_lock(tree, lock_dir=tmp_path).lock_file
    lock_file.write_bytes(b"of somebody else")
    lock_file.chmod(0o444)
    held_without_a_record(tree, tmp_path, WITHOUT_ROOTS_RIGHTS)
    assert lock_file.read_bytes() == b"of somebody else"


@pytest.mark.skipif(os.name != "posix", reason="hard links as POSIX has them")
def test_a_lock_file_with_another_name_keeps_nobody_from_locking_and_is_not_written_to(
    tree: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.write_bytes(b"of somebody else" * 20)
    os.link(private, source_tree_lock(tree, lock_dir=tmp_path).lock_file)
    held_without_a_record(tree, tmp_path)
    assert private.read_bytes() == b"of somebody else" * 20


# Telling


def a_waiting_thread(tree: Path, named: list[Holder | None]) -> threading.Thread:
    def wait() -> None:
        with source_tree_lock(tree, timeout=LIMIT, on_wait=named.append):
            pass

    return threading.Thread(target=wait)


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["for ever", "bounded"])
def test_a_wait_is_told_of_once(
    tree: Path, timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "source_tree_lock")
    named: list[Holder | None] = []
    with held_elsewhere(tree) as child:

        def let_go(holder: Holder | None) -> None:
            named.append(holder)
            child.say()

        with source_tree_lock(tree, timeout=timeout, on_wait=let_go):
            pass
    infos = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert len(named) == len(infos) == 1
    assert infos[0].name == "source_tree_lock"
    assert infos[0].levelno == logging.INFO
    text = infos[0].getMessage()
    assert repr(str(tree)) in text
    if os.name == "posix":
        assert named[0] is not None
        assert f"(pid {child.pid})" in text


def test_an_async_wait_is_told_of_once(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    named: list[Holder | None] = []

    async def enter(child: Child) -> None:
        def let_go(holder: Holder | None) -> None:
            named.append(holder)
            child.say()

        async with source_tree_lock(tree, on_wait=let_go):
            pass

    with held_elsewhere(tree) as child:
        asyncio.run(enter(child))
    assert len(named) == len(caplog.records) == 1


@linux_only
def test_a_wait_for_one_lock_after_the_other_is_told_of_once(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # First the lock file is in the way; when it is let go, the tree itself still is.
    caplog.set_level(logging.INFO, "source_tree_lock")
    named: list[Holder | None] = []
    lock_file = source_tree_lock(tree).lock_file
    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}) as child:
        with flock_1(lock_file):
            thread = a_waiting_thread(tree, named)
            thread.start()
            wait_until(lambda: bool(named))
        wait_until(lambda: _who_holds.kernel_holder(_inode(lock_file)) == os.getpid())
        child.say()
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert len(named) == len(caplog.records) == 1


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def test_nothing_is_told_when_the_tree_is_free(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    with (
        source_tree_lock(tree, on_wait=lambda _: pytest.fail("nobody is in the way")),
        source_tree_lock(tree, on_wait=lambda _: pytest.fail("it is ours")),
    ):
        pass
    assert not caplog.records


def test_one_attempt_is_no_wait(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    with held_elsewhere(tree):
        lock = source_tree_lock(tree, on_wait=lambda _: pytest.fail("nobody waits"))
        assert not lock.acquire(blocking=False)
    assert not caplog.records


@linux_only
def test_a_timeout_says_which_tree_how_long_and_who_held_it(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree)
    with held_elsewhere(tree) as child:
        started = time.monotonic()
        with (
            pytest.raises(LockTimeout) as caught,
            source_tree_lock(tree.parent / "link", timeout=0.3),
        ):
            pass
        passed = time.monotonic() - started
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert error.tree == str(tree)
    assert 0.3 <= error.waited <= passed
    assert error.holder is not None
    assert error.holder.pid == child.pid
    assert re.fullmatch(
        rf"waited \d+\.\d s for source tree '{tree}', held by .+ \(pid {child.pid}\) for \d+ s",
        str(error),
    ), str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.tree, again.waited) == (str(error), error.tree, error.waited)
    assert again.holder == error.holder


def test_an_unknown_holder_is_called_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("source_tree_lock._entry.find_holder", lambda *_: None)
    with (
        held_elsewhere(tree),
        pytest.raises(LockTimeout, match=r"held by an unknown process$") as caught,
        source_tree_lock(tree, timeout=0.01),
    ):
        pass
    assert caught.value.holder is None


# An ancestor that did not hand its hold over


#: Holds a tree and starts a child that waits for it. Arguments: the tree, how to hand over.
ANCESTOR = f"""
    import os, subprocess
    from source_tree_lock import source_tree_lock
    command = [sys.executable, "-c", {PRELUDE + textwrap.dedent(WAIT)!r}, sys.argv[1]]
    if sys.argv[2] == "through a shell":
        command = ["sh", "-c", '"$0" "$@"; exit $?', *command]
    with source_tree_lock(sys.argv[1]) as lock:
        environ = lock.environ if sys.argv[2] == "handed over" else {{}}
        child = subprocess.Popen(command, env={{**os.environ, **environ}})
        tell("started")
        heard()
    child.wait()
    tell("ended")
"""


@linux_only
@pytest.mark.parametrize("how", ["bare", "through a shell"])
def test_a_wait_for_an_ancestor_that_did_not_hand_over_is_warned_of_and_goes_on(
    tree: Path, how: str
) -> None:
    with Child(ANCESTOR, tree, how) as parent:
        lines = sorted(parent.line() for _ in range(4))  # one is the parent's own
        assert [line.split()[0] for line in lines] == ["INFO", "WARNING", "for", "started"]
        assert f"(pid {parent.pid})" in lines[1]
        assert "SOURCE_TREE_LOCK_HELD" in lines[1]
        assert "lock.environ" in lines[1]
        parent.say()
        parent.expect("entered")
        parent.expect("ended")


def test_a_hold_that_was_handed_over_is_not_warned_of(tree: Path) -> None:
    with Child(ANCESTOR, tree, "handed over") as parent:
        assert {parent.line(), parent.line()} == {"started", "entered"}
        parent.say()
        parent.expect("ended")


@linux_only
def test_a_forked_child_that_waits_for_its_parent_is_warned(tree: Path) -> None:
    fork = f"""
        import logging, os
        from source_tree_lock import source_tree_lock
        logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
        lock = source_tree_lock(sys.argv[1])
        with lock:
            child = os.fork()
            if child == 0:
                try:
                    lock.acquire(timeout={LIMIT})
                    tell("entered")
                finally:
                    os._exit(0)
            heard()
        os.waitpid(child, 0)
    """
    with Child(fork, tree) as parent:
        assert parent.line().startswith("INFO ")
        line = parent.line()
        assert line.startswith("WARNING ")
        assert f"(pid {parent.pid})" in line
        parent.say()
        parent.expect("entered")


def test_a_wait_for_somebody_else_is_not_warned_of(tree: Path) -> None:
    with held_elsewhere(tree), Child(WAIT, tree) as child:
        assert child.line().startswith("INFO ")
        assert child.line().startswith("for ")  # and no WARNING before


# A holder by itself


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (Holder(4711), "pid 4711"),
        (Holder(4711, "make"), "make (pid 4711)"),
        (Holder(4711, "make", host()), "make (pid 4711)"),
        (Holder(4711, None, "node7"), "pid 4711 on node7"),
        (Holder(4711, "uv", "node7"), "uv (pid 4711) on node7"),
        (Holder(4711, "uv", None, 1000.0), "uv (pid 4711) for 5 s"),
        (Holder(4711, "uv", "node7", 1000.0), "uv (pid 4711) on node7 for 5 s"),
        (Holder(4711, "uv", None, 2000.0), "uv (pid 4711) for 0 s"),
    ],
)
def test_a_holder_reads_well(holder: Holder, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1005.4)
    assert str(holder) == text


def test_a_holder_is_a_value() -> None:
    one, same = (Holder(4711, "make", "node7", 12.5) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one == pickle.loads(pickle.dumps(one))
    assert one != "make"
    for other in (
        Holder(4712, "make", "node7", 12.5),
        Holder(4711, "gmake", "node7", 12.5),
        Holder(4711, "make", "node8", 12.5),
        Holder(4711, "make", "node7", 13.0),
    ):
        assert one != other
    assert repr(one) == "Holder(pid=4711, program='make', host='node7', since=12.5)"
