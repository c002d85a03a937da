"""Holders of every kind, and lock files that say anything."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import Child

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

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
#: Becomes another program, and so keeps the pipes and the pid. Arguments: the command.
BECOMES = "import os; os.execvp(sys.argv[1], sys.argv[1:])"


def awaited_holder(tree: Path) -> Holder | None:
    """The holder that a wait names: in `on_wait`, in the error and when it looks."""
    waits: list[Wait] = []
    timeout = 0.02
    while not waits:  # on a busy machine, the first attempt alone takes longer
        with pytest.raises(LockTimeout) as caught:
            source_tree_lock(tree, timeout=timeout, on_wait=waits.append).acquire()
        timeout *= 2
    looked = source_tree_lock(tree).holder()
    assert looked == waits[0].holder == caught.value.holder
    return looked


@contextmanager
def flock_1(lock_file: Path, *options: str) -> Iterator[int]:
    """flock(1) holds a file until the end of the block; its pid."""
    lock_file.touch()
    command = ("sh", "-c", "echo held; exec cat")
    with Child(BECOMES, "flock", "--close", *options, lock_file, *command) as child:
        child.expect("held")
        yield child.pid


def record_of(lock_file: Path) -> dict[str, object]:
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
