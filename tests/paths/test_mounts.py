"""Whether a user is told that other hosts are not kept out: what the kernel's list of mounts says.

The list is made up here; a real one, with GlusterFS in it, is read in `cluster`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from source_tree_lock import source_tree_lock
from source_tree_lock._paths import mounts as room

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the list of mounts is Linux's"
)

TREE, ELSEWHERE = os.makedev(0, 61), os.makedev(0, 62)


class System:
    """A machine whose list of mounts, and what else is asked for, the test makes up.

    Attributes:
        files: the text of each file that can be opened; others cannot.
        opened: the paths of what was opened.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.opened: list[str] = []

    def mount(self, device: int, kind: str, options: str = "rw", source: str = "server:/") -> None:
        major, minor = os.major(device), os.minor(device)
        line = f"36 35 {major}:{minor} / /mnt/a\\040-\\040b rw,nosuid shared:1 - {kind} {source} "
        self.files["/proc/self/mountinfo"] = (
            self.files.get("/proc/self/mountinfo", "") + line + options + "\n"
        )

    def open(self, path: str, mode: str) -> io.BytesIO:
        assert mode == "rb"
        self.opened.append(path)
        if path not in self.files:
            raise PermissionError(13, "Permission denied", path)
        return io.BytesIO(self.files[path].encode())


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    """A made-up machine, of which this process knows nothing yet."""
    made_up = System()
    monkeypatch.setattr(room, "open", made_up.open, raising=False)
    monkeypatch.setattr(room, "_verdicts", {})
    monkeypatch.setattr(room, "_warned", set())
    return made_up


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The warnings of the library, in order."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING:
                messages.append(record.getMessage())

    collector = Collector()
    logging.getLogger("source_tree_lock").addHandler(collector)
    yield messages
    logging.getLogger("source_tree_lock").removeHandler(collector)


def look(lock_device: int, *, inode: int = 7) -> None:
    """What an entry does, for a tree on the device `TREE`."""
    room.warn_if_other_hosts_get_in(
        f"/projects/{inode}", (TREE, inode), "/locks/uv-setuptools-1.lock", lock_device
    )


@pytest.mark.parametrize(
    "kind",
    "9p ceph cifs fuse.ceph-fuse fuse.glusterfs lustre nfs nfs4 smb3".split(),
)
def test_a_lock_file_beside_the_shared_file_system_is_warned_of(
    system: System, warnings: list[str], kind: str
) -> None:
    system.mount(TREE, kind)
    system.mount(ELSEWHERE, "ext4", source="/dev/sda1")
    look(ELSEWHERE)
    [warning] = warnings
    assert "Other hosts are not kept out of source tree '/projects/7'" in warning
    assert f"({kind})" in warning
    assert "'/locks/uv-setuptools-1.lock'" in warning
    assert "SOURCE_TREE_LOCK_DIR" in warning
    assert "to a directory on that file system" in warning


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("nfs", "rw,vers=3,hard,nolock,local_lock=none"),
        ("nfs", "rw,vers=3,hard,local_lock=flock"),
        ("nfs", "rw,vers=3,hard,local_lock=all"),
        ("cifs", "rw,vers=3.1.1,nobrl"),
        ("smb3", "rw,nobrl,hard"),
        ("lustre", "rw,checksum,localflock,user_xattr"),
        ("gfs2", "rw,localflocks"),
        ("ocfs2", "rw,localflocks,,cluster_stack=pcmk"),  # as the kernel writes it
        ("afs", "rw,flock=local"),
        ("9p", "rw,access=client,trans=virtio"),
        ("fuse.sshfs", "rw,user_id=0"),
        ("gpfs", "rw"),
        ("virtiofs", "rw"),
        ("beegfs", "rw,cfgFile=/etc/beegfs/beegfs-client.conf,"),
    ],
)
def test_locks_that_stay_on_this_host_are_warned_of_wherever_the_lock_file_is(
    system: System, warnings: list[str], kind: str, options: str
) -> None:
    system.mount(TREE, kind, options)
    system.mount(ELSEWHERE, "ext4", source="/dev/sda1")
    look(TREE, inode=7)
    look(ELSEWHERE, inode=8)
    assert len(warnings) == 2
    for warning in warnings:
        assert kind in warning
        assert "another file system that they share" in warning


