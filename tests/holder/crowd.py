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
from support import Child, stop_for_good, unshared, wait_until

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock

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
#: Waits for a tree and tells for which holder, after what is logged. Arguments: the tree.
WAIT = """
    import logging
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
    with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("for", wait.holder)):
        tell("entered")
"""
#: Enters a tree and becomes another program: its record stays, and its pid lives. Arguments: the
#: tree, the lock directory.
BECOMES_ANOTHER = """
    import os
    from source_tree_lock import source_tree_lock
    lock = source_tree_lock(sys.argv[1], lock_dir=sys.argv[2])
    lock.acquire()
    os.execvp("sh", ["sh", "-c", "echo other; read line"])
"""


def awaited_holder(tree: Path) -> Holder | None:
    """The holder that a wait names: in `on_wait`, in the error and when it looks."""
    waits: list[Wait] = []
    timeout = 0.02
    while not waits:  # on a busy machine, the first attempt alone takes longer
        with pytest.raises(LockTimeout) as caught:
            source_tree_lock(tree, timeout=timeout, on_wait=waits.append).acquire()
        timeout *= 2
    [wait] = waits
    looked = source_tree_lock(tree).holder()
    assert looked == wait.holder == caught.value.holder
    return looked


@contextmanager
def flock_1(lock_file: Path, *options: str) -> Iterator[int]:
    """flock(1) holds a file until the end of the block; its pid."""
    lock_file.touch()
    command = ["flock", *options, str(lock_file), "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process.pid
        finally:
            stop_for_good(process)


def record_of(lock_file: Path) -> dict[str, object]:
    """What the lock file says (POSIX)."""
    found = json.loads(lock_file.read_bytes()[:512])
    assert isinstance(found, dict)
    return found


def a_record(**changes: object) -> bytes:
    """The record of this very process, but for some changes."""
    fields = {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "user": str(os.geteuid()),
        "program": "build",
        "since": time.time(),
        "token": "ab" * 16,
        **changes,
    }
    return json.dumps({name: value for name, value in fields.items() if value != "absent"}).encode()


#: What unshare(1) needs for pids of one's own.
OWN_PIDS = ("--pid", "--fork", "--kill-child", "--mount-proc")


@contextmanager
def on_host(name: str, script: str, *arguments: object) -> Iterator[Child]:
    """A process on a host of this name with pids of its own, which shares all files."""
    rename = f'hostname {name}; exec "$@"'
    prefix = (*unshared("--uts", *OWN_PIDS), "sh", "-c", rename, "sh")
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
