"""Processes to test against: each tells by pipe how far it is, and every wait has a limit."""

from __future__ import annotations

import gc
import glob
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import Self

from source_tree_lock import SourceTreeLock, source_tree_lock

#: Longer than anything takes on a loaded machine: only a deadlock lasts this long, in seconds.
LIMIT = 120.0

#: A child's script that holds a tree until it is told to let go. Arguments: the tree.
HOLD = """
    import sys
    from source_tree_lock import source_tree_lock
    with source_tree_lock(sys.argv[1]):
        tell("held")
        heard()
    tell("released")
"""

#: Before a command: what the mode of a file forbids is forbidden to root too (setpriv(1)).
WITHOUT_ROOTS_RIGHTS: tuple[str, ...] = ()
if sys.platform == "linux" and os.geteuid() == 0:
    _rights = "-dac_override,-dac_read_search"
    WITHOUT_ROOTS_RIGHTS = ("setpriv", "--bounding-set", _rights, "--inh-caps", _rights)

#: What every child knows.
PRELUDE = """
import sys
def tell(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # at once: a forked child may tell as well
    sys.stdout.flush()
def heard():
    line = sys.stdin.readline()
    if not line:
        raise SystemExit("the test has ended")
    return line.strip()
"""


class Ended(AssertionError):
    """The process told nothing more."""


