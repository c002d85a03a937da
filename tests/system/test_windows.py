"""The lock on Windows, where there is no flock, no queue to wait in and no lock on a directory.

`.ci/windows` runs this module under Wine.
"""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import HOLD, LIMIT, Child
from typing_extensions import Self

from source_tree_lock import (
    LockTimeout,
    LockUnavailable,
    SourceTreeLock,
    Wait,
    source_tree_lock,
)

pytestmark = pytest.mark.skipif(os.name != "nt", reason="needs Windows (.ci/windows has Wine)")

#: Enters ten times; two processes inside at once find each other's file.
COUNT = """
    import os, sys, time
    from source_tree_lock import source_tree_lock
    inside = os.path.join(sys.argv[1], "inside")
    tell("ready")
    heard()
    for _ in range(10):
        with source_tree_lock(sys.argv[1]):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            time.sleep(0.02)
            os.unlink(inside)
    tell("done")
"""

#: Tells whether it can get in at once.
TRY = """
    import sys
    from source_tree_lock import source_tree_lock
    tell(source_tree_lock(sys.argv[1]).acquire(blocking=False))
"""

#: Builds a wheel of its first argument into its second.
BUILD = """
    import sys
    from build import ProjectBuilder
    from source_tree_lock.adapters import locked_runner
    tell("ready")
    heard()
    ProjectBuilder(sys.argv[1], runner=locked_runner()).build("wheel", sys.argv[2])
    tell("built")
"""

#: A build that says in files where it is, and waits for one: `go`.
SETUP = """
    import sys, time
    from pathlib import Path
    from setuptools import setup

    here = Path(__file__).parent
    if "bdist_wheel" in sys.argv:
        (here / "building").write_text("released" if (here / "released").exists() else "held")
        deadline = time.monotonic() + 60
        while not (here / "go").exists():
            if time.monotonic() > deadline:
                raise SystemExit("nobody said go")
            time.sleep(0.01)
    setup(name="sample", version="1.0", py_modules=["sample"])
    if "bdist_wheel" in sys.argv:
        (here / "built").touch()
"""


class WindowsChild(Child):
    """A child whose lines a thread reads, because select(2) takes no pipes here."""

    def __init__(self, script: str, *arguments: object, **options: object) -> None:
        super().__init__(script, *arguments, **options)  # type: ignore[arg-type]
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def line(self, seconds: float = LIMIT) -> str:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"the child told nothing for {seconds} s") from None
        if not line:
            raise AssertionError(f"the child ended with {self.process.wait(LIMIT)}")
        return line.decode().rstrip("\r\n")

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self._reader.join(LIMIT)
        super().__exit__(*exc_info)


@pytest.fixture
def holder(tree: Path) -> Iterator[WindowsChild]:
    """Another process, which holds the tree until it is told to let go."""
    with WindowsChild(HOLD, tree) as child:
        child.expect("held")
        yield child


def wait_for_file(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode} and made no {path}"
        assert time.monotonic() < deadline, f"no {path} for {LIMIT} s"
        time.sleep(0.01)


def acquires_in_another_thread(lock: SourceTreeLock) -> bool:
    answers: queue.Queue[bool] = queue.Queue()

    def try_once() -> None:
        acquired = lock.acquire(blocking=False)
        if acquired:
            lock.release()
        answers.put(acquired)

    threading.Thread(target=try_once).start()
    return answers.get(timeout=LIMIT)


# Between processes


def test_two_processes_are_never_inside_at_once(tree: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(WindowsChild(COUNT, tree)) for _ in range(3)]
        at_once(children)
        for child in children:
            child.expect("done")


