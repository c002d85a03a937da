"""The kernel's list of locks is read exactly, and as often as it takes."""

from __future__ import annotations

import io
import os

import pytest

from source_tree_lock._holder import proc_locks

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
    device: tuple[int, int], inode: int, pid: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_open(path: str, mode: str) -> io.BytesIO:
        assert (path, mode) == ("/proc/locks", "rb")
        return io.BytesIO(LOCKS.encode())

    monkeypatch.setattr(proc_locks, "open", fake_open, raising=False)
    assert proc_locks.kernel_holder((os.makedev(*device), inode)) == pid


@linux_only
def test_a_lock_that_a_look_at_a_changing_list_overlooks_is_found_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = LOCKS.splitlines(keepends=True)
    looks = iter(["".join(lines[:count]) for count in (5, 4, 6)])
    monkeypatch.setattr(
        proc_locks, "open", lambda *_: io.BytesIO(next(looks).encode()), raising=False
    )
    assert proc_locks.kernel_holder((os.makedev(0xFE, 0), 4713)) == 14


@linux_only
def test_a_lock_that_two_looks_at_a_long_list_overlook_in_the_same_way_is_found_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that locks and unlocks may change the list between its pages twice alike."""
    others = "".join(f"{n}: FLOCK  ADVISORY  WRITE 9 fe:09:{n} 0 EOF\n" for n in range(7, 99))
    looks = iter([others, others, LOCKS + others])
    monkeypatch.setattr(
        proc_locks, "open", lambda *_: io.BytesIO(next(looks).encode()), raising=False
    )
    assert proc_locks.kernel_holder((os.makedev(0xFE, 0), 4713)) == 14
