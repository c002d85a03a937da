"""What each lock does in the corners that builds meet, found out by running it.

`python benchmarks/comparison.py` prints the table of the README and writes it to
benchmarks/results/comparison.md. Linux, with strace and flock(1); needs the extra `bench`.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

LIMIT = 60.0
RESULTS = Path(__file__).parent / "results" / "comparison.md"

#: How each library holds the tree `tree` for the body of a `with`, at most `seconds` waiting;
#: `path` is the lock file that the others are given.
WAYS = {
    "source-tree-lock": "from source_tree_lock import source_tree_lock\n"
    "def lock(seconds): return source_tree_lock(tree, timeout=seconds)",
    "filelock": "import filelock\n"
    "def lock(seconds): return filelock.FileLock(path, timeout=-1 if seconds is None else seconds)",
    "portalocker": "import portalocker\n"
    "def lock(seconds): return portalocker.Lock(path, timeout=1e9 if seconds is None else seconds)",
    "fasteners": "import fasteners, contextlib\n"
    "@contextlib.contextmanager\n"
    "def lock(seconds):\n"
    "    it = fasteners.InterProcessLock(path)\n"
    "    if not it.acquire(timeout=seconds): raise TimeoutError('timed out')\n"
    "    try: yield\n"
    "    finally: it.release()",
}
HOLD = """
import sys, os, time
tree, path = sys.argv[1:3]
{way}
with lock(None):
    {body}
    print("held", flush=True)
    sys.stdin.readline()
"""
FORK = "0 if os.fork() else (os.close(0), os.close(1), os.close(2), time.sleep(20), os._exit(0))"
TRY = """
import sys
tree, path = sys.argv[1:3]
{way}
try:
    with lock({seconds}): print("in")
except BaseException as error:
    print("out", error)
"""
SETUP = """
import os, sys
from setuptools import setup
if "bdist_wheel" in sys.argv and "HOLD" in os.environ:
    open(os.environ["HOLD"] + ".held", "w").close()
    open(os.environ["HOLD"] + ".go").read()
setup(name="sample", version="1", py_modules=[])
"""


class Bench:
    """One tree, one lock directory, and processes that hold or try."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.tree = directory / "tree"
        self.tree.mkdir()
        (self.tree / "setup.py").write_text(SETUP)
        self.temp = directory / "temp"
        self.temp.mkdir()
        self.holders: list[subprocess.Popen[str]] = []

    @property
    def lock_file(self) -> Path:
        own = self.name in ("source-tree-lock", "uv")
        if not own:
            return self.temp / "sample.lock"
        from source_tree_lock import source_tree_lock

        return source_tree_lock(self.tree, lock_dir=self.temp).lock_file

    def start(
        self, script: str, temp: Path | None = None, umask: int = 0o022
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(self.tree), str(self.lock_file)],
            env={**os.environ, "TMPDIR": str(temp or self.temp)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            umask=umask,
            start_new_session=True,
        )

    def hold(self, body: str = "pass", umask: int = 0o022) -> subprocess.Popen[str]:
        if self.name == "uv":
            return self._hold_by_uv()
        if self.name == "flock(1)":
            command = (
                "echo held; read line"
                if body == "pass"
                else "sleep 20 >&- <&- & echo held; read line"
            )
            process = subprocess.Popen(
                ["flock", str(self.lock_file), "sh", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                umask=umask,
                start_new_session=True,
            )
        else:
            process = self.start(HOLD.format(way=WAYS[self.name], body=body), umask=umask)
        self.holders.append(process)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], LIMIT)
        assert ready, f"{self.name} told nothing"
        assert process.stdout.readline() == "held\n", f"{self.name} does not hold"
        return process

    def uv(self, temp: Path, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "uv",
                "build",
                "--wheel",
                "--no-build-isolation",
                "--offline",
                str(self.tree),
                "-o",
                str(self.directory / "out"),
            ],
            env={**os.environ, "TMPDIR": str(temp), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.holders.append(process)
        return process

    def _hold_by_uv(self) -> subprocess.Popen[str]:
        mark = self.directory / "mark"
        go = Path(f"{mark}.go")
        if not go.exists():
            os.mkfifo(go)
        process = self.uv(self.temp, HOLD=str(mark))
        wait_for(Path(f"{mark}.held").exists)
        return process

    def gets_in(self, seconds: float = 1.0, temp: Path | None = None) -> bool:
        """Whether another process gets in while the tree is held."""
        if self.name == "uv":
            try:
                return self.uv(temp or self.temp).wait(10) == 0
            except subprocess.TimeoutExpired:
                return False
        if self.name == "flock(1)":
            return (
                subprocess.run(["flock", "-w", str(seconds), self.lock_file, "true"]).returncode
                == 0
            )
        return self.try_for(seconds, temp).startswith("in")

    def try_for(self, seconds: float, temp: Path | None = None) -> str:
        process = self.start(TRY.format(way=WAYS[self.name], seconds=seconds), temp)
        return process.communicate(timeout=LIMIT)[0]

    def close(self) -> None:
        for process in self.holders:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(LIMIT)


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def another_is_kept_out(bench: Bench) -> bool:
    bench.hold()
    return not bench.gets_in()


def also_with_another_tmpdir(bench: Bench) -> bool | None:
    if bench.name not in ("source-tree-lock", "uv"):
        return None  # it locks the file that it is given
    bench.hold()
    other = bench.directory / "other"
    other.mkdir()
    return not bench.gets_in(temp=other)


def also_when_the_lock_file_is_deleted(bench: Bench) -> bool:
    bench.hold()
    bench.lock_file.unlink()
    return not bench.gets_in()


def a_forked_child_keeps_nothing(bench: Bench) -> bool | None:
    if bench.name == "uv":
        return None  # it does not run Python code of yours
    holder = bench.hold(FORK)
    holder.kill()
    holder.wait(LIMIT)
    return bench.gets_in(2.0)


def a_timeout_waits_without_polling(bench: Bench) -> bool | None:
    if bench.name == "uv":
        return None  # its limit is fixed, after which it goes on without the lock
    bench.hold()
    trace = bench.directory / "trace"
    if bench.name == "flock(1)":
        command = ["flock", "-w", "3", str(bench.lock_file), "true"]
    else:
        script = TRY.format(way=WAYS[bench.name], seconds=3)
        command = [sys.executable, "-c", script, str(bench.tree), str(bench.lock_file)]
    environ = {**os.environ, "TMPDIR": str(bench.temp)}
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=flock,fcntl", "-o", trace, *command],
        env=environ, stdout=subprocess.DEVNULL, timeout=LIMIT,
    )  # fmt: skip
    return len(re.findall(r"LOCK_EX|F_SETLK", trace.read_text())) <= 4


