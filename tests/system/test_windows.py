"""The lock on Windows, where there is no flock, no queue to wait in and no lock on a directory.

`.ci/windows` runs this module under Wine.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import HOLD, Child, in_thread, is_taken, wait_until
from typing_extensions import Self

from source_tree_lock import LockTimeout, LockUnavailable, Wait, source_tree_lock

if os.name != "nt":
    pytest.skip("needs Windows (.ci/windows has Wine)", allow_module_level=True)

#: Longer than anything takes, under Wine and on a busy machine, in seconds.
LIMIT = 300.0
pytestmark = pytest.mark.timeout(900)

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
    heard()
"""


#: A build that says in files where it is, and waits for one: `go`.
SETUP = f"""
    import os, sys, time
    from setuptools import setup

    if "bdist_wheel" in sys.argv:
        with open("building", "w") as file:
            file.write("released" if os.path.exists("released") else "held")
        deadline = time.monotonic() + {LIMIT}
        while not os.path.exists("go"):
            if time.monotonic() > deadline:
                raise SystemExit("nobody said go")
            time.sleep(0.01)
    setup(name="sample", version="1.0", py_modules=["sample"])
    if "bdist_wheel" in sys.argv:
        open("built", "w").close()
"""


class WindowsChild(Child):
    """A child whose lines are read at once, because select(2) takes no pipes here."""

    def line(self, seconds: float = LIMIT) -> str:
        assert self.process.stdout is not None
        limit = threading.Timer(seconds, self.process.kill)
        limit.start()
        line = self.process.stdout.readline()
        limit.cancel()
        assert line, f"the child ended with {self.process.wait(LIMIT)}"
        return line.decode().rstrip("\r\n")


@pytest.fixture
def holder(tree: Path) -> Iterator[WindowsChild]:
    """Another process, which holds the tree until it is told to let go."""
    with WindowsChild(HOLD, tree) as child:
        child.expect("held")
        yield child


# Between processes


@pytest.mark.parametrize("is_handed_over", [False, True], ids=["strangers", "of one hold"])
def test_processes_are_never_inside_at_once(is_handed_over: bool, tree: Path) -> None:
    with ExitStack() as stack:
        environ = stack.enter_context(source_tree_lock(tree)).environ if is_handed_over else {}
        children = [
            stack.enter_context(WindowsChild(COUNT, tree, environ=environ)) for _ in range(3)
        ]
        for word in ("ready", "done"):
            for child in children:
                child.expect(word)
            for child in children:
                child.say()


def test_the_record_names_the_holder_until_it_leaves_and_a_wait_ends(
    tree: Path, holder: WindowsChild
) -> None:
    told = []

    def let_go(wait: Wait) -> None:
        told.append(wait.holder)
        holder.say()

    with pytest.raises(LockTimeout, match=rf"python\.exe \(pid {holder.pid}\)"):
        source_tree_lock(tree, timeout=0.1).acquire()
    lock = source_tree_lock(tree, on_wait=let_go)
    found = lock.holder()
    assert found is not None
    assert (found.pid, found.host) == (holder.pid, os.environ["COMPUTERNAME"])
    # Wine would let us read what is locked; Windows lets us read from here on only.
    with lock.lock_file.open("rb") as file:
        file.seek(0x10000)
        assert file.read(1) == b"{"
    with lock:
        holder.expect("released")
    assert told == [found]
    assert lock.holder() is None


def test_a_killed_holder_keeps_nobody_out(tree: Path, holder: WindowsChild) -> None:
    holder.kill()
    lock = source_tree_lock(tree, timeout=LIMIT)
    assert lock.holder() is None  # though its record is there still
    with lock:
        mine = lock.holder()
        assert mine is not None
        assert mine.pid == os.getpid()
    lock.lock_file.unlink()  # Windows refuses that while a descriptor is open


def test_a_child_enters_the_hold_that_was_handed_to_it_while_that_lasts(tree: Path) -> None:
    def tries(environ: dict[str, str]) -> str:
        script = """
            import sys
            from source_tree_lock import source_tree_lock
            tell(source_tree_lock(sys.argv[1]).acquire(blocking=False))
        """
        with WindowsChild(script, tree, environ=environ) as child:
            return child.line()

    script = """
        import sys
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]) as lock:
            tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
            heard()
    """
    with WindowsChild(script, tree) as dying:
        environ = {"SOURCE_TREE_LOCK_HELD": dying.line()}
        assert (tries(environ), tries({})) == ("True", "False")
        dying.kill()
    with source_tree_lock(tree):
        assert tries(environ) == "False"


# Within a process


def test_threads_exclude_each_other_and_one_enters_again_what_it_holds(
    tree: Path, tmp_path: Path
) -> None:
    lock = source_tree_lock(tree)
    other = source_tree_lock(tree, lock_dir=tmp_path / "locks")
    with lock:
        with source_tree_lock(tree, timeout=0):
            assert lock.is_owner()
        assert is_taken(tree)
        assert not in_thread(lambda: other.acquire(blocking=False))
    assert not is_taken(tree)


