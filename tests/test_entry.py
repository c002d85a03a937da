"""Getting in and out: who may enter again, who waits, and what leaving gives back."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support import LIMIT, held_by_thread, is_taken

from source_tree_lock import (
    LockTimeout,
    SourceTreeLock,
    _kernel_lock,
    source_tree_lock,
)
from source_tree_lock._entry import Entry
from source_tree_lock._owner import Owner

posix_only = pytest.mark.skipif(os.name != "posix", reason="the rule is of POSIX systems")


def test_a_callback_of_a_loop_enters_as_its_thread(tree: Path) -> None:
    def enter(taken: asyncio.Future[bool]) -> None:
        with source_tree_lock(tree), source_tree_lock(tree):
            taken.set_result(is_taken(tree))

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[bool] = loop.create_future()
        loop.call_soon(enter, taken)
        return await taken

    assert asyncio.run(main())
    assert not is_taken(tree)


def test_a_hold_that_a_collection_ends_while_it_is_entered_again_lets_nobody_in(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    """The collector may run between any two steps, in this thread or another."""
    dropped = source_tree_lock(tree)
    dropped.acquire()
    stands_for = Owner.stands_for

    def then_it_ends(self: Owner, other: Owner) -> bool:
        monkeypatch.undo()
        stands = stands_for(self, other)
        dropped.release()  # as `__del__` does
        return stands

    monkeypatch.setattr(Owner, "stands_for", then_it_ends)
    with source_tree_lock(tree, timeout=0) as lock:
        assert lock.locked()
        assert is_taken(tree)
    assert not is_taken(tree)


@pytest.mark.parametrize("at", [1, 2])
def test_what_interrupts_a_release_is_not_let_in(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object, at: int
) -> None:
    """As a signal handler may: by then one kernel lock is given back, or both."""
    lock = source_tree_lock(tree)
    unlocked = []
    with lock:
        assert _kernel_lock._calls is not None
        *others, unlock = _kernel_lock._calls

        def interrupted(descriptor: int) -> None:
            unlock(descriptor)
            unlocked.append(descriptor)
            if len(unlocked) == at:
                with pytest.raises(RuntimeError, match="just being released"):
                    lock.acquire()

        monkeypatch.setattr(_kernel_lock, "_calls", (*others, interrupted))
    assert len(unlocked) >= at or os.name == "nt"
    assert not is_taken(tree)


def test_the_same_thread_enters_again_and_the_last_leave_releases(
    tree: Path, no_leaks: object
) -> None:
    lock = source_tree_lock(tree)
    with lock:
        with lock, lock:
            assert lock.acquire(blocking=False)
            lock.release()
        assert is_taken(tree)
    assert not is_taken(tree)


def test_the_same_task_enters_again_both_ways(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        lock = source_tree_lock(tree)
        async with lock:
            async with lock:
                with lock, source_tree_lock(tree):
                    assert lock.locked()
            assert is_taken(tree)
        assert not is_taken(tree)
        with lock:
            async with lock:
                assert lock.locked()

    asyncio.run(main())


def spellings(tree: Path, tmp_path: Path) -> Iterator[SourceTreeLock]:
    yield source_tree_lock(tree)
    yield source_tree_lock(f"{tree}/../tree")
    yield source_tree_lock(tree, lock_dir=tmp_path / "other")
    yield source_tree_lock(tree, digest=lambda path: "other")
    link = tmp_path / "link"
    if os.name == "posix":
        link.symlink_to("tree")
        yield source_tree_lock(link)


def test_two_objects_for_one_tree_are_one_lock_by_whatever_way(tree: Path, tmp_path: Path) -> None:
    locks = list(spellings(tree, tmp_path))
    for outer in locks:
        with outer:
            for inner in locks:
                assert inner.acquire(blocking=False), f"{inner} waits for {outer}"
                inner.release()
                assert inner.locked()
            assert is_taken(tree)
        assert not is_taken(tree)


def test_entries_through_two_objects_may_be_left_in_any_order(tree: Path, no_leaks: object) -> None:
    first, second = source_tree_lock(tree), source_tree_lock(tree)
    first.acquire()
    second.acquire()
    first.release()
    assert is_taken(tree)
    second.release()
    assert not is_taken(tree)


def test_another_thread_waits_like_a_stranger(tree: Path) -> None:
    with held_by_thread(tree) as lock:
        assert not lock.acquire(blocking=False)
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0.01).__enter__()


def test_another_task_waits_like_a_stranger(tree: Path) -> None:
    async def main() -> list[str]:
        lock = source_tree_lock(tree)
        waiting, told = asyncio.Event(), []

        async def second() -> None:
            other = source_tree_lock(tree, on_wait=lambda holder: waiting.set())
            async with other:
                told.append("second")

        async with lock:
            task = asyncio.create_task(second())
            await asyncio.wait_for(waiting.wait(), LIMIT)
            told.append("first")
        await asyncio.wait_for(task, LIMIT)
        return told

    assert asyncio.run(main()) == ["first", "second"]


def test_one_object_may_be_shared_between_threads(tree: Path, no_leaks: object) -> None:
    lock, inside, most = source_tree_lock(tree), [0], [0]
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(LIMIT)
        for _ in range(20):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                with lock:
                    os.stat(tree)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert (inside, most) == ([0], [1])


def test_a_thread_finds_its_own_entry_while_another_one_removes_its(
    tree: Path, no_leaks: object
) -> None:
    """`reversed` ends early when the list gets shorter."""

    class Entries(list[Entry]):
        """Another thread removes its entry as soon as somebody has begun to look."""

        def __reversed__(self) -> Iterator[Entry]:
            iterator = super().__reversed__()
            self.pop(0)
            return iterator

        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            self.pop(0)
            return found

    lock = source_tree_lock(tree)
    others = lock._entry(None, is_plain=True)
    others.owner = Owner.__new__(Owner)
    others.owner.who = others.owner.thread = object()
    lock._entries = Entries([others])
    with lock:
        pass
    assert lock._entries == []
    assert not is_taken(tree)


def test_one_object_may_be_shared_between_tasks(tree: Path, no_leaks: object) -> None:
    async def main() -> tuple[int, int]:
        lock, inside, most = source_tree_lock(tree), 0, 0

        async def work() -> None:
            nonlocal inside, most
            for _ in range(5):
                async with lock:
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0)
                    inside -= 1

        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(20))), LIMIT)
        return inside, most

    assert asyncio.run(main()) == (0, 1)


def change_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")


def remove_the_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    shutil.rmtree(tree)


def replace_the_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.rename(tree.with_name("moved"))
    tree.mkdir()


def change_the_environment(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", "/elsewhere")
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "nonsense")


def remove_the_lock_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(os.environ["TMPDIR"])


@posix_only
@pytest.mark.parametrize(
    "change",
    [
        change_directory,
        remove_the_tree,
        replace_the_tree,
        change_the_environment,
        remove_the_lock_directory,
    ],
)
@pytest.mark.parametrize("path", [".", "../link"])
def test_leaving_releases_what_was_entered(
    change: Callable[[Path, pytest.MonkeyPatch], None],
    path: str,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    tree.with_name("link").symlink_to("tree")
    monkeypatch.chdir(tree)
    kept = [os.open(tree, os.O_RDONLY)]
    try:
        with source_tree_lock(path) as lock:
            kept.append(os.open(lock.lock_file, os.O_RDONLY))
            assert not any(map(is_free_descriptor, kept))
            change(tree, monkeypatch)
            assert lock.locked()
        assert all(map(is_free_descriptor, kept))
        assert not lock.locked()
    finally:
        for descriptor in kept:
            os.close(descriptor)


def is_free_descriptor(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


@posix_only
def test_a_symlink_that_leads_elsewhere_since_makes_no_difference_to_leaving(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.mkdir()
    link.symlink_to("tree")
    with source_tree_lock(link) as lock:
        link.unlink()
        link.symlink_to("other")
        assert lock.tree == tree.resolve()
        assert (is_taken(tree), is_taken(other)) == (True, False)
        with source_tree_lock(link):
            assert (is_taken(tree), is_taken(other)) == (True, True)
        assert (is_taken(tree), is_taken(other)) == (True, False)
    assert not is_taken(tree)


def test_a_task_of_trio_owns_what_it_enters(tree: Path, no_leaks: object) -> None:
    async def main() -> None:
        lock = source_tree_lock(tree)
        async with trio.open_nursery() as nursery:
            with lock, lock:
                assert lock.locked()
                entered = trio.Event()

                async def second() -> None:
                    assert not lock.locked()
                    assert not lock.acquire(blocking=False)
                    with pytest.raises(RuntimeError, match="task of this thread"):
                        lock.acquire()
                    entered.set()

                nursery.start_soon(second)
                with trio.fail_after(LIMIT):
                    await entered.wait()
            assert not is_taken(tree)

    trio.run(main)
