"""``source-tree-lock status``: which process holds a tree, which wait for it, and what to do."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from argparse import Namespace
from contextlib import suppress
from typing import Any

from .._holder import Holder, printable
from .._lock import SourceTreeLock
from .._proc import flocks, identity_at, key_of, program_of
from .._system import END_COMMAND, PROC, user_id, user_name
from .output import HELD


def status(options: Namespace) -> int:
    """Print the state of a tree; return 0 if it is free, 1 if it is held.

    Args:
        options: `tree`; `lock_dir`, ``None`` for the default; `json`, to print one JSON object.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such tree, or no such lock directory.
        LockUnavailable: the state cannot be told.
    """
    if options.lock_dir is not None and not os.path.isdir(options.lock_dir):
        # No lock is held there, but "free" would be no answer to a misspelt path.
        raise FileNotFoundError(errno.ENOENT, "no such lock directory", options.lock_dir)
    lock = SourceTreeLock(options.tree, lock_dir=options.lock_dir)
    is_held = lock.locked()
    holder = lock.holder() if is_held else None
    facts = {
        "tree": str(lock.tree),
        "lock_file": str(lock.lock_file),
        "held": is_held,
        "holder": None if holder is None else _facts_of(holder),
        "waiters": [
            {
                "pid": pid,
                "program": program_of(pid),
                "working_directory": _directory_of(pid),
            }
            for pid in _waiting_for(lock)
        ],
        "advice": _advice(holder) if is_held else None,
    }
    text = json.dumps(facts) if options.json else "\n".join(_in_words(facts, holder))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return HELD if is_held else 0


def _facts_of(holder: Holder) -> dict[str, object]:
    facts = {name: getattr(holder, name) for name in ("pid", "program", "user", "host", "since")}
    directory = _directory_of(holder.pid) if holder.is_local else None
    return {**facts, "stopped": holder.is_stopped, "working_directory": directory}


def _directory_of(pid: int) -> str | None:
    with suppress(OSError):  # it has ended, or belongs to another user
        return os.readlink(f"{PROC}/{pid}/cwd")
    return None


def _waiting_for(lock: SourceTreeLock) -> list[int]:
    """Return the processes that wait, as far as the kernel lists them, in their order.

    A process that has the lock file already waits for the tree, and is the next one.
    """
    waiting = [each for each in flocks() if each.is_waiting]
    found = [identity_at(str(path)) for path in (lock.tree, lock.lock_file)]
    # Nothing waits, and no key can be made, where the system lists no locks.
    keys = [key_of(each) for each in found if waiting and each is not None]
    return list(dict.fromkeys(each.pid for key in keys for each in waiting if each.key == key))


def _advice(holder: Holder | None) -> str:
    """Return what the user who asks can do about a wait."""
    if holder is None:
        return (
            "Wait until it is done. The process may run on another host or in another container, "
            "or may have ended and left the lock to a child."
        )
    pid, user = holder.pid, holder.user
    end, let = f"end pid {pid} ({END_COMMAND} {pid})", "Let"
    if not holder.is_local:
        end = f"end pid {pid} where it runs"
    elif user not in (None, user_name(user_id())) and user_id() != "0":
        end, let = f"ask {user} to end pid {pid}", f"Ask {user} to let"
    with suppress(ProcessLookupError):  # it has just ended
        if holder.is_stopped:
            # Ctrl-Z stops a whole job: the holder alone would wait for its children.
            resume = f"fg in its terminal, or kill -CONT -{os.getpgid(pid)}"
            return f"It is stopped. {let} it go on: {resume}"
    return f"To end the wait, {end}, or wait until it is done."


def _in_words(facts: dict[str, Any], holder: Holder | None) -> list[str]:
    tree, lock_file = printable(facts["tree"]), printable(facts["lock_file"])
    if not facts["held"]:
        return [f"{tree}: free", f"lock file: {lock_file}"]
    words = [f"{tree}: held by {holder or 'an unknown process'}"]
    known: dict[str, Any] = facts["holder"] or {}
    if since := known.get("since"):
        words.append(f"since: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}")
    if directory := known.get("working_directory"):
        words.append(f"working directory: {printable(directory)}")
    if facts["waiters"]:
        words.append("waiting, in this order:")
        words += [f"  {each['program'] or '?'} (pid {each['pid']})" for each in facts["waiters"]]
    return [*words, f"lock file: {lock_file}", facts["advice"]]
