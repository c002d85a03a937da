"""What the caller of an entry is told while it waits: once, and who is in the way."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from holder.crowd import flock_1, linux_only
from in_line import line_of
from support import LIMIT, Child, held_elsewhere, is_free, wait_until
from ways import WAYS

from source_tree_lock import Holder, LockTimeout, Wait, source_tree_lock
from source_tree_lock._holder.proc_locks import kernel_holder
from source_tree_lock.adapters import locked_hooks, locked_runner


def a_waiting_thread(tree: Path, told: list[Wait]) -> threading.Thread:
    def wait() -> None:
        with source_tree_lock(tree, timeout=LIMIT, on_wait=told.append):
            pass

    return threading.Thread(target=wait)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("timeout", [None, LIMIT], ids=["for ever", "bounded"])
@pytest.mark.parametrize("temp_dir_of_holder", ["temp", "."])
def test_whom_it_waits_for_is_told_once_and_logged_once(
    asynchronous: bool,
    timeout: float | None,
    temp_dir_of_holder: str,
    tree: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    told: list[Wait] = []

    with held_elsewhere(tree, environ={"TMPDIR": str(tmp_path / temp_dir_of_holder)}) as holder:

        def on_wait(who: Wait) -> None:
            told.append(who)
            threading.Timer(0.1, holder.say).start()

        lock = source_tree_lock(tree, timeout=timeout, on_wait=on_wait)

        async def main() -> None:
            async with lock, lock:
                pass

        if asynchronous:
            asyncio.run(main())
        else:
            with lock, lock:
                pass
        [who] = told
        assert who.holder is not None
        assert who.holder.pid == holder.pid
        [record] = [each for each in caplog.records if each.name == "source_tree_lock"]
        assert record.levelno == logging.INFO
        assert str(tree) in record.getMessage()
        assert str(holder.pid) in record.getMessage()


def test_an_error_in_on_wait_ends_the_wait_and_leaves_nothing_locked(
    tree: Path, no_leaks: object
) -> None:
    def on_wait(holder: Wait) -> None:
        raise ZeroDivisionError

    with held_elsewhere(tree):
        for timeout in (None, LIMIT):
            with pytest.raises(ZeroDivisionError):
                source_tree_lock(tree, timeout=timeout, on_wait=on_wait).acquire()
        assert line_of(source_tree_lock(tree).lock_file) is None


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


#: Paths of which some letters take two columns, or none.
WIDE = [
    "/home/me/项目/日本語のパッケージ",
    "/home/me/cafe\u0301/re\u0301sume\u0301",
    "/home/me/full/😀/😀",
]


def columns_of(line: str) -> int:
    """By hand: what is wide in these paths, and what combines."""
    return sum(0 if each == "\u0301" else 1 + (ord(each) > 0x2E7F) for each in line)


@pytest.mark.parametrize("path", WIDE, ids=ascii)
def test_letters_that_take_two_columns_or_none_are_counted_as_such(path: str) -> None:
    wait = Wait(path, "/tmp/a.lock", Holder(4242, "pip"), 5.0)
    whole = str(wait)
    for columns in range(columns_of(whole) + 3):
        line = wait.line(columns)
        assert columns_of(line) <= columns
        assert (line == whole) == (columns >= columns_of(whole))
        if line != whole and "…" in line:
            start = line.partition("…")[2]
            assert path.endswith(start)
            assert not start.startswith("\u0301"), "it would stand on the mark"
            # What is left free is less than the next letter would take.
            assert columns - columns_of(line) < 2


def test_a_path_that_a_terminal_would_obey_is_not_told_as_it_is() -> None:
    wait = Wait("/home/\033[31mred\n", "/tmp/a.lock", None, 0.0)
    for text in (str(wait), repr(wait), wait.line(200), wait.line(40)):
        assert text.isprintable()


# Steered by `while_waiting`

ways = pytest.mark.parametrize("way", WAYS)
timeouts = pytest.mark.parametrize("timeout", [None, LIMIT], ids=["for ever", "bounded"])


@pytest.fixture(params=["for ever", "bounded", "by the environment"])
def options(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float | None]:
    """How an entry says how long it waits: itself, or by the environment's defaults."""
    if request.param == "by the environment":
        monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", str(LIMIT))
        monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(tmp_path / "locks"))
        return {}
    return {"timeout": LIMIT if request.param == "bounded" else None}