def test_concurrent_builds_give_complete_wheels(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("build")
    (tree / "setup.py").write_text("import setuptools; setuptools.setup(name='sample')\n")
    (tree / "sample").mkdir()
    modules = {f"sample/module{number}.py": b"number = %d\n" % number for number in range(10)}
    for name, source in modules.items():
        (tree / name).write_bytes(source)
    with ExitStack() as stack:
        children = [
            stack.enter_context(WindowsChild(BUILD, tree, tmp_path / f"output{number}"))
            for number in range(3)
        ]
        at_once(children)
        for child in children:
            while child.line() != "built":
                pass  # what setuptools tells
    wheels = [contents_of(wheel) for wheel in tmp_path.glob("output*/*.whl")]
    assert len(wheels) == 3
    for wheel in wheels:
        assert {name: wheel[name] for name in wheel if name.startswith("sample/")} == modules
        assert {name.rpartition("/")[2] for name in wheel.keys() - modules.keys()} == {
            "METADATA",
            "RECORD",
            "WHEEL",
            "top_level.txt",
        }


def contents_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def at_once(children: list[WindowsChild]) -> None:
    for child in children:
        child.expect("ready")
    for child in children:
        child.say()


def test_a_wait_ends_when_the_holder_lets_go(tree: Path, holder: WindowsChild) -> None:
    def let_go(_: Wait) -> None:
        (tree / "let go").touch()
        holder.say()

    with source_tree_lock(tree, on_wait=let_go):
        assert (tree / "let go").exists()
    holder.expect("released")


def test_a_time_out_names_the_holder(tree: Path, holder: WindowsChild) -> None:
    with pytest.raises(LockTimeout, match=rf"python\.exe \(pid {holder.pid}\)"):
        source_tree_lock(tree, timeout=0.1).__enter__()
    assert not source_tree_lock(tree).acquire(blocking=False)


def test_the_record_is_readable_while_the_file_is_locked(tree: Path, holder: WindowsChild) -> None:
    found = source_tree_lock(tree).holder()
    assert found is not None
    assert found.pid == holder.pid
    assert found.host == os.environ["COMPUTERNAME"]
    # Wine would let us read what is locked; Windows lets us read from here on only.
    with source_tree_lock(tree).lock_file.open("rb") as file:
        file.seek(0x10000)
        assert file.read(1) == b"{"


def test_the_record_is_gone_after_the_release(tree: Path) -> None:
    lock = source_tree_lock(tree)
    with lock:
        mine = lock.holder()
        assert mine is not None
        assert mine.pid == os.getpid()
    assert lock.holder() is None


def test_a_killed_holder_keeps_nobody_out(tree: Path, holder: WindowsChild) -> None:
    holder.kill()
    lock = source_tree_lock(tree, timeout=LIMIT)
    assert lock.holder() is None  # its record stands there still
    with lock:
        mine = lock.holder()
        assert mine is not None
        assert mine.pid == os.getpid()


def test_a_longer_record_of_a_dead_holder_does_not_spoil_the_next(tree: Path) -> None:
    lock = source_tree_lock(tree)
    lock.lock_file.write_bytes(bytes(0x10000) + b"x" * 1000)
    with lock:
        mine = lock.holder()
        assert mine is not None
        assert mine.pid == os.getpid()


def test_a_child_enters_the_hold_that_was_handed_to_it(tree: Path) -> None:
    with source_tree_lock(tree) as lock:
        with WindowsChild(TRY, tree, environ=lock.environ) as child:
            child.expect("True")
        with WindowsChild(TRY, tree) as child:
            child.expect("False")


def test_a_hold_that_was_handed_over_ends_with_its_holder(tree: Path) -> None:
    script = """
        import sys
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]) as lock:
            for name, value in lock.environ.items():
                tell(name + "=" + value)
            heard()
    """
    with WindowsChild(script, tree) as dying:
        name, _, value = dying.line().partition("=")
        with WindowsChild(TRY, tree, environ={name: value}) as child:
            child.expect("True")
        dying.kill()
    with source_tree_lock(tree), WindowsChild(TRY, tree, environ={name: value}) as child:
        child.expect("False")


# Within a process


def test_threads_exclude_each_other(tree: Path) -> None:
    with source_tree_lock(tree) as lock:
        assert not acquires_in_another_thread(lock)
        assert not acquires_in_another_thread(source_tree_lock(tree))
    assert acquires_in_another_thread(lock)


def test_a_thread_enters_again_what_it_holds(tree: Path) -> None:
    lock = source_tree_lock(tree)
    with lock:
        with source_tree_lock(tree, timeout=0):
            assert lock.locked()
        assert not acquires_in_another_thread(lock)
    assert not lock.locked()


def test_two_lock_directories_exclude_each_other_within_a_process(
    tree: Path, tmp_path: Path
) -> None:
    with source_tree_lock(tree):
        other = source_tree_lock(tree, lock_dir=tmp_path / "locks")
        assert not acquires_in_another_thread(other)
    assert acquires_in_another_thread(other)


def test_a_decorated_function_runs_under_the_lock(tree: Path) -> None:
    lock = source_tree_lock(tree)

    @lock
    def build(word: str) -> str:
        assert lock.locked()
        return word

    assert build("wheel") == "wheel"
    assert not lock.locked()


def test_an_exception_from_the_body_releases_the_tree(tree: Path) -> None:
    lock = source_tree_lock(tree)
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert acquires_in_another_thread(lock)
    lock.lock_file.unlink()  # Windows refuses that while a descriptor is open


def test_a_wait_that_timed_out_leaves_nothing_open(tree: Path, holder: WindowsChild) -> None:
    lock = source_tree_lock(tree)
    assert not lock.acquire(timeout=0.1)
    holder.kill()
    lock.lock_file.unlink()


def test_ctrl_c_ends_a_wait_and_leaves_nothing_open(tree: Path, holder: WindowsChild) -> None:
    script = """
        import _thread, sys, threading
        from source_tree_lock import source_tree_lock
        def interrupt(wait):
            threading.Timer(0.05, _thread.interrupt_main).start()
        lock = source_tree_lock(sys.argv[1], on_wait=interrupt)
        try:
            lock.__enter__()
        except KeyboardInterrupt:
            tell("interrupted")
        heard()
        lock.lock_file.unlink()
        tell("deleted")
    """
    with WindowsChild(script, tree) as child:
        child.expect("interrupted")
        holder.kill()
        child.say()
        child.expect("deleted")


# asyncio, with Windows' own event loop


def test_a_waiting_task_lets_others_run_and_enters_in_the_end(
    tree: Path, holder: WindowsChild
) -> None:
    async def main() -> None:
        waits = asyncio.Event()
        lock = source_tree_lock(tree, on_wait=lambda _: waits.set())

        async def build() -> str:
            async with lock:
                assert lock.locked()
                return "built"

        task = asyncio.create_task(build())
        await asyncio.wait_for(waits.wait(), LIMIT)
        holder.say()
        assert await asyncio.wait_for(task, LIMIT) == "built"

    asyncio.run(main())


def test_a_cancelled_task_leaves_nothing_open(tree: Path, holder: WindowsChild) -> None:
    lock = source_tree_lock(tree)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(lock.__aenter__(), 0.1)

    asyncio.run(main())
    holder.kill()
    lock.lock_file.unlink()


def test_tasks_exclude_each_other(tree: Path) -> None:
    async def main() -> None:
        inside = 0

        async def enter() -> None:
            nonlocal inside
            async with source_tree_lock(tree):
                inside += 1
                assert inside == 1
                await asyncio.sleep(0.001)
                inside -= 1

        await asyncio.wait_for(asyncio.gather(*(enter() for _ in range(5))), LIMIT)

    asyncio.run(main())


# Paths


def test_every_spelling_of_a_tree_is_one_lock(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_file = source_tree_lock(tree).lock_file
    monkeypatch.chdir(tree.parent)
    spellings = (
        "tree",
        "TREE",
        ".\\tree\\..\\tree\\",
        str(tree).replace("\\", "/"),
        "\\\\?\\" + str(tree),
        os.fsencode(tree),
    )
    for spelling in spellings:
        assert source_tree_lock(spelling).lock_file == lock_file, spelling


def test_a_lock_directory_is_made(tree: Path, tmp_path: Path) -> None:
    lock = source_tree_lock(tree, lock_dir=tmp_path / "a" / "b")
    with lock:
        assert lock.lock_file.parent == tmp_path / "a" / "b"
        assert lock.lock_file.is_file()


def test_a_lock_directory_that_is_a_file_is_an_error(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LockUnavailable, match="not a directory"):
        source_tree_lock(tree, lock_dir=tmp_path / "file").__enter__()


def test_a_lock_file_that_is_a_directory_is_an_error(tree: Path) -> None:
    lock = source_tree_lock(tree)
    lock.lock_file.mkdir()
    with pytest.raises(LockUnavailable):
        lock.__enter__()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("missing", FileNotFoundError),
        ("", FileNotFoundError),
        ("Q:\\missing", FileNotFoundError),
        ("file", NotADirectoryError),
        ("NUL", NotADirectoryError),
        ("a\0b", ValueError),
    ],
)
def test_a_path_that_is_no_tree_is_an_error_and_leaves_nothing(
    tmp_path: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: type[Exception],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        source_tree_lock(path).__enter__()
    assert list(temp_dir.iterdir()) == []


# The command line


def command_line(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "source_tree_lock", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def test_status_tells_free_from_held(tree: Path) -> None:
    assert command_line("status", tree).returncode == 0
    with source_tree_lock(tree):
        held = command_line("status", tree)
    assert held.returncode == 1, held.stderr
    assert f"(pid {os.getpid()})" in held.stdout


def test_a_command_runs_under_the_lock_and_is_handed_it(tree: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        sys.exit(7 if lock.holder() and lock.acquire(blocking=False) else 8)
    """)
    ended = command_line("run", tree, "--", sys.executable, "-c", script, tree)
    assert ended.returncode == 7, ended.stderr
    with source_tree_lock(tree):
        kept_out = command_line("run", "--timeout", "0.1", tree, "--", sys.executable, "-c", "")
    assert kept_out.returncode == 75, kept_out.stderr


# uv.exe


@pytest.fixture(scope="module")
def uv() -> str:
    found = os.environ.get("UV_EXE") or shutil.which("uv")
    if not found:
        pytest.skip("there is no uv.exe: UV_EXE does not name it, and PATH does not lead to it")
    return found


class UvBuild:
    """uv.exe builds a wheel of a tree whose `setup.py` says where it is."""

    def __init__(self, uv: str, tree: Path, output: Path) -> None:
        (tree / "setup.py").write_text(textwrap.dedent(SETUP))
        (tree / "sample.py").touch()
        command = [uv, "build", "--wheel", "--no-build-isolation", "--offline", "--no-config", "-v"]
        command += ["--no-python-downloads", "--python", sys.executable]
        command += ["--cache-dir", str(output / "cache"), "--out-dir", str(output), str(tree)]
        self.tree, self.output = tree, output
        self.told: list[str] = []
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._waits = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told.append(line.decode(errors="replace"))
            if "Waiting to acquire" in self.told[-1] and "uv-setuptools-" in self.told[-1]:
                self._waits.set()

    def expect_to_wait(self) -> None:
        assert self._waits.wait(LIMIT), "".join(self.told)

    def expect_a_wheel(self) -> None:
        status = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert status == 0, "".join(self.told)
        assert [path.name for path in self.output.glob("*.whl")] == ["sample-1.0-py3-none-any.whl"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        (self.tree / "go").touch()  # a build outlives a killed uv
        self.process.kill()
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.mark.parametrize("name", ["Tree of two words", "Bäume-木-\N{DECIDUOUS TREE}"])
def test_uv_takes_the_same_lock_file(uv: str, tmp_path: Path, temp_dir: Path, name: str) -> None:
    tree = tmp_path / name
    tree.mkdir()
    (tree / "go").touch()
    with UvBuild(uv, tree, tmp_path / "output") as build:
        build.expect_a_wheel()
    assert [source_tree_lock(tree).lock_file] == list(temp_dir.glob("uv-setuptools-*.lock"))


def test_the_library_waits_for_uv(uv: str, tree: Path, tmp_path: Path) -> None:
    script = """
        import os, sys
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("waits", wait.holder)):
            tell("built" if os.path.exists(os.path.join(sys.argv[1], "built")) else "too early")
    """
    with UvBuild(uv, tree, tmp_path / "output") as build:
        wait_for_file(tree / "building", build.process)
        assert not source_tree_lock(tree).acquire(timeout=0.1)
        with WindowsChild(script, tree) as child:
            child.expect("waits None")
            (tree / "go").touch()
            child.expect("built")
        build.expect_a_wheel()


def test_uv_waits_for_the_library(uv: str, tree: Path, tmp_path: Path) -> None:
    (tree / "go").touch()
    with ExitStack() as stack:
        with source_tree_lock(tree):
            build = stack.enter_context(UvBuild(uv, tree, tmp_path / "output"))
            build.expect_to_wait()
            (tree / "released").touch()
        build.expect_a_wheel()
    assert (tree / "building").read_text() == "released"
