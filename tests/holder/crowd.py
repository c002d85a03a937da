"""Holders of every kind, and lock files that say anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from support import stop_for_good

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
root_only = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts and namespaces, as root"
)

#: Waits for a tree and tells for which holder, after what is logged. Arguments: the tree.
WAIT = """
    import logging
    from source_tree_lock import source_tree_lock
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
    with source_tree_lock(sys.argv[1], on_wait=lambda wait: tell("for", wait.holder)):
        tell("entered")
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
