"""Hosts that share a lock directory: whose process it is that a record names.

A host is a name and pids of its own here, by namespaces: the kernel tells one of them nothing of
what the others hold. Two real clients of a distributed file system are in `cluster`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import HOLD, LIMIT, Child, held_elsewhere

from source_tree_lock import _record, source_tree_lock

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only Linux's root makes a host here"
)

#: Tries a tree for a moment. Arguments: the tree; what another process handed over, or nothing.
ENTER = """
    import logging, os, sys
    from source_tree_lock import LockTimeout, source_tree_lock
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s: %(message)s")
    if sys.argv[2:]:
        os.environ["SOURCE_TREE_LOCK_HELD"] = sys.argv[2]
    try:
        with source_tree_lock(sys.argv[1], timeout=0.2):
            tell("inside")
    except LockTimeout as error:
        tell(repr(error.holder))
        tell(error)
"""

#: Holds a tree, and tells what hands the hold over.
HAND_OVER = """
    import sys
    from source_tree_lock import source_tree_lock
    with source_tree_lock(sys.argv[1]) as lock:
        tell(lock.environ["SOURCE_TREE_LOCK_HELD"])
        heard()
"""


@contextmanager
def on_host(name: str, script: str, *arguments: object, own_pids: bool = True) -> Iterator[Child]:
    """A process on a host of this name, which shares all its files with the others."""
    pids = ("--pid", "--fork", "--kill-child", "--mount-proc") if own_pids else ()
    rename = f'hostname {name}; exec "$@"'
    prefix = ("unshare", "--uts", *pids, "sh", "-c", rename, "sh")
    with Child(script, *arguments, prefix=prefix) as child:
        yield child


def rewritten(lock_file: Path, **changes: object) -> _record.Record:
    """The record in a lock file, with changes, as it is read here."""
    fields = {**json.loads(lock_file.read_text()), **changes}
    lock_file.write_text(json.dumps(fields))
    record = _record.read_record(str(lock_file))
    assert record is not None
    return record


def test_a_holder_on_another_host_is_named_with_it_and_not_taken_for_a_process_here(
    tree: Path,
) -> None:
    # Each is process 1 on its host: a stranger to itself, and the ancestor of nobody here.
    with on_host("node1", HOLD, tree) as holder:
        holder.expect("held")
        with on_host("node2", ENTER, tree) as waiter:
            told = waiter.line()
            assert told.startswith("Holder(pid=1, program='")
            assert ", host='node1', since=" in told
            assert "(pid 1) on node1 for " in waiter.line()


def test_a_hold_is_not_handed_to_a_process_on_another_host(tree: Path) -> None:
    with on_host("node1", HAND_OVER, tree) as holder:
        handed_over = holder.line()
        with on_host("node2", ENTER, tree, handed_over) as child:
            assert "host='node1'" in child.line()


@pytest.mark.parametrize(
    ("name", "is_stale"), [("node1", False), (os.uname().nodename, True)], ids=["there", "here"]
)
def test_a_record_is_stale_when_its_writer_died_here_and_never_when_elsewhere(
    tree: Path, name: str, is_stale: bool
) -> None:
    with on_host(name, HOLD, tree, own_pids=False) as holder:
        holder.expect("held")
        os.kill(holder.pid, signal.SIGKILL)
        assert holder.process.wait(LIMIT) == -signal.SIGKILL
    record = _record.read_record(str(source_tree_lock(tree).lock_file))
    assert record is not None
    assert record.holder.pid == holder.pid
    assert record.holder.host == name
    assert record.is_stale() is is_stale


def test_hosts_of_one_name_are_told_apart_by_their_boot(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with held_elsewhere(tree) as holder:
        assert json.loads(lock_file.read_text())["boot"] == boot
        record = rewritten(lock_file)
        assert record.is_from_here()
        assert not record.is_stale()
        record = rewritten(lock_file, boot="c0ffee00-0000-4000-8000-000000000000")
        assert not record.is_from_here()
        holder.kill()
    assert not rewritten(lock_file).is_stale()
    assert rewritten(lock_file, boot=boot).is_stale()


#: Mounts a file system at two places, and tells by which name its tree is locked in each: by that
#: of the README's recipe, and by the one that everybody has without it.
_TWO_PLACES = """
    import subprocess, sys
    from pathlib import Path, PurePosixPath
    from source_tree_lock import cache_digest, source_tree_lock

    def path_on_the_shared_file_system(tree: Path) -> str:
        mount_point = next(path for path in (tree, *tree.parents) if path.is_mount())
        return cache_digest(PurePosixPath("/", tree.relative_to(mount_point)))

    here, there = sys.argv[1:]
    subprocess.run(["mount", "-t", "tmpfs", "shared", here], check=True)
    subprocess.run(["mount", "--bind", here, there], check=True)
    Path(here, "projects", "a").mkdir(parents=True)
    for place in (here, there):
        tree = Path(place, "projects", "a")
        tell(source_tree_lock(tree, digest=path_on_the_shared_file_system).lock_file.name)
        tell(source_tree_lock(tree).lock_file.name)
"""


def test_a_tree_has_one_name_wherever_it_is_mounted_when_the_digest_is_of_its_path_there(
    tmp_path: Path,
) -> None:
    places = [tmp_path / "here", tmp_path / "there"]
    for place in places:
        place.mkdir()
    with Child(_TWO_PLACES, *places, prefix=("unshare", "--mount")) as child:
        (recipe_here, default_here), (recipe_there, default_there) = (
            (child.line(), child.line()) for _ in places
        )
    assert recipe_here == recipe_there
    assert default_here != default_there
