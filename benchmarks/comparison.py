"""What each lock does in the corners that builds meet, found out by running it (Linux).

A process that gets in makes a file, and stays until it is killed. The umask is 077.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from common import Section, progress

from source_tree_lock import source_tree_lock

_OURS, _UV, _FLOCK = "source-tree-lock", "uv", "flock(1)"
#: How each library locks for the body of a `with`.
_EXCLUSIVE = {
    _OURS: "import source_tree_lock as s\nwith s.source_tree_lock(tree, timeout=seconds):",
    "filelock": "import filelock\nwith filelock.FileLock(path, timeout=seconds):",
    "portalocker": "import portalocker\nwith portalocker.Lock(path, timeout=seconds):",
    "fasteners": "import fasteners\nlock = fasteners.InterProcessLock(path)\n"
    "if not lock.acquire(timeout=seconds): raise TimeoutError\nelse:",
}
#: What serves a purpose better than that.
_PID = {
    **_EXCLUSIVE,
    "filelock": "import filelock\nlock = filelock.SoftFileLock(path, timeout=seconds)\n"
    "try: lock.acquire()\nexcept filelock.Timeout: sys.exit(f'held by {lock.pid}')\nelse:",
    "portalocker": "import portalocker\nlock = portalocker.PidFileLock(path)\n"
    "with lock as pid:\n    if pid: sys.exit(f'held by {pid}')",
}
_SHARED = {
    "filelock": "import filelock\nwith filelock.ReadWriteLock(path).read_lock(seconds):",
    "portalocker": "import portalocker as p\n"
    "with p.Lock(path, timeout=seconds, flags=p.LOCK_SH | p.LOCK_NB):",
    "fasteners": "import fasteners\nwith fasteners.InterProcessReaderWriterLock(path).read_lock():",
}
_TOOLS = [_OURS, _UV, *list(_EXCLUSIVE)[1:], _FLOCK]
_SCRIPT = """
import os, sys, time
tree, path, mark, seconds, forks = *sys.argv[1:4], float(sys.argv[4]), sys.argv[5] == "True"
{}
    if forks and os.fork() == 0: time.sleep(20); os._exit(0)
    open(mark, "w").close()
    time.sleep(1000)
"""
_SETUP = """
import os, sys, time, setuptools
if "bdist_wheel" in sys.argv:
    open(os.environ["MARK"], "w").close()
    time.sleep(1000)
