"""How a frontend tests what it does with the lock, without other processes and real builds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock
from source_tree_lock.adapters import Rule, is_setuptools, locked_runner


class Frontend:
    """The one to test: it shows a wait, and makes a message of its own of a timeout."""

    def __init__(self, lock_dir: Path, timeout: float | None = None, when: Rule = is_setuptools):
        self.shown: list[str] = []
        self.ran: list[str] = []
        self._run_hook = locked_runner(
            lambda cmd, cwd, environ: self.ran.append(cwd),  # a fake: it runs no hook
            lock_dir=lock_dir,  # for tests: not the lock files that real builds use
            timeout=timeout,
            when=when,
            on_wait=self.show_wait,
        )

    def show_wait(self, wait: Wait) -> None:
        self.shown.append(f"please wait: {wait.holder.name if wait.holder else 'somebody'}")

    def build(self, tree: Path) -> None:
        try:
            self._run_hook(["a hook"], str(tree))
        except LockTimeout as error:
            self.shown.append(self.message_of(error))

    @staticmethod
    def message_of(error: LockTimeout) -> str:
        return f"no build of {error.tree} after {error.waited:.0f} s"


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


@contextmanager
def held(tree: Path, lock_dir: Path) -> Iterator[threading.Event]:
    """Another thread holds the tree, as another process would, until the event is set."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with source_tree_lock(tree, lock_dir=lock_dir):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        yield leave
    finally:
        leave.set()
        thread.join()


def test_it_waits_and_says_so(tree: Path, locks: Path) -> None:
    frontend = Frontend(locks)
    with held(tree, locks) as leave:
        threading.Timer(0.1, leave.set).start()
        frontend.build(tree)
    assert frontend.ran == [str(tree)]
    [line] = frontend.shown
    assert line.startswith("please wait: ")


def test_it_gives_up_in_time(tree: Path, locks: Path) -> None:
    frontend = Frontend(locks, timeout=0.1)
    with held(tree, locks):
        frontend.build(tree)
    assert frontend.ran == []
    assert frontend.shown[-1] == f"no build of {tree} after 0 s"


def test_without_the_lock_it_does_the_same(tree: Path, locks: Path) -> None:
    frontend = Frontend(locks, when=lambda tree: False)
    with held(tree, locks):
        frontend.build(tree)
    assert (frontend.ran, frontend.shown) == ([str(tree)], [])


def test_its_words() -> None:
    """What the library passes to callbacks and raises can be made by hand."""
    frontend = Frontend(Path("unused"))
    holder = Holder(42, "make")
    frontend.show_wait(Wait("/tree", "/tmp/some.lock", holder, 5.0))
    frontend.show_wait(Wait("/tree", "/tmp/some.lock", None, 5.0))
    assert frontend.shown == ["please wait: make (pid 42)", "please wait: somebody"]
    error = LockTimeout("too late", tree="/tree", waited=60.0, holder=holder)
    assert frontend.message_of(error) == "no build of /tree after 60 s"
