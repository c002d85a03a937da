"""What the caller of an entry is told while it waits: once, and who is in the way."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import re
import threading
import time
from pathlib import Path

import pytest
from holder.crowd import flock_1, linux_only
from support import LIMIT, Child, held_elsewhere, wait_until

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock
from source_tree_lock._holder.kernel_list import kernel_holder


def a_waiting_thread(tree: Path, told: list[Wait]) -> threading.Thread:
    def wait() -> None:
        with source_tree_lock(tree, timeout=LIMIT, on_wait=told.append):
            pass

    return threading.Thread(target=wait)


@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["for ever", "bounded"])
def test_a_wait_is_told_of_once(
    tree: Path, timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "source_tree_lock")
    told: list[Wait] = []
    with held_elsewhere(tree) as child:

        def let_go(wait: Wait) -> None:
            told.append(wait)
            child.say()

        with source_tree_lock(tree, timeout=timeout, on_wait=let_go):
            pass
    infos = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert len(told) == len(infos) == 1
    assert infos[0].name == "source_tree_lock"
    assert infos[0].levelno == logging.INFO
    text = infos[0].getMessage()
    assert str(tree) in text
    if os.name == "posix":
        assert told[0].holder is not None
        assert f"(pid {child.pid})" in text


def test_an_async_wait_is_told_of_once(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    told: list[Wait] = []

    async def enter(child: Child) -> None:
        def let_go(wait: Wait) -> None:
            told.append(wait)
            child.say()

        async with source_tree_lock(tree, on_wait=let_go):
            pass

    with held_elsewhere(tree) as child:
        asyncio.run(enter(child))
    assert len(told) == len(caplog.records) == 1


@linux_only
def test_a_wait_for_one_lock_after_the_other_is_told_of_once(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # First the lock file is in the way; when it is let go, the tree itself still is.
    caplog.set_level(logging.INFO, "source_tree_lock")
    told: list[Wait] = []
    lock_file = source_tree_lock(tree).lock_file
    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}) as child:
        with flock_1(lock_file):
            thread = a_waiting_thread(tree, told)
            thread.start()
            wait_until(lambda: bool(told))
        wait_until(lambda: kernel_holder(_inode(lock_file)) == os.getpid())
        child.say()
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert len(told) == len(caplog.records) == 1


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def test_nothing_is_told_when_the_tree_is_free(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    with (
        source_tree_lock(tree, on_wait=lambda _: pytest.fail("nobody is in the way")),
        source_tree_lock(tree, on_wait=lambda _: pytest.fail("it is ours")),
    ):
        pass
    assert not caplog.records


def test_one_attempt_is_no_wait(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    with held_elsewhere(tree):
        lock = source_tree_lock(tree, on_wait=lambda _: pytest.fail("nobody waits"))
        assert not lock.acquire(blocking=False)
    assert not caplog.records


@linux_only
def test_a_timeout_says_which_tree_how_long_and_who_held_it(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree)
    with held_elsewhere(tree) as child:
        started = time.monotonic()
        with (
            pytest.raises(LockTimeout) as caught,
            source_tree_lock(tree.parent / "link", timeout=0.3),
        ):
            pass
        passed = time.monotonic() - started
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert error.tree == str(tree)
    assert 0.3 <= error.waited <= passed
    assert error.holder is not None
    assert error.holder.pid == child.pid
    assert re.fullmatch(
        rf"waited \d+\.\d s for source tree '{tree}', held by .+ \(pid {child.pid}\) for \d+ s",
        str(error),
    ), str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.tree, again.waited) == (str(error), error.tree, error.waited)
    assert again.holder == error.holder


def test_an_unknown_holder_is_called_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("source_tree_lock._waiting.find_holder", lambda *_: None)
    with (
        held_elsewhere(tree),
        pytest.raises(LockTimeout, match=r"held by an unknown process$") as caught,
        source_tree_lock(tree, timeout=0.01),
    ):
        pass
    assert caught.value.holder is None


# In words


@pytest.mark.parametrize(
    ("holder", "waited", "sentence"),
    [
        (Holder(4242, "pip"), 0.0, "waiting for pip (pid 4242) to leave /home/me/project"),
        (Holder(4242, "pip"), 0.9, "waiting for pip (pid 4242) to leave /home/me/project"),
        (
            Holder(4242, "pip", None, 1000.0),
            125.2,
            "waiting 2 min 5 s for pip (pid 4242) to leave /home/me/project",
        ),
        (None, 5.0, "waiting 5 s for an unknown process to leave /home/me/project"),
        (
            Holder(4242, "uv", "node7"),
            3600.0,
            "waiting 1 h 0 min for uv (pid 4242) on node7 to leave /home/me/project",
        ),
    ],
)
def test_a_wait_is_one_sentence(holder: Holder | None, waited: float, sentence: str) -> None:
    assert str(Wait("/home/me/project", "/tmp/a.lock", holder, waited)) == sentence


def test_a_wait_fits_into_any_number_of_columns_and_keeps_the_end_of_the_path() -> None:
    wait = Wait("/home/me/a/long/path/to/project", "/tmp/a.lock", Holder(4242, "pip"), 5.0)
    whole = str(wait)
    for columns in (*range(len(whole) + 3), 1000):
        line = wait.line(columns)
        assert len(line) <= columns
        assert (line == whole) == (columns >= len(whole))
    assert wait.line(50) == "waiting 5 s for pip (pid 4242) to leave …o/project"


def test_a_path_that_a_terminal_would_obey_is_not_told_as_it_is() -> None:
    wait = Wait("/home/\033[31mred\n", "/tmp/a.lock", None, 0.0)
    for text in (str(wait), repr(wait), wait.line(200), wait.line(40)):
        assert text.isprintable()
