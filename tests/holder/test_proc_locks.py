"""The kernel's list of locks is read exactly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from source_tree_lock import _proc

from .crowd import linux_only

LOCKS = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:4711 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:01:4711 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:47111 0 EOF
4: OFDLCK ADVISORY  WRITE -1 fe:00:4711 0 EOF
5: FLOCK  ADVISORY  WRITE 0 fe:00:4712 0 EOF
6: FLOCK  ADVISORY  WRITE 14 fe:00:4713 0 EOF
6: -> FLOCK  ADVISORY  WRITE 15 fe:00:4713 0 EOF
7: -> FLOCK  ADVISORY  WRITE 16 fe:00:4714 0 EOF
8: FLOCK  ADVISORY  READ 17 fe:00:4715 0 EOF
9: FLOCK  MANDATORY READ 18 103:100000:18446744073709551615 0 EOF
10: LEASE  ACTIVE    WRITE 19 fe:00:4716 0 EOF
11: DELEG  ACTIVE    READ 20 fe:00:4716 0 EOF
"""


@linux_only
@pytest.mark.parametrize(
    ("device", "inode", "pid"),
    [
        pytest.param((0xFE, 0), 4711, None, id="locks of another kind, device or inode"),
        pytest.param((0xFE, 0), 4712, None, id="a holder of another pid namespace"),
        pytest.param((0xFE, 0), 4713, 14, id="not one that waits"),
        pytest.param((0xFE, 0), 4714, None, id="only waiting"),
        pytest.param((0xFE, 0), 4715, 17, id="shared"),
        pytest.param((0x103, 0x100000), 2**64 - 1, 18, id="large numbers"),
        pytest.param((0xFE, 0), 4716, None, id="a lease"),
    ],
)
def test_the_kernels_list_is_read_exactly(
    device: tuple[int, int],
    inode: int,
    pid: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tmp_path.joinpath("locks").write_text(LOCKS)
    monkeypatch.setattr(_proc, "PROC", str(tmp_path))
    assert _proc.kernel_holders(None, (os.makedev(*device), inode)) == [None, pid]