#: What the holder has: with another temporary directory, it is the tree alone.
blocked_by = pytest.mark.parametrize("blocked_by", ["lock file", "tree"])


class Stop(Exception):
    """What a frontend raises to end a wait."""


def environ_of_holder(blocked_by: str, tmp_path: Path) -> dict[str, str]:
    return {"TMPDIR": str(tmp_path)} if blocked_by == "tree" else {}


@ways
@blocked_by
def test_what_while_waiting_raises_ends_the_wait_with_nothing_held(
    way: str,
    blocked_by: str,
    options: dict[str, float | None],
    tree: Path,
    tmp_path: Path,
    no_leaks: object,
) -> None:
    raised, told = Stop(), []

    def stop(wait: Wait) -> None:
        told.append(wait)
        if len(told) == 2:
            raise raised

    lock = source_tree_lock(tree)
    environ = environ_of_holder(blocked_by, tmp_path)
    with held_elsewhere(tree, environ=environ) as holder:
        with pytest.raises(Stop) as caught:
            WAYS[way](tree, lambda: pytest.fail("it got in"), while_waiting=stop, **options)
        assert caught.value is raised
        assert len(told) == 2
        assert not lock.locked()
        holder.say()  # it was there all the time
        holder.expect("released")
        wait_until(lambda: is_free(lock.lock_file) and is_free(tree))


@ways
@blocked_by
def test_a_wait_ends_within_half_a_second_of_what_is_to_end_it(
    way: str, blocked_by: str, tree: Path, tmp_path: Path
) -> None:
    """The best of some, since a loaded machine is late."""
    took: list[float] = []
    environ = environ_of_holder(blocked_by, tmp_path)
    with held_elsewhere(tree, environ=environ):
        while not took or (min(took) > 0.5 and len(took) < 20):
            pressed = threading.Event()
            since: list[float] = []

            def press(pressed: threading.Event = pressed, since: list[float] = since) -> None:
                since.append(time.monotonic())
                pressed.set()

            def stop(wait: Wait, pressed: threading.Event = pressed) -> None:
                if pressed.is_set():
                    raise Stop

            button = threading.Timer(0.3, press)
            button.start()
            with pytest.raises(Stop):
                WAYS[way](tree, lambda: pytest.fail("it got in"), while_waiting=stop)
            took.append(time.monotonic() - since[0])
    assert min(took) <= 0.5


@ways
def test_on_wait_is_called_once_and_while_waiting_again_and_again(
    way: str, options: dict[str, float | None], tree: Path, no_leaks: object
) -> None:
    first: list[Wait] = []
    then: list[Wait] = []
    with held_elsewhere(tree) as holder:

        def let_go(wait: Wait) -> None:
            then.append(wait)
            if len(then) == 3:
                holder.say()
                holder.expect("released")

        lock = source_tree_lock(tree)
        WAYS[way](tree, lambda: None, on_wait=first.append, while_waiting=let_go, **options)
    [wait] = first
    for each in (wait, *then[:3]):  # by then it has left
        assert each.tree == str(tree.resolve())
        assert each.lock_file == str(lock.lock_file)
    pids = [each.holder and each.holder.pid for each in (wait, *then[:3])]
    assert pids == [holder.pid] * 4
    times = [each.waited for each in then]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # On a loaded machine a call is late, and never early, but for rounding.
    assert all(gap >= 0.249 for gap in gaps), times
    assert wait.waited <= times[0]


@timeouts
@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_a_wait_that_was_granted_meanwhile_is_told_of_no_more(
    timeout: float | None, asynchronous: bool, tree: Path, no_leaks: object
) -> None:
    told: list[Wait] = []
    with held_elsewhere(tree) as holder:

        def let_go(wait: Wait) -> None:
            told.append(wait)
            if len(told) == 1:
                holder.say()
                holder.expect("released")
                wait_until(lambda: kernel_holder(identity) == os.getpid())
                time.sleep(0.3)  # the next call is due, and nobody is in the way any more

        status = source_tree_lock(tree).lock_file.stat()
        identity = (status.st_dev, status.st_ino)
        way = WAYS["async with" if asynchronous else "with"]
        way(tree, lambda: None, timeout=timeout, while_waiting=let_go)
    assert len(told) == 1