def test_a_wait_that_was_given_up_leaves_nothing_open(tree: Path, holder: WindowsChild) -> None:
    def interrupt(_: object) -> None:
        threading.Timer(0.05, _thread.interrupt_main).start()

    async def cancelled() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(source_tree_lock(tree).__aenter__(), 0.1)

    assert not source_tree_lock(tree).acquire(timeout=0.1)
    asyncio.run(cancelled())
    with pytest.raises(KeyboardInterrupt):
        source_tree_lock(tree, on_wait=interrupt).acquire()
    holder.kill()
    source_tree_lock(tree).lock_file.unlink()


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


# Paths


def test_every_spelling_of_a_tree_is_one_lock(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_file = source_tree_lock(tree).lock_file
    monkeypatch.chdir(tree.parent)
    for spelling in (
        "tree",
        "TREE",
        ".\\tree\\..\\tree\\",
        str(tree).replace("\\", "/"),
        "\\\\?\\" + str(tree),
        os.fsencode(tree),
    ):
        assert source_tree_lock(spelling).lock_file == lock_file, spelling


def test_a_lock_directory_is_made_or_is_an_error(tree: Path, tmp_path: Path) -> None:
    lock = source_tree_lock(tree, lock_dir=tmp_path / "a" / "b")
    with lock:
        assert lock.lock_file.parent == tmp_path / "a" / "b"
        assert lock.lock_file.is_file()
    (tmp_path / "file").touch()
    with pytest.raises(LockUnavailable, match="not a directory"):
        source_tree_lock(tree, lock_dir=tmp_path / "file").acquire()
    lock = source_tree_lock(tree)
    lock.lock_file.mkdir()
    with pytest.raises(LockUnavailable):
        lock.acquire()


def test_a_path_that_is_no_tree_is_an_error_and_leaves_nothing(
    tmp_path: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    errors = {
        FileNotFoundError: ("missing", "", "Q:\\missing"),
        NotADirectoryError: ("file", "NUL"),
        ValueError: ("a\0b",),
    }
    for error, paths in errors.items():
        for path in paths:
            with pytest.raises(error):
                source_tree_lock(path).acquire()
    assert list(temp_dir.iterdir()) == []


# The command line


def command_line(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "source_tree_lock", *map(str, arguments)]
    nothing = subprocess.DEVNULL
    return subprocess.run(command, stdin=nothing, capture_output=True, text=True, timeout=LIMIT)


def test_the_command_tells_free_from_held_and_hands_the_lock_to_what_it_runs(tree: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        sys.exit(7 if lock.holder() and lock.acquire(blocking=False) else 8)
    """)
    assert command_line("status", tree).returncode == 0
    ended = command_line("run", tree, "--", sys.executable, "-c", script, tree)
    assert ended.returncode == 7, ended.stderr
    with source_tree_lock(tree):
        held = command_line("status", tree)
        kept_out = command_line("run", "--timeout", "0.1", tree, "--", sys.executable, "-c", "")
    assert held.returncode == 1, held.stderr
    assert f"(pid {os.getpid()})" in held.stdout
    assert kept_out.returncode == 75, kept_out.stderr


# uv.exe


@pytest.fixture(scope="module")
def uv() -> str:
    if found := os.environ.get("UV_EXE") or shutil.which("uv"):
        return found
    pytest.skip("there is no uv.exe: UV_EXE does not name it, and PATH does not lead to it")


class UvBuild:
    """uv.exe builds a wheel of a tree whose `setup.py` says where it is."""

    def __init__(self, uv: str, tree: Path, output: Path) -> None:
        (tree / "setup.py").write_text(textwrap.dedent(SETUP))
        (tree / "sample.py").touch()
        output.mkdir()
        command = [uv, "build", "--wheel", "--no-build-isolation", "--offline", "--no-config", "-v"]
        command += ["--no-python-downloads", "--python", sys.executable]
        command += ["--cache-dir", str(output / "cache"), "--out-dir", str(output), str(tree)]
        self._tree, self._output, self._said = tree, output, output / "said"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)

    def expect_to_wait(self) -> None:
        wait = re.compile(rb"Waiting to acquire.*uv-setuptools-")
        wait_until(lambda: bool(wait.search(self._said.read_bytes())), LIMIT)

    def expect_a_wheel(self) -> None:
        assert self._process.wait(LIMIT) == 0, self._said.read_bytes()
        wheels = [path.name for path in self._output.glob("*.whl")]
        assert wheels == ["sample-1.0-py3-none-any.whl"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        (self._tree / "go").touch()  # a build outlives a killed uv
        self._process.kill()
        self._process.wait(LIMIT)


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
        wait_until((tree / "building").exists, LIMIT)
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
