"""What a caller hears of its wait: once each, and who holds the tree."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from in_line import holding
from support import LIMIT, Child, held_elsewhere, is_free, wait_until
from ways import WAYS

from source_tree_lock import Holder, LockTimeout, Wait, _wait, source_tree_lock
from source_tree_lock.adapters import locked_hooks, locked_runner

pytestmark = pytest.mark.usefixtures("no_leaks")
#: Each way into a tree, and what the holder has of it.
each_wait = pytest.mark.parametrize(
    ("way", "blocked_by"),
    [(way, "lock file") for way in WAYS] + [("with", "tree"), ("async with", "tree")],
)
Log = pytest.LogCaptureFixture
CALLBACKS = ("on_wait", "while_waiting", "after_wait")


@pytest.fixture
def log(caplog: Log) -> Log:
    """What is said at INFO and above."""
    caplog.set_level(logging.INFO, "source_tree_lock")
    return caplog


# The callbacks


@each_wait
def test_each_callback_is_called_when_it_is_due(
    way: str, blocked_by: str, tree: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _wait.TICK == 0.25
    monkeypatch.setattr(_wait, "TICK", 0.1)
    calls: list[tuple[str, Wait]] = []
    where: set[object] = set()
    file = source_tree_lock(tree).lock_file
    with holding(tree, blocked_by) as holder:

        def called(name: str, wait: Wait) -> None:
            calls.append((name, wait))
            where.add((threading.get_ident(), "async" in way and asyncio.current_task()))
            if len(calls) == 4:
                holder.say()
                holder.expect("released")
                wait_until(lambda: not (is_free(tree) and is_free(file)))
                time.sleep(0.15)  # the next call is due, and nobody is in the way any more

        options: dict[str, Any] = {name: partial(called, name) for name in CALLBACKS}
        WAYS[way](tree, lambda: called("inside", calls[0][1]), timeout=LIMIT, **options)
    on_wait, while_waiting, after_wait = CALLBACKS
    names = [on_wait, *[while_waiting] * 3, after_wait, "inside"]
    assert [name for name, _ in calls] == names
    waits = [wait for _, wait in calls[:-1]]
    assert {(wait.tree, wait.lock_file) for wait in waits} == {(str(tree), str(file))}
    assert {wait.holder and wait.holder.pid for wait in waits[:4]} == {holder.pid}
    # On a busy machine a call is late, and never early, but for rounding.
    times = [wait.waited for wait in waits]
    assert times == sorted(times)
    assert all(each >= number * 0.099 for number, each in enumerate(times[:4])), times
    assert [place[0] for place in where] == [threading.get_ident()]  # type: ignore[index]
    [message] = log.messages
    assert f"(pid {holder.pid}) to leave {tree}" in message


class Stop(Exception):
    """What a frontend raises to end a wait."""


@each_wait
@pytest.mark.parametrize("callback", CALLBACKS)
def test_what_a_callback_raises_ends_the_wait_with_nothing_held(
    callback: str, way: str, blocked_by: str, tree: Path
) -> None:
    raised = Stop()

    def stop(wait: Wait) -> None:
        raise raised

    options: dict[str, Any] = {callback: stop}
    with holding(tree, blocked_by) as holder:
        if callback == "after_wait":
            options["on_wait"] = lambda _: holder.say()
        with pytest.raises(Stop) as caught:
            WAYS[way](tree, lambda: pytest.fail("it got in"), **options)
        assert caught.value is raised
        lock = source_tree_lock(tree)
        assert not lock.is_owner()
        if callback != "after_wait":
            assert not lock.acquire(timeout=0.1)  # nor is a later wait refused
            assert holder.is_silent(0), "the holder was not needed"
            holder.say()
        holder.expect("released")
        wait_until(lambda: is_free(lock.lock_file) and is_free(tree))


def test_nothing_is_told_of_a_free_tree_nor_of_a_single_attempt(tree: Path, log: Log) -> None:
    told: list[Wait] = []
    options: dict[str, Any] = dict.fromkeys(CALLBACKS, told.append)
    for way in WAYS.values():
        way(tree, lambda: None, **options)
    with source_tree_lock(tree), source_tree_lock(tree, **options):
        pass
    with held_elsewhere(tree):
        assert not source_tree_lock(tree, **options).acquire(blocking=False)
    assert (told, log.messages) == ([], [])


def test_a_wait_for_one_lock_after_the_other_is_told_of_once(tree: Path, log: Log) -> None:
    """First the lock file is in the way; when it is released, the tree itself still is."""
    told: list[Wait] = []
    lock = source_tree_lock(tree, timeout=LIMIT, on_wait=told.append)
    with holding(tree, "tree") as holder, ThreadPoolExecutor(1) as pool:
        with Child(LOCKS_TWICE, lock.lock_file) as other:
            other.expect("held")
            entered = pool.submit(lock(lambda: None))
            wait_until(lambda: bool(told))
            other.say()
            other.expect("released")
        wait_until(lambda: not is_free(lock.lock_file))
        holder.say()
        entered.result(LIMIT)
    assert len(told) == len(log.messages) == 1


# Loops of short attempts


def _attempts(tree: Path, **options: Any) -> dict[str, Callable[[], object]]:
    """What tries for a moment to get in, through one object for all attempts."""
    lock = source_tree_lock(tree, **options)
    hooks = locked_hooks(SimpleNamespace(build_wheel=lambda: None), tree, **options)
    run = locked_runner(lambda *_: None, **options)
    return {
        "acquire, and a try between": lambda: lock.acquire(timeout=0.05) or lock.acquire(timeout=0),
        "another object": lambda: source_tree_lock(tree, **options).acquire(),
        "locked_runner": lambda: run(["a hook"], str(tree)),
        "locked_hooks": hooks.build_wheel,
    }


def attempt_until_told(attempt: Callable[[], object], told: list[Wait], times: int) -> None:
    attempts, started = 0, time.monotonic()
    while len(told) < times or attempts < 4:  # the first may be over before it could wait
        assert time.monotonic() < started + LIMIT, "it is never told of"
        with suppress(LockTimeout):
            assert attempt() is False
        attempts += len(told) >= times


@pytest.mark.parametrize("way", _attempts(Path(), timeout=0))
def test_a_loop_of_short_attempts_is_told_of_once_for_each_holder(
    way: str, tree: Path, log: Log
) -> None:
    told: list[Wait] = []
    attempt = _attempts(tree, timeout=0.05, on_wait=told.append)[way]
    for times in (1, 2):
        with held_elsewhere(tree) as holder:
            attempt_until_told(attempt, told, times)
        assert [each.holder and each.holder.pid for each in told[times - 1 :]] == [holder.pid]
    assert len(log.messages) == 2


def test_threads_that_share_a_lock_are_each_told_once(tree: Path) -> None:
    own = threading.local()

    def tell(wait: Wait) -> None:
        own.told.append(wait)

    lock = source_tree_lock(tree, on_wait=tell)

    def count(_: int) -> int:
        own.told = []
        attempt_until_told(lambda: lock.acquire(timeout=0.05), own.told, 1)
        return len(own.told)

    with held_elsewhere(tree), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, range(4))) == [1] * 4


#: Another program, which leaves no record: nothing tells its two locks apart. Argument: a file.
LOCKS_TWICE = """
    import fcntl
    file = open(sys.argv[1], "w")
    for _ in range(2):
        fcntl.flock(file, fcntl.LOCK_EX)
        tell("held")
        heard()
        fcntl.flock(file, fcntl.LOCK_UN)
        tell("released")
        heard()
