"""Both locks on every file system that can be mounted here."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Child, held_elsewhere, is_free, wait_until_blocked
from ways import script

from source_tree_lock import source_tree_lock

_IMAGE = "truncate -s 512M {at}.image && {make} {at}.image && mount -o loop {at}.image {at}"
_FILE_SYSTEMS = {
    "tmpfs": "mount -t tmpfs none {at}",
    "ext4": _IMAGE.replace("{make}", "mkfs.ext4 -q"),
    "btrfs": _IMAGE.replace("{make}", "mkfs.btrfs -q"),
    "vfat": _IMAGE.replace("{make}", "mkfs.vfat"),
    "overlay": "mount -t tmpfs none {at} && cd {at} && mkdir lower upper work && mount -t overlay "
    "overlay -o lowerdir=lower,upperdir=upper,workdir=work {at}",
    "fuse": "mkdir {at}.below && bindfs {at}.below {at}",
}


@pytest.fixture(params=_FILE_SYSTEMS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    directory = tmp_path / "mounted"
    directory.mkdir()
    command = _FILE_SYSTEMS[request.param].format(at=directory)
    made = subprocess.run(command, shell=True, capture_output=True, text=True)
    try:
        if made.returncode:
            pytest.skip(f"no {request.param} can be mounted here: {made.stderr}")
        yield directory
    finally:
        while directory.is_mount():
            subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.mark.parametrize("what", ["tree", "lock file"])
def test_both_locks_are_taken_wherever_they_are(
    what: str,
    mounted: Path,
    tree: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = mounted if what == "lock file" else tmp_path
    if what == "tree":
        tree = mounted / "tree"
        tree.mkdir()
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(directory / "locks"))
    lock = source_tree_lock(tree)
    with held_elsewhere(tree) as holder, Child(script("for ever"), tree) as waiter:
        assert (is_free(lock.lock_file), is_free(tree)) == (False, False)
        if "vfat" not in request.node.name:  # its files have no modes
            assert stat.S_IMODE(lock.lock_file.stat().st_mode) == 0o666
        assert list(lock.lock_file.parent.iterdir()) == [lock.lock_file]
        # Where the lock file is another one, the tree itself keeps out.
        for each in (lock, source_tree_lock(tree, lock_dir=tmp_path / "other")):
            assert not each.acquire(blocking=False)
            assert (named := each.holder()) is None or named.pid == holder.pid
        wait_until_blocked(waiter.pid)
        holder.kill()
        waiter.expect("held")
        waiter.say()
        assert waiter.end() == 0
    assert not lock.lock_file.read_bytes().strip()
