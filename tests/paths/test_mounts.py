"""What the list of mounts decides; a real one, with GlusterFS in it, is read in `cluster`."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from source_tree_lock import LockUnavailable, _paths, _system, source_tree_lock

Mount = Callable[[str], None]


@pytest.fixture
def mount(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    """Gives the file system of the tree another type, as far as the list of mounts says."""
    device = tree.stat().st_dev
    mounts = tmp_path / "proc" / "self" / "mountinfo"
    mounts.parent.mkdir(parents=True)
    monkeypatch.setattr(_system, "PROC", str(tmp_path / "proc"))
    _paths._read_file_system.cache_clear()

    def write(kind: str) -> None:
        mounts.write_text(
            f"35 1 0:{2**20 - 1} / / rw - tmpfs  rw\n"  # without a source
            f"36 35 {os.major(device)}:{os.minor(device)} / /mnt/a\\040-\\040b rw,nosuid shared:1 "
            f"- {kind} server:/ rw,vers=4.2\n"
        )

    yield write
    _paths._read_file_system.cache_clear()


@pytest.fixture
def elsewhere(tree: Path) -> Iterator[Path]:
    """A directory on another file system."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tree.stat().st_dev:
        pytest.skip("/dev/shm is not another file system than that of the tree")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


NETWORK = "9p ceph cifs fuse.glusterfs fuse.sshfs gpfs lustre nfs nfs4".split()
LOCAL = "ext4 btrfs tmpfs overlay fuseblk fuse.mergerfs".split()


@pytest.mark.parametrize("kind", [*NETWORK, *LOCAL, "unreadable"])
def test_a_shared_tree_with_a_lock_file_elsewhere_is_warned_of_once(
    kind: str, mount: Mount, elsewhere: Path, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if kind != "unreadable":
        mount(kind)
    tree.joinpath("another").mkdir()
    with source_tree_lock(tree, timeout=0):
        assert not caplog.records, "the lock file is on the shared file system itself"
    for path in (tree, tree / "another", tree):
        with source_tree_lock(path, lock_dir=elsewhere, timeout=0) as lock:
            assert lock.locked()
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(told) == (2 if kind in NETWORK else 0)
    for message, path in zip(told, (tree, tree / "another"), strict=False):
        for words in (repr(str(path)), f"({kind})", str(elsewhere), "SOURCE_TREE_LOCK_DIR"):
            assert words in message


@pytest.mark.parametrize("kind", ["cifs", "smb3", "ext4"])
def test_only_on_smb_does_eacces_mean_that_somebody_holds_it(
    kind: str, mount: Mount, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        if not operation & fcntl.LOCK_UN:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    mount(kind)
    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = source_tree_lock(tree)
    if kind == "ext4":
        with pytest.raises(LockUnavailable, match="allow it"):
            lock.acquire(blocking=False)
    else:
        assert not lock.acquire(timeout=0.01)
