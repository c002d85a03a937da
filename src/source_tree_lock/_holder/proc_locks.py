"""Who holds an flock, by the kernel's own list: ``/proc/locks`` (proc_locks(5), Linux)."""

from __future__ import annotations

import os

from .._system import PROC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .._kernel_lock import Identity

#: Device and inode as the kernel writes them.
Key = bytes
#: Whether it is only waited for, what it is on, and the process.
Flock = tuple[bool, Key, int]

#: How often to look for a lock in a list that changes. The kernel gives a page at a time, or less
#: where a lock with all that wait for it needs more, and a lock that is released between two pages
#: has the next one overlooked (seq_file). Of 2,000 single looks at a busy list, 2 to 88 overlooked
#: a lock that was held; and of 3,000 readings that ended with the same list twice, up to 6.
_LOOKS = 10
#: A list shorter than this comes in one piece, in bytes: half of the smallest page.
_ONE_PIECE = 2048


def is_readable() -> bool:
    """Whether there is such a list."""
    return bool(PROC) and os.access(f"{PROC}/locks", os.R_OK)


def kernel_holder(identity: Identity) -> int | None:
    """The process that the kernel names as holder of an flock; ``None`` where it says nothing.

    It names whoever made the call, even after that process has died and left the lock to a
    child. Device and inode must both agree: on btrfs and overlayfs, stat(2) tells another
    device than /proc/locks, and an inode number alone would hit strangers.
    """
    return kernel_holders(identity).get(identity)


def kernel_holders(*identities: Identity) -> dict[Identity, int]:
    """What `kernel_holder` says of each, at one look where one will do."""
    wanted = {key_of(identity): identity for identity in identities}
    found: dict[Identity, int] = {}

    def names_all(flocks: list[Flock]) -> bool:
        for is_waiting, key, pid in flocks:
            if not is_waiting and key in wanted and pid > 0:
                found[wanted[key]] = pid
        return len(found) == len(wanted)

    flocks(names_all)
    return found


def waiters(identity: Identity) -> list[int]:
    """The processes that wait for an flock in the kernel's queue, the first of them first.

    Those that ask again and again stand in no queue. A process that waits more than once is listed
    once.
    """
    wanted = key_of(identity)
    found = [pid for is_waiting, key, pid in flocks() if is_waiting and key == wanted and pid > 0]
    return list(dict.fromkeys(found))


def flocks(is_enough: Callable[[list[Flock]], bool] = lambda _: False) -> list[Flock]:
    """All flocks, read again and again until `is_enough`, or a short list is the same twice.

    No generator: one that is left half-way is closed wherever it is collected, and what a signal
    handler raises there is lost.
    """
    found: list[Flock] = []
    before = None
    for _ in range(_LOOKS if PROC else 0):
        try:
            # As bytes: a codec that is not loaded yet needs a descriptor, and may not get one.
            with open(f"{PROC}/locks", "rb") as file:
                text = file.read()
        except OSError:
            break  # no Linux, or no /proc
        found = [flock for line in text.splitlines() for flock in _flock_in(line)]
        if is_enough(found) or (text == before and len(text) < _ONE_PIECE):
            break
        before = text
    return found


def key_of(identity: Identity) -> Key:
    """Device and inode as the kernel writes them; empty where there is no such list."""
    if not PROC:
        return b""
    device, inode = identity
    return b"%02x:%02x:%d" % (os.major(device), os.minor(device), inode)


def _flock_in(line: bytes) -> list[Flock]:
    """What a line tells of an flock: "1: FLOCK ADVISORY WRITE 4242 00:1f:9001 0 EOF"."""
    fields = line.split(None, 7)
    is_waiting = fields[1] == b"->"  # under the lock that is in the way
    kind, _, _, pid, key = fields[1 + is_waiting : 6 + is_waiting]
    return [(is_waiting, key, int(pid))] if kind == b"FLOCK" else []