class Teller:
    """A process that tells the test lines, by a pipe or a socket."""

    def __init__(self, pid: int, output: int) -> None:
        self.pid = pid
        self._output = output
        self._buffer = b""

    def fileno(self) -> int:
        """To select on: readable when the process tells something, or ended."""
        return self._output

    def line(self, seconds: float = LIMIT) -> str:
        while b"\n" not in self._buffer:
            if not select.select([self], [], [], seconds)[0]:
                raise AssertionError(f"process {self.pid} told nothing for {seconds} s")
            chunk = b""
            with suppress(ConnectionResetError):
                chunk = os.read(self._output, 65536)
            if not chunk:
                raise Ended(f"process {self.pid} has ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def expect(self, words: str) -> None:
        line = self.line()
        assert line == words, f"process {self.pid} told {line!r}, not {words!r}"

    def has_told(self, within: float = 0) -> bool:
        """Whether it tells anything, or ends, within so many seconds."""
        return bool(self._buffer or select.select([self], [], [], within)[0])

    def is_silent(self, seconds: float) -> bool:
        """Whether it tells nothing for a while. What is late passes as silent: use it only to
        show that something did *not* happen, beside another test that it does."""
        return not self.has_told(seconds)

    def rest(self) -> list[str]:
        """All that it tells until it has ended."""
        lines = []
        with suppress(Ended):
            while True:
                lines.append(self.line())
        return lines


class Child(Teller):
    """A Python process that talks to the test by lines: `tell` and `heard` on its side."""

    def __init__(
        self,
        script: str,
        *arguments: object,
        environ: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        **options: Any,  # of subprocess.Popen
    ) -> None:
        code = PRELUDE + textwrap.dedent(script)
        options |= {"env": {**os.environ, **(environ or {})}, "stdin": subprocess.PIPE}
        command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
        process: Any = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
        self.process: subprocess.Popen[bytes] = process
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input = self.process.stdin
        super().__init__(self.process.pid, self.process.stdout.fileno())

    def say(self, word: str = "") -> None:
        """Tell the child something: `heard` returns it."""
        self._input.write(word.encode() + b"\n")
        self._input.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)

    def end(self) -> int:
        """Close its input and wait for its end; its exit status."""
        self._input.close()
        return self.process.wait(LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        with suppress(BrokenPipeError), self.process:
            pass  # its pipes are closed


@contextmanager
def held_elsewhere(tree: Path, **options: Any) -> Iterator[Child]:
    """Another process holds the tree; it lets go on `say()`."""
    with Child(HOLD, tree, **options) as child:
        child.expect("held")
        yield child


@contextmanager
def flocked(path: Path) -> Iterator[Child]:
    """Another process has an flock until `say()`, and leaves no record, as uv does."""
    script = """
        import fcntl, os
        fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
        tell("locked")
        heard()
    """
    with Child(script, path) as child:
        child.expect("locked")
        yield child


def long_after(count: int, values: Iterable[object]) -> list[object]:
    """Parameters of a test: those after the first ``count`` are for the long run only."""
    import pytest  # not in the children that import this module

    long = pytest.mark.long
    return [v if n < count else pytest.param(v, marks=long) for n, v in enumerate(values)]


def wait_until_blocked(pid: int) -> None:
    """Until the kernel lists the process as waiting for an flock (Linux)."""
    wait_until(lambda: pid in waiters())


def wait_until_asleep(pid: int) -> None:
    """Until the process waits for an flock, and its main thread sleeps meanwhile (Linux).

    CPython looks for signals before a call that blocks, and not in the instant in which it begins:
    a signal that comes then may be heard when the call is over.
    """
    wait_until_blocked(pid)
    stat = Path(f"/proc/{pid}/stat")  # of the main thread (proc_pid_stat(5))
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")


def open_descriptors() -> set[str]:
    """What the descriptors of this process lead to, where the system lists them."""
    found = set()
    for each in glob.glob("/proc/self/fd/*"):
        with suppress(OSError):
            found.add(f"{each} -> {os.readlink(each)}")
    return found


def is_free(path: str | Path | int) -> bool:
    """Whether nobody has the flock of what a path or a descriptor leads to, by flock(2) itself."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY) if not isinstance(path, int) else os.dup(path)
    except FileNotFoundError:
        return True  # a process that makes it can lock it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def unshared(*options: str) -> tuple[str, ...]:
    """What is put before a command that is to have namespaces of its own (unshare(1)).

    Skips the test where nobody may make them: in a chroot whose root is no mount point, say.
    """
    import pytest  # not in the children that import this module

    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only Linux has namespaces, and only root makes them, by unshare(1)")
    prefix = ("unshare", *options, "--")
    tried = subprocess.run([*prefix, "true"], capture_output=True, timeout=LIMIT)
    if tried.returncode:
        pytest.skip(f"no such namespaces here: {tried.stderr.decode().strip()}")
    return prefix


def own_mounts() -> tuple[str, ...]:
    """What is put before a command that is to mount, unseen by others; skips where it may not."""
    return unshared("--mount", "--propagation", "private")


#: Code that locks the file `alive` in its working directory for the life of its process: where that
#: is free again, the process has ended. Its number may be another's by then, or a thread's.
ALIVE = """
import fcntl, os
alive = open("alive.part", "w")
fcntl.flock(alive, fcntl.LOCK_EX)
os.rename("alive.part", "alive")
"""


def stop_for_good(process: subprocess.Popen[bytes]) -> None:
    """End a process group, whatever it does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(LIMIT)


def write_project(tree: Path, setup: str = "") -> None:
    """Make `tree` a project of one module, with what `setup.py` is to do besides."""
    tree.joinpath("pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "sample"\nversion = "1"\n'
    )
    tree.joinpath("sample.py").write_text("ANSWER = 42\n")
    tree.joinpath("setup.py").write_text(
        textwrap.dedent(setup) + '\nfrom setuptools import setup\nsetup(py_modules=["sample"])\n'
    )


def uv_build(tree: Path) -> subprocess.Popen[bytes]:
    """A real uv that builds a wheel of `tree`, offline, with the setuptools that runs here."""
    options = "--wheel --no-build-isolation --offline --no-config --no-cache --quiet".split()
    return subprocess.Popen(
        [sys.executable, "-m", "uv", "build", *options, "--python", sys.executable], cwd=tree
    )


def wait_until(condition: Callable[[], bool], seconds: float = LIMIT) -> None:
    """Until something is so that no pipe tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has never come true"
        time.sleep(0.01)


def listed_locks() -> list[list[str]]:
    """The fields of each line of proc_locks(5) (Linux); a single look may overlook a lock."""
    return [line.split() for line in Path("/proc/locks").read_text().splitlines()]


def waiters(path: Path | None = None) -> list[int]:
    """The processes that the kernel lists as waiting for an flock, on this file if any (Linux)."""
    inode = path and str(path.stat().st_ino)
    return [
        int(fields[5])
        for fields in listed_locks()
        if fields[1:3] == ["->", "FLOCK"] and inode in (None, fields[6].rpartition(":")[2])
    ]


def start(*command: object, cwd: Path | None = None, **environ: str) -> subprocess.Popen[str]:
    """A command that asks nothing, and whose words are kept for `finish`."""
    return subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env={**os.environ, **environ},
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    """Wait for their ends, which must be good ones."""
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


# Holders and strangers in this process


@contextmanager
def held_by_thread(tree: Path) -> Iterator[SourceTreeLock]:
    """Another thread of this process holds the tree."""
    lock = source_tree_lock(tree)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lock.acquire).result(LIMIT)
        try:
            yield lock
        finally:
            pool.submit(lock.release).result(LIMIT)


def in_thread(function: Callable[[], object]) -> Any:
    """What `function` returns or raises in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        return future.exception(LIMIT) or future.result()


def drop(locks: list[SourceTreeLock]) -> None:
    """Have the locks collected, if nothing else refers to them."""
    locks.clear()
    gc.collect()  # PyPy counts no references


def is_taken(tree: Path) -> bool:
    """Whether a thread that does not hold the tree is kept out of it."""

    def get_in() -> bool:
        lock = source_tree_lock(tree)
        if not lock.acquire(blocking=False):
            return False
        lock.release()
        return True

    got_in = in_thread(get_in)
    assert type(got_in) is bool, got_in
    return not got_in
