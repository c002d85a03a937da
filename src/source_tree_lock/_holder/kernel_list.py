"""Who holds an flock, by the kernel's own list: ``/proc/locks`` (proc_locks(5), Linux)."""

from __future__ import annotations

import os

from .._kernel_lock import Identity
from .._system import PROC

#: How often to look for a lock in a list that changes. The kernel gives a page at a time, or less
#: where a lock with all that wait for it needs more, and a lock that is released between two pages
#: has the next one overlooked (seq_file). Of 2,000 single looks at a busy list, 2 to 88 overlooked
#: a lock that was held.
_LOOKS = 10


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
    if not PROC:
        return {}
    wanted = {
        b"%02x:%02x:%d" % (os.major(device), os.minor(device), inode): (device, inode)
        for device, inode in identities
    }
    found: dict[Identity, int] = {}
    before = None
    try:
        for _ in range(_LOOKS):
            # As bytes: a codec that is not loaded yet needs a descriptor, and may not get one.
            with open(f"{PROC}/locks", "rb") as file:
                text = file.read()
            for line in text.splitlines():
                fields = line.split(None, 6)
                identity = wanted.get(fields[5]) if fields[1] == b"FLOCK" else None
                if identity is not None and int(fields[4]) > 0:
                    found[identity] = int(fields[4])
            if len(found) == len(wanted) or text == before:
                break
            before = text
    except OSError:
        pass  # no Linux, or no /proc
    return found
