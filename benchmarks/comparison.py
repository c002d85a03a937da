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
from collections.abc import Callable
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
    **_EXCLUSIVE,
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


class Corner:
    """One tree, one lock directory, and a question to one tool."""

    def __init__(self, tool: str, work: Path) -> None:
        self.tool, self.work, self.tree, self.temp = tool, work, work / "tree", work / "temp"
        self.tree.mkdir()
        self.temp.mkdir()
        (self.tree / "setup.py").write_text(_SETUP)
        own = source_tree_lock(self.tree, lock_dir=self.temp).lock_file
        self.lock_file = own if tool in (_OURS, _UV) else self.temp / "lock"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.output = ""

    def gets_in(
        self,
        seconds: float = 1.0,
        *prefix: str,
        temp: str = "temp",
        ways: dict[str, str] = _EXCLUSIVE,
        fork: bool = False,
    ) -> bool:
        """Whether a process gets in that tries for so many seconds, if the tool has a limit."""
        mark = self.work / f"mark-{len(self.processes)}"
        if self.tool == _UV:
            command = [sys.executable, *_UV_BUILD, f"{self.work}/out", str(self.tree)]
        elif self.tool == _FLOCK:
            body = f"{'sleep 20 & ' * fork} touch {mark}; sleep 1000"
            kind = "-s" if ways is _SHARED else "-x"
            command = ["flock", kind, "-w", str(seconds), str(self.lock_file), "sh", "-c", body]
        else:
            script = _SCRIPT.format(ways[self.tool])
            arguments = map(str, (self.tree, self.lock_file, mark, seconds, fork))
            command = [sys.executable, "-c", script, *arguments]
        environ = {**os.environ, "TMPDIR": str(self.work / temp), "MARK": str(mark)}
        output = mark.with_suffix(".output")
        with output.open("wb") as out:
            files = {"stdout": out, "stderr": out}
            process = subprocess.Popen(
                [*prefix, *command], env=environ, start_new_session=True, **files
            )
        self.processes.append(process)
        deadline = time.monotonic() + seconds + 9
        while time.monotonic() < deadline and process.poll() is None and not mark.exists():
            time.sleep(0.01)
        self.output = output.read_text()
        return mark.exists()

    def is_held(self, *prefix: str, ways: dict[str, str] = _EXCLUSIVE, fork: bool = False) -> bool:
        """Hold the tree."""
        assert self.gets_in(60.0, *prefix, ways=ways, fork=fork), f"{self.tool}: {self.output}"
        return True

    def other_tmpdir(self) -> bool:
        (self.work / "other").mkdir()
        return self.is_held() and not self.gets_in(temp="other")

    def file_deleted(self) -> bool:
        self.is_held()
        self.lock_file.unlink()
        return not self.gets_in()

    def forked_child(self) -> bool:
        self.is_held(fork=True)
        self.processes[0].kill()
        self.processes[0].wait()
        return self.gets_in()

    def no_polling(self) -> bool:
        self.is_held()
        trace = self.work / "trace"
        self.gets_in(3.0, *f"strace -f -qq -e trace=flock,fcntl -o {trace}".split())
        tries = len(re.findall(r"LOCK_EX|F_SETLK", trace.read_text()))
        return tries < 9  # it may look who holds; what polls tries at least four times a second

    def pid_learned(self) -> bool:
        self.is_held(ways=_PID)
        return not self.gets_in(ways=_PID) and str(self.processes[0].pid) in self.output

    def no_link_followed(self) -> bool:
        private = self.work / "private"
        private.touch()
        before = private.stat().st_mtime_ns
        self.lock_file.symlink_to(private)
        return not self.gets_in() and private.stat().st_mtime_ns == before

    def any_user(self) -> bool:
        return self.is_held() and self.lock_file.stat().st_mode & 0o777 == 0o666

    def no_flock(self) -> bool:
        return self.gets_in(5.0, *_NO_FLOCK) and not self.gets_in(1.0, *_NO_FLOCK)

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


#: For each question, what answers it, and for which tools it does not arise.
_QUESTIONS: dict[str, tuple[Callable[[Corner], bool], list[str]]] = {
    "another process is kept out": (lambda it: it.is_held() and not it.gets_in(), []),
    # The others lock the file that they are given, wherever it is.
    "also one with another `TMPDIR`": (Corner.other_tmpdir, _TOOLS[2:]),
    "also when the lock file is deleted": (Corner.file_deleted, []),
    # uv runs no Python code of yours, and its limit is fixed.
    "a forked child keeps nothing when its parent is killed": (Corner.forked_child, [_UV]),
    "a wait with a timeout does not poll": (Corner.no_polling, [_UV]),
    "a process that is kept out learns the holder's pid": (Corner.pid_learned, []),
    "a symbolic link in place of the lock file is not followed": (Corner.no_link_followed, []),
    "any user can lock the file, whatever the umask": (Corner.any_user, []),
    "shared locks: many readers at once": (
        lambda it: it.is_held(ways=_SHARED) and it.gets_in(ways=_SHARED),
        [],
    ),
    "locks where `flock` is missing": (Corner.no_flock, []),
}
#: By their release histories and the configurations of their CI, read in November 2026.
_BY_READING = [
    ["tested on Windows by its makers", "under Wine", "yes", "yes", "yes", "yes", ""],
    ["tested on macOS by its makers", "**no**", "yes", "yes", "yes", "yes", ""],
    ["released since", "not yet", "2024", "2014", "2011", "2015", "2003"],
]


def _answer(question: str, tool: str) -> str:
    answer, not_for = _QUESTIONS[question]
    if tool in not_for:
        return ""
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
    with progress("comparison"), ThreadPoolExecutor() as threads:
        rows += [[each, *threads.map(partial(_answer, each), _TOOLS)] for each in _QUESTIONS]
    os.umask(umask)
    section = Section()
    columns = ["", *map(" ".join, zip(_TOOLS, versions, strict=True))]
    caption = "Linux; all but the last three rows found out by running:"
    section.table(caption, columns, rows + _BY_READING)
    return section
