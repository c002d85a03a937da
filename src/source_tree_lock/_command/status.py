"""``source-tree-lock status``: who holds a tree, who waits for it, and what to do."""

from __future__ import annotations

import errno
import json
import os
import time

from .._holder.holder import Holder
from .._holder.proc_locks import kernel_holders, waiters
from .._holder.processes import as_name, has_locked, host, line_of_descent, program_of
from .._lock import SourceTreeLock, source_tree_lock
from .._system import PROC
from .messages import HELD, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from .._kernel_lock import Identity
    from .options import Options

#: TASK_COMM_LEN in the kernel's <linux/sched.h>, less the NUL byte at the end.
_KEPT: Final = 15


def status(options: Options) -> int:
    """Print how it is with the tree; 0 if it is free, 1 if it is held.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such tree, or no such lock directory.
        LockUnavailable: it cannot be told.
    """
    if options.lock_dir is not None and not os.path.isdir(options.lock_dir):
        # Nobody holds anything by it, but "free" would be no answer to a slip of the pen.
        raise FileNotFoundError(errno.ENOENT, "no such lock directory", options.lock_dir)
    lock = source_tree_lock(options.tree, lock_dir=options.lock_dir)
    is_held = lock.is_held()
    holder = lock.holder() or _heir(lock) if is_held else None
    facts = {
        "tree": str(lock.tree),
        "lock_file": str(lock.lock_file),
        "held": is_held,
        "holder": _facts_of(holder),
        "waiters": [
            {"pid": pid, "program": _program(pid), "working_directory": _working_directory(pid)}
            for pid in _waiting_for(lock)
        ],
        "advice": _advice(holder) if is_held else None,
    }
    if options.is_json:
        print(json.dumps(facts))
    else:
        print("\n".join(_lines(facts, holder)))
    return HELD if is_held else 0


def _facts_of(holder: Holder | None) -> dict[str, object] | None:
    if holder is None:
        return None
    facts = {name: getattr(holder, name) for name in ("pid", "program", "host", "since")}
    where = None if holder._is_foreign else _working_directory(holder.pid)
    return {**facts, "working_directory": where}


def _program(pid: int) -> str | None:
    """The name of a program: the kernel keeps its first 15 bytes, the words of its start all."""
    name = program_of(pid)
    if name is not None and len(name) == _KEPT:
        try:
            with open(f"{PROC}/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            return name
        for word in map(os.path.basename, words[:2]):  # a script is behind its interpreter
            if word.startswith(name.encode()):
                return as_name(word.decode("utf-8", "replace"))
    return name


def _working_directory(pid: int) -> str | None:
    try:
        return os.readlink(f"{PROC}/{pid}/cwd") if PROC else None
    except OSError:
        return None  # it has ended, or is another user's


def _inodes_of(lock: SourceTreeLock) -> list[Identity]:
    """Of the tree and of the lock file."""
    inodes: list[Identity] = []
    for path in (lock.tree, lock.lock_file):
        try:
            found = os.lstat(path)
        except OSError:
            continue  # nobody has made the lock file
        inodes.append((found.st_dev, found.st_ino))
    return inodes


def _heir(lock: SourceTreeLock) -> Holder | None:
    """Who inherited the lock of a process that has ended: the command of a killed `run`, say."""
    for inode in kernel_holders(*_inodes_of(lock)):
        for pid in sorted(int(name) for name in os.listdir(PROC) if name.isdecimal()):
            if has_locked(pid, inode):
                return Holder(pid, _program(pid), host())
    return None


def _waiting_for(lock: SourceTreeLock) -> list[int]:
    """The processes that wait, as far as the kernel lists them; the next to get in first."""
    inodes = _inodes_of(lock)
    named = kernel_holders(*inodes)
    pids = [pid for inode in inodes for pid in waiters(inode)]
    if len(named) == 2:
        tree, file = (named[inode] for inode in inodes)
        # Who has the lock file alone is the next, unless it is a uv that holds it for its child.
        if file not in line_of_descent(tree):
            pids.insert(0, file)
    return list(dict.fromkeys(pids))


def _advice(holder: Holder | None) -> str:
    if holder is None:
        return (
            "Wait until it is done. To find out who it is, ask on the other hosts and in the "
            "containers that share the tree."
        )
    where = " where it runs" if holder._is_foreign else f" (kill {holder.pid})"
    return f"To end the wait, end pid {holder.pid}{where}, or wait until it is done."


def _lines(facts: dict[str, Any], holder: Holder | None) -> list[str]:
    tree = shown(facts["tree"])
    last = [f"lock file: {shown(facts['lock_file'])}"]
    if not facts["held"]:
        return [f"{tree}: free", *last]
    lines = [f"{tree}: held by {shown(holder or 'an unknown process')}"]
    if holder is not None:
        if holder.since is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
            lines.append(f"since: {since}")
        where = facts["holder"]["working_directory"]
        if where is not None:
            lines.append(f"working directory: {shown(where)}")
    if facts["waiters"]:
        lines.append("waiting, in this order:")
        lines += [f"  {each['program'] or '?'} (pid {each['pid']})" for each in facts["waiters"]]
    return [*lines, *last, facts["advice"]]
