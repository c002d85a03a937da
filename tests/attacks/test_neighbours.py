"""Another user of the same machine: the right error or the right wait, and nothing harmed."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import is_free, wait_until_blocked

from source_tree_lock import source_tree_lock

from .crew import Crew, Member

_HOLD = """
    try:
        with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
        tell("released")
    except LockUnavailable as error:
        tell("refused", error.errno)
"""
# setpriv(1) could not start an interpreter that only root may read, as pyenv's often is. By its
# last call the process may look at itself in /proc.
_BECOME_NOBODY = """
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
"""


@pytest.fixture
def public_tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tree that everybody may read, with lock files in a sticky directory."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("needs root on Linux, to be another user as well")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        temp, tree = Path(name, "tmp"), Path(name, "tree")
        temp.mkdir()
        temp.chmod(0o1777)
        tree.mkdir()
        monkeypatch.setenv("TMPDIR", str(temp))
        yield tree


def _start(crew: Crew, user: str, tree: Path) -> Member:
    script = (_BECOME_NOBODY if user == "nobody" else "") + textwrap.dedent(_HOLD)
    return crew.start(script, tree)


@pytest.mark.parametrize(
    ("kind", "mode", "outcome"),
    [
        ("file", 0o600, f"refused {errno.EACCES}"),
        ("file", 0o644, "held"),
        ("fifo", 0o444, f"refused {errno.EINVAL}"),
        ("tree", 0o711, f"refused {errno.EACCES}"),
    ],
)
def test_what_belongs_to_another_user_is_locked_if_it_may_be_read_and_never_written_to(
    crew: Crew, public_tree: Path, kind: str, mode: int, outcome: str
) -> None:
    lock_file = source_tree_lock(public_tree).lock_file
    if kind == "fifo":
        os.mkfifo(lock_file)
    else:
        lock_file.write_text("private")
    (public_tree if kind == "tree" else lock_file).chmod(mode)
    member = _start(crew, "nobody", public_tree)
    member.expect(outcome)
    if outcome == "held":
        assert not is_free(lock_file)
        member.say("leave")
        member.expect("released")
    assert kind == "fifo" or lock_file.read_text() == "private"


@pytest.mark.parametrize("order", [("root", "nobody"), ("nobody", "root")])
def test_two_users_lock_one_tree_in_turn_in_either_order(
    crew: Crew, public_tree: Path, order: tuple[str, str]
) -> None:
    """Although the kernel may refuse O_CREAT on another user's file (fs.protected_regular)."""
    for first, second in (order, order[::-1], order):
        holder = _start(crew, first, public_tree)
        holder.expect("held")
        waiter = _start(crew, second, public_tree)
        wait_until_blocked(waiter.pid)
        holder.say("leave")
        holder.expect("released")
        waiter.expect("held")
        waiter.say("leave")
        waiter.expect("released")
    lock_file = source_tree_lock(public_tree).lock_file
    assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