def test_of_beegfs_it_is_said_which_setting_makes_its_locks_global(
    system: System, warnings: list[str]
) -> None:
    system.mount(TREE, "beegfs")
    look(TREE)
    [warning] = warnings
    assert "check that tuneUseGlobalFileLocks is true in beegfs-client.conf" in warning


def test_a_lock_file_on_a_shared_file_system_that_locks_makes_up_for_one_that_does_not(
    system: System, warnings: list[str]
) -> None:
    system.mount(TREE, "fuse.sshfs")
    system.mount(ELSEWHERE, "nfs4", "rw,vers=4.2,local_lock=none")
    look(ELSEWHERE)
    assert warnings == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("nfs", "rw,vers=3,local_lock=none"),
        ("nfs", "rw,vers=3,local_lock=posix"),  # of fcntl(2) only
        ("nfs4", "rw,vers=4.2,local_lock=none"),
        ("cifs", "rw,vers=3.1.1"),
        ("lustre", "rw,flock"),
        ("ceph", "rw"),
        ("fuse.glusterfs", "rw,user_id=0"),
    ],
)
def test_nothing_is_said_when_the_lock_file_is_on_the_shared_file_system(
    system: System, warnings: list[str], kind: str, options: str
) -> None:
    system.mount(TREE, kind, options)
    look(TREE)
    assert warnings == []


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "fuse.mergerfs"]
)
def test_nothing_is_said_of_a_file_system_of_this_host(
    system: System, warnings: list[str], kind: str
) -> None:
    system.mount(TREE, kind, source="/dev/sda1")
    system.mount(ELSEWHERE, "tmpfs", source="tmpfs")
    look(ELSEWHERE)
    assert warnings == []


def test_each_tree_is_warned_of_once_in_a_process(system: System, warnings: list[str]) -> None:
    system.mount(TREE, "nfs4")
    for inode in (7, 8, 7, 8, 7):
        look(ELSEWHERE, inode=inode)
    assert [warning.split("'")[1] for warning in warnings] == ["/projects/7", "/projects/8"]


def test_a_mount_without_a_source_hides_no_other(system: System, warnings: list[str]) -> None:
    system.mount(ELSEWHERE, "tmpfs", source="")
    system.mount(TREE, "nfs4", "rw,local_lock=none")
    look(ELSEWHERE)
    assert len(warnings) == 1


def test_a_list_of_mounts_that_cannot_be_read_keeps_nobody_from_locking(
    system: System, warnings: list[str], tree: Path
) -> None:
    with source_tree_lock(tree, timeout=60) as lock:
        assert lock.locked()
    assert system.opened == ["/proc/self/mountinfo"]
    assert warnings == []


def test_the_list_of_mounts_is_read_once_however_often_and_whatever_is_locked(
    system: System, tmp_path: Path
) -> None:
    status = tmp_path.stat()
    system.mount(status.st_dev, "ext4", source="/dev/sda1")
    for number in range(20):
        tree = tmp_path / str(number)
        tree.mkdir()
        for _ in range(5):
            with source_tree_lock(tree, timeout=60):
                pass
    assert system.opened == ["/proc/self/mountinfo"]


def test_entering_a_tree_on_a_shared_file_system_warns(
    system: System, warnings: list[str], tree: Path
) -> None:
    system.mount(tree.stat().st_dev, "nfs4", "rw,vers=4.2,local_lock=none")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == tree.stat().st_dev:
            pytest.skip("/dev/shm is on the file system of the tree")
        for _ in range(3):
            with source_tree_lock(tree, lock_dir=elsewhere, timeout=60):
                pass
    [warning] = warnings
    assert repr(str(tree)) in warning
    assert elsewhere in warning


def test_entering_with_the_lock_file_beside_the_tree_says_nothing(
    system: System, warnings: list[str], tree: Path, tmp_path: Path
) -> None:
    system.mount(tree.stat().st_dev, "nfs4", "rw,vers=4.2,local_lock=none")
    with source_tree_lock(tree, lock_dir=tmp_path / "locks", timeout=60):
        pass
    assert warnings == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ext4", True),
        ("overlay", True),
        ("nfs4", False),
        ("fuse.glusterfs", False),
        ("fuse.somefs", False),
        ("fuse", False),
    ],
)
def test_only_what_no_other_host_can_lock_is_local(
    system: System, kind: str, expected: bool
) -> None:
    system.mount(TREE, kind)
    assert room.is_local(TREE) is expected
    assert not room.is_local(ELSEWHERE)
