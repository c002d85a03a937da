"""Which file system a tree and its lock file are on, and whether other hosts are kept out.

Linux only: elsewhere nothing is known, and nothing is said.
"""

from __future__ import annotations

import os

from .._kernel_lock import Identity, forgets_in_child, guard
from .._log import logger
from .._system import PROC

#: File systems that several hosts mount, as mountinfo names them (proc_pid_mountinfo(5)).
_SHARED = frozenset(
    (
        "9p afs beegfs ceph cifs fuse.ceph fuse.ceph-fuse fuse.glusterfs fuse.juicefs fuse.mfs "
        "fuse.sshfs gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 orangefs smb3 smbfs virtiofs"
    ).split()
)
#: Where flock(2) excludes on one host only: a file system, the option that makes it so as the
#: kernel shows it ("" for whatever the options), and what to do about it. Sources: nfs(5),
#: mount.lustre(8), mount.cifs(8), the kernel's options of OCFS2, GFS2 and AFS, QEMU's hw/9pfs
#: (`v9fs_lock` grants whatever it is asked for), virtiofsd(1), beegfs-client.conf; sshfs has no
#: such request, and GPFS passes on fcntl(2) locks alone (filelock issue 389).
_LOCAL_LOCKS = (
    ("nfs", "local_lock=flock", "mount it without local_lock=flock"),
    ("nfs", "local_lock=all", "mount it without local_lock=all"),
    ("nfs", "nolock", "mount it without nolock"),
    ("lustre", "localflock", "mount it with flock instead of localflock"),
    ("cifs", "nobrl", "mount it without nobrl"),
    ("smb3", "nobrl", "mount it without nobrl"),
    ("gfs2", "localflocks", "mount it without localflocks"),
    ("ocfs2", "localflocks", "mount it without localflocks"),
    ("afs", "flock=local", "mount it without flock=local"),
    ("9p", "trans=virtio", ""),
    ("fuse.sshfs", "", ""),
    ("gpfs", "", ""),
    ("virtiofs", "", ""),
    ("beegfs", "", "check that tuneUseGlobalFileLocks is true in beegfs-client.conf"),
)

_Mount = tuple[str, frozenset[str]]
_UNKNOWN: _Mount = ("", frozenset())

# Both are changed under `guard` only. A child need not say again what was said, and has the second.
_verdicts: dict[Identity, str | None] = {}
_warned: set[Identity] = set()


@forgets_in_child
def _forget_verdicts() -> None:
    global _verdicts
    _verdicts = {}


def warn_if_other_hosts_get_in(tree: str, identity: Identity, lock_file: str, device: int) -> None:
    """Warn, once for each tree, when hosts that share the tree do not share the lock.

    Args:
        tree: canonical path of the source tree.
        identity: its device and inode.
        lock_file: path of the lock file.
        device: device of the lock file.
    """
    devices = (identity[0], device)
    if devices in _verdicts and _verdicts[devices] is None:
        return
    with guard:
        if devices not in _verdicts:
            _verdicts[devices] = _verdict(*devices)
        verdict = _verdicts[devices]
        if verdict is None or identity in _warned:
            return
        _warned.add(identity)
    logger().warning(
        "Other hosts are not kept out of source tree %r: %s (lock file %r).",
        tree,
        verdict,
        lock_file,
    )


def is_local(device: int) -> bool:
    """Whether a device is known to be mounted on this host alone."""
    kind = _mount_of(device)[0]
    # What stands behind FUSE is its own affair, and what it locks is in no list of the kernel.
    return kind != "" and kind not in _SHARED and not kind.startswith("fuse")


def _verdict(tree_device: int, lock_device: int) -> str | None:
    """Why other hosts are not kept out; ``None`` where they are, or where there are none."""
    tree = _mount_of(tree_device)
    if tree[0] not in _SHARED:
        return None
    lock = _mount_of(lock_device)
    local = _local_lock(tree)
    if local is not None:
        if lock[0] in _SHARED and _local_lock(lock) is None:
            return None
        option, advice = local
        how = f" mounted with {option}" if option else ""
        return (
            f"flock on its file system ({tree[0]}{how}) is this host's alone; "
            f"{f'{advice}, or ' if advice else ''}set lock_dir or SOURCE_TREE_LOCK_DIR to a "
            "directory on another file system that they share"
        )
    if lock_device != tree_device:
        return (
            f"it is on a file system that they share ({tree[0]}), its lock file is not; set "
            "lock_dir or SOURCE_TREE_LOCK_DIR to a directory on that file system"
        )
    return None


def _local_lock(mount: _Mount) -> tuple[str, str] | None:
    """The option that keeps locks on one host, and the advice; ``None`` where nothing does."""
    kind, options = mount
    for file_system, option, advice in _LOCAL_LOCKS:
        is_it = kind == file_system or (file_system, kind) == ("nfs", "nfs4")
        if is_it and (not option or option in options):
            return option, advice
    return None


def _mount_of(device: int) -> _Mount:
    """The type and the options of a device's file system, not of where it is mounted."""
    if not PROC:
        return _UNKNOWN
    number = b" %d:%d " % (os.major(device), os.minor(device))
    try:
        with open(f"{PROC}/self/mountinfo", "rb") as lines:
            for line in lines:
                if number in line and line.split()[2] == number.strip():
                    # A source may be empty, and then two spaces meet.
                    kind, _, options = os.fsdecode(line).rstrip().partition(" - ")[2].split(" ")[:3]
                    return kind, frozenset(options.split(","))
    except OSError:
        pass  # no Linux, or no /proc
    return _UNKNOWN
