"""Processes that wait for each other in a circle, by the kernel's own list (Linux).

flock(2) has no EDEADLK, but the list says who waits for whom.
"""

from __future__ import annotations

import os

from .._paths.digest import canonical_digest
from .proc_locks import Key, flocks, key_of
from .processes import flocked_paths, line_of_descent, program_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._kernel_lock import Identity


def find_circle(wanted: dict[Identity, str], ours: dict[Identity, str]) -> list[str]:
    """Who waits for whom, from the holder of what we wait for to this process.

    A process that waits speaks for each ancestor of it that holds something, as a command does
    for flock(1) and a hook for uv.

    Args:
        wanted: what we wait for, by device and inode, and what to call it.
        ours: what we hold.

    Returns:
        A sentence a process; empty if there is no circle, or none that can be seen.
    """
    listed = flocks()
    holders = {key: pid for is_waiting, key, pid in listed if not is_waiting}
    waits: dict[int, list[Key]] = {}
    for waiter, key in [(pid, key) for is_waiting, key, pid in listed if is_waiting]:
        for pid in line_of_descent(waiter):
            waits.setdefault(pid, []).append(key)
    names = {key_of(identity): name for identity, name in (*wanted.items(), *ours.items())}
    goals = {
        key_of(identity): f"this process (pid {os.getpid()}) holds {name} and waits for {awaited}"
        for identity, name in ours.items()
        for awaited in wanted.values()
    }

    def follow(key: Key, seen: frozenset[int]) -> list[str] | None:
        holder = holders.get(key)
        if holder is None or holder in seen or key in goals:
            return None
        for next_key in waits.get(holder, ()):
            rest = [goals[next_key]] if next_key in goals else follow(next_key, seen | {holder})
            if rest is not None:
                for each in (holder, holders.get(next_key, holder)):
                    names.update(_named(each, names))
                who = f"{program_of(holder) or 'a process'} (pid {holder})"
                held, awaited = names.get(key, "a lock"), names.get(next_key, "a lock")
                return [f"{who} holds {held} and waits for {awaited}", *rest]
        return None

    for identity in wanted:
        circle = follow(key_of(identity), frozenset())
        if circle:
            return circle
    return []


def _named(pid: int, known: dict[Key, str]) -> dict[Key, str]:
    """What to call that which a process has locked: the tree of a lock file, where it is known."""
    paths = flocked_paths(pid)
    trees = {canonical_digest(path): path for path in paths.values() if os.path.isdir(path)}
    found: dict[Key, str] = {}
    for identity, path in paths.items():
        digest = os.path.basename(path).rpartition("-")[2].partition(".")[0]
        found[key_of(identity)] = repr(trees.get(digest, path))
    return {key: name for key, name in found.items() if key not in known}