"""


def test_once_it_got_in_the_next_wait_for_the_same_holder_is_told_of_again(tree: Path) -> None:
    told: list[Wait] = []
    lock = source_tree_lock(tree, on_wait=told.append)
    with Child(LOCKS_TWICE, lock.lock_file) as holder:
        for times in (1, 2):
            holder.expect("held")
            attempt_until_told(lambda: lock.acquire(timeout=0.05), told, times)
            assert len(told) == times
            holder.say()
            holder.expect("released")
            with lock:
                pass
            holder.say()


# Without callbacks: a warning once a wait is long


@pytest.mark.parametrize("seconds", [1, 0.1], ids=["one", "in short attempts"])
def test_a_long_wait_without_callbacks_is_warned_of_once(
    seconds: float, tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    assert _wait.WARN_AFTER == 10
    monkeypatch.setattr(_wait, "WARN_AFTER", 0.2)
    lock = source_tree_lock(tree)
    with held_elsewhere(tree) as holder:
        while not caplog.messages:
            assert not lock.acquire(timeout=seconds)
        assert not lock.acquire(timeout=0.3)
        heard = source_tree_lock(tree, after_wait=lambda _: None)  # its caller is told
        assert not heard.acquire(timeout=0.5)
    [warning] = caplog.messages
    assert re.fullmatch(rf"waiting .*\(pid {holder.pid}\) to leave {re.escape(str(tree))}", warning)


# The error when the time is up


def test_a_timeout_says_which_tree_how_long_and_who_held_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.parent / "link").symlink_to(tree)
    with held_elsewhere(tree) as child:
        started = time.monotonic()
        with pytest.raises(LockTimeout) as caught:
            source_tree_lock(tree.parent / "link", timeout=0.3).acquire()
        error, passed = caught.value, time.monotonic() - started
        monkeypatch.setattr(_wait, "find_holder", lambda *_: None)
        with pytest.raises(LockTimeout, match=r"an unknown process$") as caught:
            source_tree_lock(tree, timeout=0.01).acquire()
        assert caught.value.holder is None
    assert error.tree == str(tree.resolve())
    assert 0.3 <= error.waited <= passed
    assert error.holder is not None
    assert error.holder.pid == child.pid
    held_by = rf"held by .+ \(pid {child.pid}\) for \d+ s"
    assert re.fullmatch(rf"waited \d+\.\d s for source tree '.+', {held_by}", str(error))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


# Made by hand, and in words


def test_a_wait_is_one_sentence() -> None:
    here = "to leave /home/me/project"
    remote = Holder(4242, "uv", "node7", is_local=False)
    stopped = Holder(4242, "make", user="ann", is_stopped=True)
    for holder, waited, sentence in (
        (Holder(4242, "pip"), 0.9, f"waiting for pip (pid 4242) {here}"),
        (Holder(4242, "pip", None, 1.0), 125.2, f"waiting 2 min 5 s for pip (pid 4242) {here}"),
        (None, 59.9, f"waiting 59 s for an unknown process {here}"),
        (remote, 3600.0, f"waiting 1 h 0 min for uv (pid 4242) on node7 {here}"),
        (stopped, 1, f"waiting 1 s for make (pid 4242, user ann), which is stopped, {here}"),
    ):
        assert str(Wait("/home/me/project", "/tmp/a.lock", holder, waited)) == sentence


def test_a_wait_fits_into_any_terminal_and_keeps_the_end_of_the_path() -> None:
    wait = Wait("/home/me/a/long/path/to/project", "/tmp/a.lock", Holder(4242, "pip"), 5.0)
    whole = str(wait)
    for columns in (*range(len(whole) + 3), 1000):
        assert len(wait.fit(columns)) <= columns
        assert (wait.fit(columns) == whole) == (columns >= len(whole))
    assert wait.fit(50) == "waiting 5 s for pip (pid 4242) to leave …o/project"
    wait = Wait("/home/\033[31mred\n", "/tmp/a.lock", None, 0.0)  # which a terminal would obey
    for text in (str(wait), repr(wait), wait.fit(200), wait.fit(40)):
        assert text.isprintable()
