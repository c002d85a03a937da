"""What macOS does differently, on a fake of it (`fake_system`): no /proc, and F_GETPATH."""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the fake needs /proc", allow_module_level=True)

import fcntl
import termios

import fake_system
from fake_system import MacOS, imported_anew
from support import LIMIT, is_free, stop_for_good


@pytest.fixture
def macos(temp_dir: Path, no_leaks: object) -> Iterator[MacOS]:
    with imported_anew(), pytest.MonkeyPatch.context() as patch:
        yield MacOS(patch)


def test_macos_locks_the_tree_and_the_file(macos: MacOS, tree: Path) -> None:
    with macos.lock(tree) as lock:
        assert not is_free(tree)
        assert not is_free(lock.lock_file)
        assert lock.tree == tree
        assert lock.is_held()
    assert is_free(tree)
    assert is_free(lock.lock_file)
    assert not lock.is_held()


def test_macos_makes_the_lock_file_under_another_name_first(
    macos: MacOS, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = macos.lock(tree)
    modes = {}
    real = os.link

    def link(source: str, target: str, **options: Any) -> None:
        modes[target] = os.stat(source).st_mode & 0o777
        real(source, target, **options)

    mask = os.umask(0o077)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            with lock:
                assert modes == {str(lock.lock_file): 0o666}
    finally:
        os.umask(mask)
    assert [each.name for each in lock.lock_file.parent.iterdir()] == [lock.lock_file.name]


def test_macos_names_the_holder_by_its_record(macos: MacOS, tree: Path) -> None:
    errors = []

    def enter() -> None:
        try:
            macos.lock(tree, timeout=0.02).__enter__()
        except macos.library.LockTimeout as error:
            errors.append(error)

    with macos.lock(tree):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(LIMIT)
    assert [error.holder.pid for error in errors] == [os.getpid()]


def test_macos_believes_a_token_while_the_tree_is_locked(
    macos: MacOS, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handover = importlib.import_module("source_tree_lock._handover")
    opened = macos.library._paths.tree.open_tree(tree)
    with macos.lock(tree) as lock:
        monkeypatch.setenv("SOURCE_TREE_LOCK_HELD", lock.environ["SOURCE_TREE_LOCK_HELD"])
        (entry,) = handover.handed_down()
        assert entry.is_believed(opened)
        record = lock.lock_file.read_text()
    assert not entry.is_believed(opened)
    lock.lock_file.write_text(record)  # what is left there makes nobody a holder
    assert not entry.is_believed(opened)
    opened.close()


@pytest.mark.parametrize(
    ("answer", "lives"),
    [(None, True), (PermissionError(errno.EPERM, ""), True), (ProcessLookupError(), False)],
)
def test_macos_asks_kill_whether_a_process_lives(
    macos: MacOS, monkeypatch: pytest.MonkeyPatch, answer: OSError | None, *, lives: bool
) -> None:
    asked = []

    def kill(pid: int, number: int) -> None:
        asked.append((pid, number))
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "kill", kill)
    assert macos.library._holder.processes.is_alive(4711) is lives
    assert asked == [(4711, 0)]


def test_macos_has_no_list_of_mounts_to_warn_by(
    macos: MacOS, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with macos.lock(tree):
        pass
    assert "/proc/self/mountinfo" in macos.proc_visits
    assert caplog.records == []


@pytest.mark.parametrize(
    ("confstr", "expected"),
    [
        (lambda name: {65537: "/var/folders/zz/T/"}[name], "/var/folders/zz/T"),
        # POSIX: None for a name that is known and has no value.
        (lambda name: None, "/tmp"),
        (lambda name: os.close(-1), "/tmp"),
    ],
    ids=["known", "without a value", "failing"],
)
def test_macos_has_a_temporary_directory_for_each_user(
    confstr: Callable[[int], str | None],
    expected: str,
    macos: MacOS,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TMPDIR")

    monkeypatch.setattr(os, "confstr", confstr)
    assert Path(macos.library._system.temp_dir()) == Path(expected)


def test_macos_prefers_tmpdir(macos: MacOS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/set/by/hand")

    assert macos.library._system.temp_dir() == "/set/by/hand"


def test_macos_tells_the_canonical_path_of_what_is_open(
    tree: Path, macos: MacOS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def f_getpath(descriptor: int, command: int, buffer: bytes) -> bytes:
        # fcntl(2) of macOS: 50 is F_GETPATH, the buffer has MAXPATHLEN bytes.
        assert (command, len(buffer)) == (50, 1024)
        assert os.path.samestat(os.fstat(descriptor), os.stat(tree))
        return b"/Private/Tree".ljust(1024, b"\0")

    monkeypatch.setattr(fcntl, "fcntl", f_getpath)
    opened = macos.library._paths.tree.open_tree(tree)
    opened.close()
    assert opened.path == "/Private/Tree"


#: `source-tree-lock run` as on macOS, where nothing tells who sent a signal. Arguments: its own.
RUN_ON_MACOS = """
    import os, sys
    sys.path.insert(0, sys.argv.pop(1))
    from pytest import MonkeyPatch
    from fake_system import MacOS

    MacOS(MonkeyPatch())
    from source_tree_lock.__main__ import main

    def kill(pid, number, kill=os.kill):
        print("forwarded", int(number), flush=True)
        kill(pid, number)

    os.kill = kill
    raise SystemExit(main(["run", *sys.argv[1:]]))
"""


#: Tells of SIGINT, and ends with 7 at SIGTERM.
TELL_SIGNALS = """
    import os, signal, sys, time
    # Not by print(): this one may still be in it when the signal comes.
    signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print("ready", flush=True)
    for _ in range(6000):
        time.sleep(0.01)
"""


@contextmanager
def running_on_macos(tree: Path, terminal: int | None) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", textwrap.dedent(RUN_ON_MACOS)]
    command += [str(Path(fake_system.__file__).parent), str(tree), "--"]
    command += [sys.executable, "-c", textwrap.dedent(TELL_SIGNALS)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that select(2) sees what has not been read
        start_new_session=True,
        preexec_fn=None if terminal is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        yield process
    finally:
        stop_for_good(process)
        assert process.stdout is not None
        process.stdout.close()


def expect(process: subprocess.Popen[bytes], words: bytes) -> None:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], LIMIT)[0], f"no {words!r} for {LIMIT} s"
    assert process.stdout.readline() == words + b"\n"


def test_ctrl_c_at_a_terminal_reaches_a_command_on_macos_once(tree: Path) -> None:
    master, terminal = os.openpty()
    try:
        with running_on_macos(tree, terminal) as process:
            expect(process, b"ready")
            os.write(master, b"\x03")  # Ctrl-C: the terminal interrupts the whole job
            expect(process, b"interrupted")
            process.send_signal(signal.SIGTERM)
            expect(process, b"forwarded 15")
            assert process.wait(LIMIT) == 7
    finally:
        os.close(master)
        os.close(terminal)


def test_a_kill_reaches_a_command_on_macos_that_has_no_terminal(tree: Path) -> None:
    with running_on_macos(tree, None) as process:
        expect(process, b"ready")
        process.send_signal(signal.SIGTERM)
        expect(process, b"forwarded 15")
        assert process.wait(LIMIT) == 7