def who_holds_it_is_told(bench: Bench) -> bool:
    holder = bench.hold()
    if bench.name == "uv":
        waiter = bench.uv(bench.temp)
        time.sleep(3)
        os.killpg(waiter.pid, signal.SIGKILL)
        assert waiter.stdout is not None
        return str(holder.pid) in waiter.stdout.read()
    if bench.name == "flock(1)":
        command = ["flock", "-w", "1", str(bench.lock_file), "true"]
        done = subprocess.run(command, capture_output=True, text=True)
        return str(holder.pid) in done.stdout + done.stderr
    return str(holder.pid) in bench.try_for(1.0)


def a_symbolic_link_is_not_followed(bench: Bench) -> bool:
    private = bench.directory / "private"
    private.write_text("private")
    before = private.stat().st_mtime_ns
    bench.lock_file.symlink_to(private)
    return not bench.gets_in() and private.stat().st_mtime_ns == before


def another_user_can_lock_it(bench: Bench) -> bool:
    if bench.name == "uv":
        os.umask(0o077)
    try:
        bench.hold(umask=0o077)
    finally:
        os.umask(0o022)
    return stat.S_IMODE(bench.lock_file.stat().st_mode) == 0o666


CORNERS = {
    "another process is kept out": another_is_kept_out,
    "also one with another `TMPDIR`": also_with_another_tmpdir,
    "also when the lock file is deleted": also_when_the_lock_file_is_deleted,
    "a forked child keeps nothing when its parent is killed": a_forked_child_keeps_nothing,
    "a wait with a timeout does not poll": a_timeout_waits_without_polling,
    "a waiter is told the holder's pid": who_holds_it_is_told,
    "a symbolic link in place of the lock file is not followed": a_symbolic_link_is_not_followed,
    "any user can lock the file, whatever the umask": another_user_can_lock_it,
}
TOOLS = ("source-tree-lock", "uv", "filelock", "portalocker", "fasteners", "flock(1)")


def version(name: str) -> str:
    if name == "flock(1)":
        return subprocess.run(["flock", "-V"], capture_output=True, text=True).stdout.split()[-1]
    return importlib.metadata.version(name)


def main() -> None:
    rows = [
        "| | " + " | ".join(f"{name} {version(name)}" for name in TOOLS) + " |",
        "| --- |" + " --- |" * len(TOOLS),
    ]
    for corner, probe in CORNERS.items():
        cells = []
        for name in TOOLS:
            with tempfile.TemporaryDirectory() as directory:
                bench = Bench(name, Path(directory))
                try:
                    answer = probe(bench)
                finally:
                    bench.close()
            cells.append({True: "yes", False: "**no**", None: ""}[answer])
        rows.append(f"| {corner} | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
