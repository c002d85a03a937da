"""Which file system a tree and its lock file are on, and whether other hosts are kept out.

Linux only: elsewhere nothing is known, and nothing is said.
"""

from __future__ import annotations

import os

from ._log import logger
from ._process import POSIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._process import Identity

#: File systems that several hosts mount, as mountinfo names them (proc_pid_mountinfo(5)).
_SHARED = frozenset(
    (
        "9p afs beegfs ceph cifs fuse.ceph fuse.ceph-fuse fuse.glusterfs fuse.juicefs fuse.mfs "
        "fuse.sshfs gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 orangefs smb3 smbfs virtiofs"
    ).split()
)
#: Options with which flock(2) excludes on this host only, as the kernel shows them: of NFS
#: (nfs(5)), Lustre (mount.lustre(8)), SMB (mount.cifs(8)), OCFS2 and GFS2, AFS, and 9p from a
#: hypervisor, which grants whatever it is asked for (QEMU's hw/9pfs, `v9fs_lock`).
_LOCAL_LOCKS = frozenset(
    (
        "local_lock=flock local_lock=all nolock localflock nobrl localflocks flock=local "
        "trans=virtio"
    ).split()
)
#: Here it excludes on this host only, whatever the options. sshfs has no such request; virtiofsd
#: leaves it to each guest's kernel; GPFS passes on fcntl(2) locks alone (filelock issue 389).
_ALWAYS_LOCAL = frozenset(("fuse.sshfs", "gpfs", "virtiofs"))

_verdicts: dict[Identity, str | None] = {}
_warned: set[Identity] = set()


class _Mount:
    """What mountinfo tells of one device.

    Attributes:
        kind: the type of its file system.
        options: the options of that file system, not of where it is mounted.
    """

    __slots__ = ("kind", "options")

    def __init__(self, kind: str, options: frozenset[str]) -> None:
        self.kind = kind
        self.options = options

    def is_shared(self) -> bool:
        """Whether other hosts mount it too."""
        return self.kind in _SHARED

    def keeps_locks_local(self) -> str | None:
        """Why its flock(2) excludes on this host only, and a way out; ``None`` if it does not."""
        if self.kind in _ALWAYS_LOCAL:
            return f"{self.kind} passes no flock on to them;"
        if local := self.options & _LOCAL_LOCKS:
            options = ", ".join(sorted(local))
            return f"its file system ({self.kind}) is mounted with {options}; mount it without, or"
        if self.kind == "beegfs" and _beegfs_keeps_locks_local():
            return "its file system (beegfs) has tuneUseGlobalFileLocks = false; turn it on, or"
        return None


_NOTHING_KNOWN = _Mount("", frozenset())


def warn_if_other_hosts_get_in(tree: str, identity: Identity, lock_file: str, device: int) -> None:
    """Warn, once for each tree, when hosts that share the tree do not share the lock.

    Args:
        tree: canonical path of the source tree.
        identity: its device and inode.
        lock_file: path of the lock file.
        device: device of the lock file.
    """
    devices = (identity[0], device)
    if devices not in _verdicts:
        _verdicts[devices] = _verdict(*devices)
    verdict = _verdicts[devices]
    if verdict is not None and identity not in _warned:
        _warned.add(identity)
        logger().warning(
            "Other hosts are not kept out of source tree %r: %s (lock file %r).",
            tree,
            verdict,
            lock_file,
        )


def is_local(device: int) -> bool:
    """Whether a device is known to be mounted on this host alone."""
    mount = _mounts().get(device, _NOTHING_KNOWN)
    # What stands behind FUSE is its own affair, and what it locks is in no list of the kernel.
    return mount.kind != "" and not mount.is_shared() and not mount.kind.startswith("fuse")


def _verdict(tree_device: int, lock_device: int) -> str | None:
    """Why other hosts are not kept out; ``None`` where they are, or where there are none."""
    mounts = _mounts()
    tree = mounts.get(tree_device, _NOTHING_KNOWN)
    if not tree.is_shared():
        return None
    reason = tree.keeps_locks_local()
    if reason is not None:
        lock = mounts.get(lock_device, _NOTHING_KNOWN)
        if lock.is_shared() and lock.keeps_locks_local() is None:
            return None
        return (
            f"{reason} set lock_dir or SOURCE_TREE_LOCK_DIR to a directory on another file "
            "system that they share"
        )
    if lock_device != tree_device:
        return (
            f"it is on a file system that they share ({tree.kind}), its lock file is not; set "
            "lock_dir or SOURCE_TREE_LOCK_DIR to a directory on that file system"
        )
    return None


def _mounts() -> dict[int, _Mount]:
    """What is mounted, by device."""
    found: dict[int, _Mount] = {}
    if not POSIX:
        return found
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                mount, _, file_system = line.rstrip("\n").partition(" - ")
                major, _, minor = mount.split()[2].partition(":")
                # A source may be empty, and then two spaces meet.
                kind, _, options = file_system.split(" ")[:3]
                found[os.makedev(int(major), int(minor))] = _Mount(
                    kind, frozenset(options.split(","))
                )
    except OSError:
        pass  # no Linux, or no /proc
    return found


def _beegfs_keeps_locks_local() -> bool:
    """Whether a BeeGFS client of this host keeps locks to itself, which is its default."""
    try:
        clients = os.listdir("/proc/fs/beegfs")
    except OSError:
        return False
    for client in clients:
        try:
            with open(f"/proc/fs/beegfs/{client}/config", encoding="utf-8") as lines:
                if "tuneUseGlobalFileLocks = 0\n" in lines:
                    return True
        except (OSError, ValueError):
            continue
    return False
