"""The tree's own lock: within one kernel it keeps out whoever comes to the tree, by any way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import HOLD, Child, held_elsewhere, is_free, own_mounts, wait_until_blocked

from source_tree_lock import LockTimeout, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows locks no directories")

#: Makes a tree known as `other` as well; what is put before a command that is to find it there.
Way = Callable[[Path, Path], tuple[str, ...]]


def through_a_symlink(tree: Path, other: Path) -> tuple[str, ...]:
    other.symlink_to(tree)
    return ()


def through_a_bind_mount_in_another_namespace(tree: Path, other: Path) -> tuple[str, ...]:
    prefix = own_mounts()
    other.mkdir()
    mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return *prefix, "sh", "-c", mount, "sh", str(tree), str(other)


@pytest.fixture(
    params=[through_a_symlink, through_a_bind_mount_in_another_namespace],
    ids=lambda way: way.__name__,
)
def stranger(
    request: pytest.FixtureRequest, tree: Path, tmp_path: Path
) -> Iterator[Callable[[str], Child]]:
    """Starts a script with another path to the tree, and with another TMPDIR."""
    way: Way = request.param
    other = tmp_path / "other"
    prefix = way(tree, other)
    temp_dir = tmp_path / "another temp"
    temp_dir.mkdir()
    children: list[Child] = []

    def start(script: str) -> Child:
        children.append(Child(script, other, environ={"TMPDIR": str(temp_dir)}, prefix=prefix))
        return children[-1]

    yield start
    for child in children:
        child.__exit__(None, None, None)


def test_a_stranger_who_holds_keeps_us_out(
    no_leaks: object, stranger: Callable[[str], Child], tree: Path
) -> None:
    holder = stranger(HOLD)
    holder.expect("held")
    lock = source_tree_lock(tree, timeout=0.05)
    with pytest.raises(LockTimeout):
        lock.__enter__()
    assert not lock.acquire(blocking=False)
    assert is_free(lock.lock_file), "only the tree's own lock keeps us out"
    holder.say()
    holder.expect("released")
    with lock:
        assert not is_free(tree)


def test_a_stranger_is_kept_out_while_we_hold(stranger: Callable[[str], Child], tree: Path) -> None:
    script = """
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        tell("got in" if lock.acquire(timeout=0.05) else "kept out")
        with lock:
            tell("held")
            heard()
        tell("released")
    """
    with source_tree_lock(tree):
        child = stranger(script)
        child.expect("kept out")
        wait_until_blocked(child.pid)
    child.expect("held")
    assert not source_tree_lock(tree).acquire(blocking=False)
    child.say()
    child.expect("released")


def test_strangers_never_meet_inside(
    no_leaks: object, stranger: Callable[[str], Child], tree: Path
) -> None:
    """Both make the same file exclusively, and remove it before they leave."""
    meet = """
        import os
        from source_tree_lock import source_tree_lock
        tell("ready")
        heard()
        for _ in range(50):
            with source_tree_lock(sys.argv[1]):
                inside = os.path.join(sys.argv[1], "inside")
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                os.stat(inside)
                os.unlink(inside)
        tell("never met anybody")
    """
    with Child(meet, tree) as native:
        both = (native, stranger(meet))
        for child in both:
            child.expect("ready")
        for child in both:
            child.say()
        for child in both:
            child.expect("never met anybody")


def test_who_holds_does_not_wait_for_itself_by_another_way(
    stranger: Callable[[str], Child], tree: Path, tmp_path: Path
) -> None:
    child = stranger(f"""
        import os
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]) as lock:
            again = source_tree_lock({str(tree)!r}, lock_dir={str(tmp_path / "third")!r})
            tell(again.acquire(blocking=False), again.locked())
            again.release()
            tell(lock.locked())
            heard()
    """)
    child.expect("True True")
    child.expect("True")
    assert not is_free(tree)
    assert not (tmp_path / "third").exists(), "decided before any lock file is opened"


def test_a_tree_that_something_is_mounted_over_during_a_wait_is_locked_anew(
    tree: Path, tmp_path: Path
) -> None:
    """The kernel's name of what was locked does not tell of it."""
    script = """
        import os, subprocess, sys
        from source_tree_lock import source_tree_lock
        tree, other = sys.argv[1:]
        with source_tree_lock(tree):
            pass  # it is known from now on
        tell("known")
        heard()
        def mount(holder):
            subprocess.run(["mount", "--bind", other, tree], check=True)
            tell("mounted")
        with source_tree_lock(tree, on_wait=mount) as lock:
            found = os.stat(tree)
            tell(lock._hold().tree.identity == (found.st_dev, found.st_ino))
    """
    other = tmp_path / "other"
    other.mkdir()
    with Child(script, tree, other, prefix=own_mounts()) as waiter:
        waiter.expect("known")
        with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}) as holder:
            waiter.say()
            waiter.expect("mounted")
            holder.say()
            waiter.expect("True")
