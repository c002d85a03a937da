"""What the library says, in a frontend's own output."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from support import Child, held_elsewhere, wait_until, waiters
from ways import WAYS

from source_tree_lock import Wait, source_tree_lock

from .callers import either


@either
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING], ids=logging.getLevelName)
def test_all_that_the_library_says_goes_where_one_argument_says(
    adapter: str, level: int, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whom a wait is for, and a warning, such as that of a lock directory of everybody's."""
    caplog.set_level(level, "source_tree_lock")
    lock_dir = tmp_path / "everybody's"
    lock_dir.mkdir()
    lock_dir.chmod(0o777)
    said: list[str] = []
    told: list[Wait] = []

    with held_elsewhere(tree, environ={"SOURCE_TREE_LOCK_DIR": str(lock_dir)}) as holder:

        def tell(wait: Wait) -> None:
            told.append(wait)
            holder.say()

        WAYS[adapter](tree, lambda: None, lock_dir=lock_dir, say=said.append, on_wait=tell)
        warning, wait = sorted(said, key=lambda each: each.startswith("waiting "))
        assert str(lock_dir) in warning
        assert wait == str(told[0])
        assert f"(pid {holder.pid})" in wait
        assert len(told) == 1
    assert caplog.records == []
    # Afterwards, and of others, the log hears as before.
    logging.getLogger("source_tree_lock").warning("of others")
    assert [each.getMessage() for each in caplog.records] == ["of others"]


@either
def test_a_circle_that_a_thread_of_its_own_finds_is_said_there_too(
    adapter: str, tree: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    crosses = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
            source_tree_lock(sys.argv[2]).acquire()
    """
    if not os.path.exists("/proc/locks"):
        pytest.skip("asks /proc/locks who waits for whom")

    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if "may never end" in sentence:
            child.kill()

    with source_tree_lock(other), Child(crosses, tree, other) as child:
        child.expect("held")
        child.say()
        wait_until(lambda: bool(waiters(source_tree_lock(other).lock_file)))
        WAYS[adapter](tree, lambda: None, say=say)
    assert len(said) == 2
    assert f"(pid {child.pid}) holds '{tree}' and waits for '{other}'" in said[1]
