"""Holders of every kind, and lock files that say anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from support import LIMIT, Child, stop_for_good, wait_until

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock
from source_tree_lock._holder import processes
from source_tree_lock._holder.processes import host
from source_tree_lock._system import RECORD_START

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
    with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("for", wait.holder)):
        tell("entered")
"""


def whom_a_wait_is_for(tree: Path) -> Holder | None:
    """Whom a waiting process names: in `on_wait`, in the error and when it looks."""
    waits: list[Wait] = []
    timeout = 0.02
    while not waits:  # on a loaded machine, the first attempt alone takes longer
        with (
            pytest.raises(LockTimeout) as caught,
            source_tree_lock(tree, timeout=timeout, on_wait=waits.append),
        ):
            pass
        timeout *= 2
    [wait] = waits
    assert wait.holder == caught.value.holder
    looked = source_tree_lock(tree).holder()
    assert looked == wait.holder
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
        "pid_namespace": processes.pid_namespace(),
        "since": time.time(),
        "token": "ab" * 16,
        **changes,
    }
    return json.dumps({name: value for name, value in fields.items() if value != "absent"}).encode()


#: What unshare(1) needs for pids of one's own.
OWN_PIDS = ("--pid", "--fork", "--kill-child", "--mount-proc")


def unshared(*options: str) -> tuple[str, ...]:
    """What gives a command that follows namespaces of its own; skips where it may not."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")
    tried = subprocess.run(["unshare", *options, "true"], capture_output=True, timeout=LIMIT)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.decode().strip()}")
    return "unshare", *options


@contextmanager
def in_another_pid_namespace(script: str, *arguments: object) -> Iterator[Child]:
    """A child that cannot see the processes of this namespace."""
    with Child(script, *arguments, prefix=unshared(*OWN_PIDS)) as child:
        yield child


@contextmanager
def on_host(name: str, script: str, *arguments: object, own_pids: bool = True) -> Iterator[Child]:
    """A process on a host of this name, which shares all its files with the others."""
    rename = f'hostname {name}; exec "$@"'
    unshare = unshared("--uts", *(OWN_PIDS if own_pids else ()))
    prefix = (*unshare, "sh", "-c", rename, "sh")
    with Child(script, *arguments, prefix=prefix) as child:
        yield child


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
