"""The lock on Windows, where there is no flock, no queue to wait in and no lock on a directory.

`.ci/windows` runs this module under Wine.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import queue
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable, Iterator
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
    tell("done")
"""

#: A build that says in files where it is, and waits for one: `go`.
SETUP = f"""
    import sys, time
    from pathlib import Path
    from setuptools import setup

    here = Path(__file__).parent
    if "bdist_wheel" in sys.argv:
        (here / "building").write_text("released" if (here / "released").exists() else "held")
        deadline = time.monotonic() + {LIMIT}
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
        line = self._lines.get(timeout=seconds)
        assert line, f"the child ended with {self.process.wait(LIMIT)}"
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


def run_at_once(children: list[WindowsChild]) -> None:
    for child in children:
        child.expect("ready")
    for child in children:
        child.say()
    for child in children:
        while child.line() != "done":
            pass  # what setuptools prints


# Between processes


@pytest.mark.parametrize("is_handed_over", [False, True], ids=["strangers", "of one hold"])
def test_processes_are_never_inside_at_once(is_handed_over: bool, tree: Path) -> None:
    with ExitStack() as stack:
        environ = {}
        if is_handed_over:
            environ = stack.enter_context(source_tree_lock(tree)).environ
        children = [WindowsChild(COUNT, tree, environ=environ) for _ in range(3)]
        run_at_once([stack.enter_context(child) for child in children])


def test_concurrent_builds_give_complete_wheels(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("build")
    (tree / "setup.py").write_text("import setuptools; setuptools.setup(name='sample')\n")
    (tree / "sample").mkdir()
    modules = {f"sample/module{number}.py": b"number = %d\n" % number for number in range(10)}
    for name, source in modules.items():
        (tree / name).write_bytes(source)
    with ExitStack() as stack:
        children = [WindowsChild(BUILD, tree, tmp_path / f"output{number}") for number in range(3)]
        run_at_once([stack.enter_context(child) for child in children])
    wheels = list(tmp_path.glob("output*/*.whl"))
    assert len(wheels) == 3
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        assert {name: content.pop(name) for name in modules} == modules
        others = {name.rpartition("/")[2] for name in content}
        assert others == {"METADATA", "RECORD", "WHEEL", "top_level.txt"}


def test_a_wait_ends_when_the_holder_leaves(tree: Path, holder: WindowsChild) -> None:
    told = []

    def let_go(wait: Wait) -> None:
        told.append(wait.holder)
        holder.say()

    with source_tree_lock(tree, on_wait=let_go):
        holder.expect("released")
    assert [each and each.pid for each in told] == [holder.pid]


def test_a_timeout_names_the_holder(tree: Path, holder: WindowsChild) -> None:
    with pytest.raises(LockTimeout, match=rf"python\.exe \(pid {holder.pid}\)"):
        source_tree_lock(tree, timeout=0.1).acquire()
    assert not source_tree_lock(tree).acquire(blocking=False)


def test_the_record_can_be_read_while_the_file_is_locked(tree: Path, holder: WindowsChild) -> None:
    lock = source_tree_lock(tree)
    found = lock.holder()
    assert found is not None
    assert (found.pid, found.host) == (holder.pid, os.environ["COMPUTERNAME"])
    # Wine would let us read what is locked; Windows lets us read from here on only.
    with lock.lock_file.open("rb") as file:
        file.seek(0x10000)
        assert file.read(1) == b"{"
    holder.say()
    holder.expect("released")
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
        with WindowsChild(TRY, tree, environ=environ) as child:
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


def timed_out(tree: Path) -> None:
    assert not source_tree_lock(tree).acquire(timeout=0.1)


def cancelled(tree: Path) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(source_tree_lock(tree).__aenter__(), 0.1)

    asyncio.run(main())


def interrupted(tree: Path) -> None:
    def interrupt(_: object) -> None:
        threading.Timer(0.05, _thread.interrupt_main).start()

    with pytest.raises(KeyboardInterrupt):
        source_tree_lock(tree, on_wait=interrupt).acquire()


@pytest.mark.parametrize("wait", [timed_out, cancelled, interrupted])
def test_a_wait_that_was_given_up_leaves_nothing_open(
    wait: Callable[[Path], None], tree: Path, holder: WindowsChild
) -> None:
    wait(tree)
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
    path: str,
    error: type[Exception],
    tmp_path: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        source_tree_lock(path).acquire()
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