setuptools.setup(name="sample", version="1", py_modules=[])
"""
_UV_BUILD = "-m uv build --wheel --no-build-isolation --offline --out-dir".split()
#: As where the file system knows no flock.
_NO_FLOCK = "strace -f -qq -o /dev/null -e trace=flock -e inject=flock:error=ENOSYS".split()


class Attempt:
    """A process that tries to get in."""

    def __init__(self, command: list[str], mark: Path, environ: dict[str, str]) -> None:
        self._mark = mark
        self._output = mark.with_suffix(".output")
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=environ, stdout=out, stderr=out, start_new_session=True
            )

    def gets_in(self, within: float) -> bool:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._mark.exists():
                break
            time.sleep(0.01)
        return self._mark.exists()

    def output(self) -> str:
        return self._output.read_text()


class Corner:
    """One tree, one lock directory, and a question to one tool."""

    def __init__(self, tool: str, work: Path) -> None:
        self._tool, self._work = tool, work
        self._tree, self._temp = work / "tree", work / "temp"
        self._tree.mkdir()
        self._temp.mkdir()
        (self._tree / "setup.py").write_text(_SETUP)
        own = source_tree_lock(self._tree, lock_dir=self._temp).lock_file
        self._lock_file = own if tool in (_OURS, _UV) else self._temp / "lock"
        self._ways = _EXCLUSIVE
        self._attempts: list[Attempt] = []

    def _start(
        self, seconds: float, *prefix: str, temp: Path | None = None, fork: bool = False
    ) -> Attempt:
        """A process that tries for so many seconds, if the tool has a limit."""
        mark = self._work / f"mark-{len(self._attempts)}"
        if self._tool == _UV:
            command = [sys.executable, *_UV_BUILD, f"{self._work}/out", str(self._tree)]
        elif self._tool == _FLOCK:
            body = f"{'sleep 20 & ' * fork} touch {mark}; sleep 1000"
            kind = "-s" if self._ways is _SHARED else "-x"
            command = ["flock", kind, "-w", str(seconds), str(self._lock_file), "sh", "-c", body]
        else:
            script = _SCRIPT.format(self._ways[self._tool])
            arguments = map(str, (self._tree, self._lock_file, mark, seconds, fork))
            command = [sys.executable, "-c", script, *arguments]
        environ = {**os.environ, "TMPDIR": str(temp or self._temp), "MARK": str(mark)}
        self._attempts.append(Attempt([*prefix, *command], mark, environ))
        return self._attempts[-1]

    def _hold(self, *prefix: str, fork: bool = False) -> subprocess.Popen[bytes]:
        holder = self._start(60.0, *prefix, fork=fork)
        assert holder.gets_in(60.0), f"{self._tool} does not get in: {holder.output()}"
        return holder.process

    def _others_are_out(self, *prefix: str, temp: Path | None = None) -> bool:
        return not self._start(1.0, *prefix, temp=temp).gets_in(10.0)

    def kept_out(self) -> bool:
        self._hold()
        return self._others_are_out()

    def other_tmpdir(self) -> bool:
        self._hold()
        return self._others_are_out(temp=Path(tempfile.mkdtemp(dir=self._work)))

    def file_deleted(self) -> bool:
        self._hold()
        self._lock_file.unlink()
        return self._others_are_out()

    def forked_child(self) -> bool:
        holder = self._hold(fork=True)
        holder.kill()
        holder.wait()
        return not self._others_are_out()

    def no_polling(self) -> bool:
        self._hold()
        trace = self._work / "trace"
        self._start(3.0, *f"strace -f -qq -e trace=flock,fcntl -o {trace}".split()).gets_in(60.0)
        tries = len(re.findall(r"LOCK_EX|F_SETLK", trace.read_text()))
        return tries < 9  # it may look who holds; what polls tries at least four times a second

    def pid_told(self) -> bool:
        self._ways = _PID
        holder, waiter = self._hold(), self._start(1.0)
        waiter.gets_in(5.0)
        return str(holder.pid) in waiter.output()

    def no_link_followed(self) -> bool:
        private = self._work / "private"
        private.touch()
        before = private.stat().st_mtime_ns
        self._lock_file.symlink_to(private)
        return self._others_are_out() and private.stat().st_mtime_ns == before

    def any_user(self) -> bool:
        self._hold()
        return self._lock_file.stat().st_mode & 0o777 == 0o666

    def shared(self) -> bool:
        self._ways = _SHARED
        self._hold()
        return self._start(5.0).gets_in(10.0)

    def no_flock(self) -> bool:
        first = self._start(5.0, *_NO_FLOCK)
        return first.gets_in(10.0) and self._others_are_out(*_NO_FLOCK)

    def close(self) -> None:
        for attempt in self._attempts:
            with suppress(ProcessLookupError):
                os.killpg(attempt.process.pid, signal.SIGKILL)
            attempt.process.wait()


#: For each question, what answers it, for which tools it does not arise, and which lack the lock.
_QUESTIONS = {
    "another process is kept out": (Corner.kept_out, [], []),
    # The others lock the file that they are given, wherever it is.
    "also one with another `TMPDIR`": (Corner.other_tmpdir, _TOOLS[2:], []),
    "also when the lock file is deleted": (Corner.file_deleted, [], []),
    # uv runs no Python code of yours, and its limit is fixed.
    "a forked child keeps nothing when its parent is killed": (Corner.forked_child, [_UV], []),
    "a wait with a timeout does not poll": (Corner.no_polling, [_UV], []),
    "a process that is kept out learns the holder's pid": (Corner.pid_told, [], []),
    "a symbolic link in place of the lock file is not followed": (Corner.no_link_followed, [], []),
    "any user can lock the file, whatever the umask": (Corner.any_user, [], []),
    "shared locks: many readers at once": (Corner.shared, [], [_OURS, _UV]),
    "locks where `flock` is missing": (Corner.no_flock, [], []),
}
#: By their release histories and the configurations of their CI, read in November 2026.
_BY_READING = [
    ["tested on Windows by its makers", "under Wine", "yes", "yes", "yes", "yes", ""],
    ["tested on macOS by its makers", "**no**", "yes", "yes", "yes", "yes", ""],
    ["released since", "not yet", "2024", "2014", "2011", "2015", "2003"],
]


def _answer(question: str, tool: str) -> str:
    answer, not_for, lack_it = _QUESTIONS[question]
    if tool in not_for or tool in lack_it:
        return "**no**" if tool in lack_it else ""
    with tempfile.TemporaryDirectory() as directory:
        corner = Corner(tool, Path(directory))
        try:
            return "yes" if answer(corner) else "**no**"
        finally:
            corner.close()


def run(*, quick: bool) -> Section:
    told = subprocess.run(["flock", "-V"], capture_output=True, text=True, check=True).stdout
    versions = [told.split()[-1] if each == _FLOCK else metadata.version(each) for each in _TOOLS]
    umask = os.umask(0o077)
    rows = []
    with progress("comparison", len(_QUESTIONS)) as step, ThreadPoolExecutor() as threads:
        for question in _QUESTIONS:
            rows.append([question, *threads.map(partial(_answer, question), _TOOLS)])
            step()
    os.umask(umask)
    section = Section()
    columns = ["", *map(" ".join, zip(_TOOLS, versions, strict=True))]
    section.table("Linux; but for the last three rows, found out by running:", columns, rows)
    section.tables[0][2].extend(_BY_READING)
    return section
