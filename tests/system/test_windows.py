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
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import HOLD, Child, in_thread, is_taken, wait_until

from source_tree_lock import LockTimeout, LockUnavailable, Wait, source_tree_lock

if os.name != "nt":
    pytest.skip("needs Windows (.ci/windows has Wine)", allow_module_level=True)

#: Longer than anything takes, under Wine and on a busy machine, in seconds.
LIMIT = 300.0
pytestmark = pytest.mark.timeout(900)

#: Enters ten times; two processes inside at once find each other's file.
COUNT = """
    import os, time
    from source_tree_lock import source_tree_lock
    inside = os.path.join(sys.argv[1], "inside")
    tell("ready")
    heard()
    for _ in range(10):
        with source_tree_lock(sys.argv[1]):
            open(inside, "x").close()
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
        while not os.path.exists("go") and time.monotonic() < deadline:
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


@pytest.mark.parametrize("is_handed_over", [False, True], ids=["strangers", "of one hold"])
def test_processes_are_never_inside_at_once(is_handed_over: bool, tree: Path) -> None:
    with ExitStack() as stack:
        environ = stack.enter_context(source_tree_lock(tree)).environ if is_handed_over else {}
        crew = [stack.enter_context(WindowsChild(COUNT, tree, environ=environ)) for _ in range(3)]
        for word in ("ready", "done"):
            for child in crew:
                child.expect(word)
            for child in crew:
                child.say()


def test_the_record_names_the_holder_until_it_leaves(tree: Path, holder: WindowsChild) -> None:
    def let_go(wait: Wait) -> None:
        assert wait.holder == found
        holder.say()

    with pytest.raises(LockTimeout, match=rf"python\.exe \(pid {holder.pid}\)"):
        source_tree_lock(tree, timeout=0.1).acquire()
    lock = source_tree_lock(tree, on_wait=let_go)
    assert (found := lock.holder()) is not None
    assert (found.pid, found.host) == (holder.pid, os.environ["COMPUTERNAME"])
    # Wine would let us read what is locked; Windows lets us read from here on only.
    with lock.lock_file.open("rb") as file:
        file.seek(0x10000)
        assert file.read(1) == b"{"
    with lock:
        holder.expect("released")
    assert lock.holder() is None


def test_a_killed_holder_keeps_nobody_out(tree: Path, holder: WindowsChild) -> None:
    holder.kill()
    lock = source_tree_lock(tree, timeout=LIMIT)
    assert lock.holder() is None  # though its record is there still
    with lock:
        assert (mine := lock.holder()) is not None
        assert mine.pid == os.getpid()
    lock.lock_file.unlink()  # Windows refuses that while a descriptor is open


def test_a_child_enters_the_hold_that_was_handed_to_it_while_that_lasts(tree: Path) -> None:
    def tries(environ: dict[str, str]) -> str:
        script = """
            from source_tree_lock import source_tree_lock
            tell(source_tree_lock(sys.argv[1]).acquire(blocking=False))
        """
        with WindowsChild(script, tree, environ=environ) as child:
            return child.line()

    script = """
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


def test_threads_exclude_each_other_and_one_enters_again(tree: Path, tmp_path: Path) -> None:
    lock = source_tree_lock(tree)
    other = source_tree_lock(tree, lock_dir=tmp_path / "locks")
    with lock:
        with source_tree_lock(tree, timeout=0):
            assert lock.is_owner()
        assert is_taken(tree)
        assert not in_thread(lambda: other.acquire(blocking=False))
    assert not is_taken(tree)


def test_a_wait_that_was_given_up_leaves_nothing_open(tree: Path, holder: WindowsChild) -> None:
    async def cancelled() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(source_tree_lock(tree).__aenter__(), 0.1)

    assert not source_tree_lock(tree).acquire(timeout=0.1)
    asyncio.run(cancelled())
    interrupt = threading.Timer(0.05, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        source_tree_lock(tree, on_wait=lambda _: interrupt.start()).acquire()
    holder.kill()
    source_tree_lock(tree).lock_file.unlink()


def test_a_waiting_task_lets_others_run(tree: Path, holder: WindowsChild) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        # The holder lets go only if the loop runs during the wait.
        async with source_tree_lock(tree, on_wait=lambda _: loop.call_soon(holder.say)) as lock:
            assert lock.locked()

    asyncio.run(asyncio.wait_for(main(), LIMIT))
    holder.expect("released")


def test_every_spelling_of_a_tree_is_one_lock(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_file = source_tree_lock(tree).lock_file
    monkeypatch.chdir(tree.parent)
    relative = ("tree", "TREE", ".\\tree\\..\\tree\\", os.fsencode(tree))
    for spelling in (*relative, str(tree).replace("\\", "/"), "\\\\?\\" + str(tree)):
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


@pytest.fixture(scope="module")
def uv() -> str:
    if found := os.environ.get("UV_EXE") or shutil.which("uv"):
        return found
    pytest.skip("there is no uv.exe: UV_EXE does not name it, and PATH does not lead to it")


@contextmanager
def uv_builds(uv: str, tree: Path, output: Path) -> Iterator[Path]:
    """uv.exe builds a wheel of a tree whose `setup.py` says where it is; the file of its words."""
    (tree / "setup.py").write_text(textwrap.dedent(SETUP))
    (tree / "sample.py").touch()
    output.mkdir()
    command = [uv, "build", "--wheel", "--no-build-isolation", "--offline", "--no-config", "-v"]
    command += ["--no-python-downloads", "--python", sys.executable]
    command += ["--cache-dir", str(output / "cache"), "--out-dir", str(output), str(tree)]
    said = output / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file)
    try:
        yield said
        assert process.wait(LIMIT) == 0, said.read_bytes()
    finally:
        (tree / "go").touch()  # a build outlives a killed uv
        process.kill()
        process.wait(LIMIT)
    assert [path.name for path in output.glob("*.whl")] == ["sample-1.0-py3-none-any.whl"]


@pytest.mark.parametrize("name", ["Tree of two words", "Bäume-木-\N{DECIDUOUS TREE}"])
def test_uv_takes_the_same_lock_file(uv: str, tmp_path: Path, temp_dir: Path, name: str) -> None:
    tree = tmp_path / name
    tree.mkdir()
    (tree / "go").touch()
    with uv_builds(uv, tree, tmp_path / "output"):
        pass
    assert [source_tree_lock(tree).lock_file] == list(temp_dir.glob("uv-setuptools-*.lock"))


def test_the_library_waits_for_uv(uv: str, tree: Path, tmp_path: Path) -> None:
    script = """
        import os
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("waits", wait.holder)):
            tell("built" if os.path.exists(os.path.join(sys.argv[1], "built")) else "too early")
    """
    with uv_builds(uv, tree, tmp_path / "output"):
        wait_until((tree / "building").exists, LIMIT)
        assert not source_tree_lock(tree).acquire(timeout=0.1)
        with WindowsChild(script, tree) as child:
            child.expect("waits None")
            (tree / "go").touch()
            child.expect("built")


def test_uv_waits_for_the_library(uv: str, tree: Path, tmp_path: Path) -> None:
    (tree / "go").touch()
    waits = re.compile(rb"Waiting to acquire.*uv-setuptools-")
    with ExitStack() as stack, source_tree_lock(tree):
        said = stack.enter_context(uv_builds(uv, tree, tmp_path / "output"))
        wait_until(lambda: bool(waits.search(said.read_bytes())), LIMIT)
        (tree / "released").touch()  # the build ends after that, when the stack is left
    assert (tree / "building").read_text() == "released"