@ways
def test_while_waiting_is_called_where_the_entry_waits(way: str, tree: Path) -> None:
    threads: list[int] = []
    tasks: list[object] = []

    def stop(wait: Wait) -> None:
        threads.append(threading.get_ident())
        if "async" in way:
            tasks.append(asyncio.current_task())
        raise Stop

    with held_elsewhere(tree), pytest.raises(Stop):
        WAYS[way](tree, lambda: None, while_waiting=stop)
    assert threads == [threading.get_ident()]
    assert None not in tasks


def test_a_free_tree_calls_neither(tree: Path) -> None:
    def never(wait: Wait) -> None:
        raise AssertionError("nobody is in the way")

    for way in WAYS.values():
        way(tree, lambda: None, on_wait=never, while_waiting=never)


def an_attempt(way: str, tree: Path, on_wait: Callable[[Wait], object]) -> Callable[[], object]:
    """What tries for a moment to get in, by one object for all attempts; whether it got in."""
    options = {"timeout": 0.05, "on_wait": on_wait}
    lock = source_tree_lock(tree, **options)  # type: ignore[arg-type]
    hooks = locked_hooks(SimpleNamespace(build_wheel=lambda: None), tree, **options)  # type: ignore[arg-type]
    run = locked_runner(lambda *_: None, **options)  # type: ignore[arg-type]

    attempts: dict[str, Callable[[], object]] = {
        "acquire": lock.acquire,
        "acquire with a timeout": lambda: lock.acquire(timeout=0.05),
        "with": lock.__enter__,
        "decorator": lock(lambda: None),
        "locked_runner": lambda: run(["a hook"], str(tree)),
        "locked_hooks": hooks.build_wheel,
    }
    return attempts[way]


@pytest.mark.parametrize(
    "way",
    ["acquire", "acquire with a timeout", "with", "decorator", "locked_runner", "locked_hooks"],
)
def test_a_loop_of_short_attempts_is_told_of_once_for_each_holder(
    way: str, tree: Path, caplog: pytest.LogCaptureFixture, no_leaks: object
) -> None:
    caplog.set_level(logging.INFO, "source_tree_lock")
    told: list[Wait] = []
    attempt = an_attempt(way, tree, told.append)
    for holders in (1, 2):
        with held_elsewhere(tree) as holder:
            # The time of an attempt may be up before it has seen that the tree is held.
            attempts = 0
            while len(told) < holders or attempts < 4:
                with suppress(LockTimeout):
                    assert attempt() is False
                attempts += len(told) >= holders
            assert len(told) == holders
            assert told[-1].holder is not None
            assert told[-1].holder.pid == holder.pid
    records = [each for each in caplog.records if each.name == "source_tree_lock"]
    assert len(records) == 2


def test_an_attempt_whose_time_is_up_before_it_can_wait_makes_no_new_wait_of_the_next(
    tree: Path,
) -> None:
    told: list[Wait] = []
    lock = source_tree_lock(tree, on_wait=told.append)
    with held_elsewhere(tree):
        while not told:
            assert not lock.acquire(timeout=0.5)
        assert not lock.acquire(blocking=False)
        before = lock._request.given_up
        while lock._request.given_up is before:  # its time may be up as well, on a busy machine
            assert not lock.acquire(timeout=0.5)
    assert len(told) == 1


def test_a_loop_of_short_attempts_in_a_task_is_told_of_once(tree: Path) -> None:
    told: list[Wait] = []
    lock = source_tree_lock(tree, timeout=0.05, on_wait=told.append)

    async def main() -> None:
        attempts = 0
        while not told or attempts < 4:
            with pytest.raises(LockTimeout):
                await lock.__aenter__()
            attempts += bool(told)

    with held_elsewhere(tree):
        asyncio.run(main())
    assert len(told) == 1


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


def test_once_it_got_in_the_next_wait_is_told_of_again_though_the_holder_is_the_same(
    tree: Path,
) -> None:
    told: list[Wait] = []
    lock = source_tree_lock(tree, on_wait=told.append)
    with Child(LOCKS_TWICE, lock.lock_file) as holder:
        for times in (1, 2):
            holder.expect("held")
            attempts = 0
            while len(told) < times or attempts < 2:
                assert not lock.acquire(timeout=0.05)
                attempts += len(told) >= times
            assert len(told) == times
            holder.say()
            holder.expect("released")
            with lock:
                pass
            holder.say()
