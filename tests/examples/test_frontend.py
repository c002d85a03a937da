"""How a frontend tests what it does with the lock, without other processes and real builds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock
from source_tree_lock.adapters import locked_runner


class Frontend:
    """The one to test: it shows a wait, and makes a message of its own of a timeout."""

    def __init__(self, **options: Any) -> None:
        self.shown: list[str] = []
        self.ran: list[str] = []
        self._run_hook = locked_runner(
            lambda cmd, cwd, environ: self.ran.append(cwd),  # a fake: it runs no hook
            on_wait=self.show_wait,
            **options,
        )

    def show_wait(self, wait: Wait) -> None:
        self.shown.append(f"please wait: {wait.holder.name if wait.holder else 'somebody'}")

    def build(self, tree: Path) -> None:
        try:
            self._run_hook(["a hook"], str(tree))
        except LockTimeout as error:
            self.show_timeout(error)

    def show_timeout(self, error: LockTimeout) -> None:
        self.shown.append(f"no build of {error.tree} after {error.waited:.0f} s")


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """For tests: not the lock files that real builds use."""
    return tmp_path / "locks"


@contextmanager
def held(tree: Path, lock_dir: Path) -> Iterator[None]:
    """Another thread holds the tree, as another process would."""
    lock = source_tree_lock(tree, lock_dir=lock_dir)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lock.acquire).result()
        try:
            yield
        finally:
            thread.submit(lock.release)


def test_it_waits_and_says_so(tmp_path: Path, locks: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        with held(tmp_path, locks):
            frontend = Frontend(lock_dir=locks)
            building = thread.submit(frontend.build, tmp_path)
            while not frontend.shown:
                time.sleep(0.01)
            assert frontend.ran == []
        building.result()
    assert frontend.ran == [str(tmp_path)]
    [line] = frontend.shown
    assert line.startswith("please wait: ")


def test_it_gives_up_in_time(tmp_path: Path, locks: Path) -> None:
    frontend = Frontend(lock_dir=locks, timeout=0.1)
    with held(tmp_path, locks):
        frontend.build(tmp_path)
    assert frontend.ran == []
    assert frontend.shown[-1].startswith(f"no build of {tmp_path} after ")


def test_without_the_lock_it_does_the_same(tmp_path: Path, locks: Path) -> None:
    frontend = Frontend(lock_dir=locks, when=lambda tree: False)
    with held(tmp_path, locks):
        frontend.build(tmp_path)
    assert (frontend.ran, frontend.shown) == ([str(tmp_path)], [])


def test_its_words() -> None:
    """What the library passes to callbacks and raises can be made by hand."""
    frontend, holder = Frontend(), Holder(42, "make")
    frontend.show_wait(Wait("/tree", "/tmp/some.lock", holder, 5.0))
    frontend.show_wait(Wait("/tree", "/tmp/some.lock", None, 5.0))
    frontend.show_timeout(LockTimeout("too late", tree="/tree", waited=60.0, holder=holder))
    assert frontend.shown[:2] == ["please wait: make (pid 42)", "please wait: somebody"]
    assert frontend.shown[2] == "no build of /tree after 60 s"
