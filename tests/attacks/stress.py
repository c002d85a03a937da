"""What `test_threads` runs: threads that do all at once what threads can do with the lock.

Usage: python -m attacks.stress DIRECTORY SECONDS THREADS. It tells as JSON how often each way was
gone, and what went wrong.
"""

from __future__ import annotations

import _thread
import asyncio
import faulthandler
import gc
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import LIMIT, is_free, open_descriptors

from source_tree_lock import (
    LockTimeout,
    SourceTreeLock,
    Wait,
    _held,
    _kernel_lock,
    _queue,
    source_tree_lock,
)

#: How many trees all threads want; each has two of its own besides.
BUSY = 4
#: How often a thread does what costs most.
_SELDOM = 0.05
#: A wait with a limit is another one than without, but none here reaches its own: on a machine with
#: five times as many programs as cores, sixty turns of others took a minute. In seconds, as all.
_NEVER_REACHED = 20 * LIMIT
#: How long a child may take, and all threads when it is over: what hangs is found by these.
_CHILD = 3 * LIMIT
_LEAVING = 4 * LIMIT


class GivenUp(Exception):
    """A callback ends the wait."""


@contextmanager
def alone(tree: str) -> Iterator[None]:
    """Be inside, as the only one of all threads and processes: else `FileExistsError`."""
    marker = f"{tree}/inside"
    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    try:
        yield
    finally:
        os.unlink(marker)


class Trees:
    """The trees that all want, the objects that all share, and whether it is over."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.busy = [self.new(f"busy-{number}") for number in range(BUSY)]
        self.shared = [
            (tree, source_tree_lock(tree, timeout=timeout))
            for tree in self.busy
            for timeout in (None, _NEVER_REACHED)
        ]
        self.is_over = threading.Event()
        self.failures: list[str] = []

    def new(self, name: str) -> str:
        tree = f"{self.directory}/{name}"
        os.mkdir(tree)
        return tree


class Worker(threading.Thread):
    """A thread that goes one way after the other."""

    def __init__(self, number: int, trees: Trees) -> None:
        super().__init__(daemon=True)
        self.trees = trees
        self.own = trees.new(f"own-{number}")
        self.dropped = trees.new(f"dropped-{number}")
        self.random = random.Random(number)
        self.gone: Counter[str] = Counter()

    def run(self) -> None:
        ways = [
            self.enter_by_a_shared_object,
            self.enter_by_an_object_of_its_own,
            self.enter_again,
            self.enter_two_trees,
            self.be_told,
            self.look_and_hand_over,
            self.drop_what_it_holds,
            self.run_an_event_loop,
            self.fork,
        ]
        try:
            while not self.trees.is_over.is_set():
                way = self.random.choice(ways)
                seldom = way in (self.run_an_event_loop, self.fork)
                if not seldom or self.random.random() < _SELDOM:
                    way()
                    self.gone[way.__name__] += 1
        except BaseException:
            self.trees.failures.append(traceback.format_exc())
            self.trees.is_over.set()

    def any_lock(self) -> tuple[str, SourceTreeLock]:
        """One that lets its caller in, sooner or later."""
        if self.random.random() < 0.5:
            return self.random.choice(self.trees.shared)
        tree = self.random.choice([*self.trees.busy, self.own])
        return tree, source_tree_lock(tree, timeout=self.random.choice([None, _NEVER_REACHED]))

    def enter_by_a_shared_object(self) -> None:
        tree, lock = self.random.choice(self.trees.shared)
        with lock, alone(tree):
            assert lock.locked()

    def enter_by_an_object_of_its_own(self) -> None:
        tree = self.random.choice(self.trees.busy)
        lock = source_tree_lock(tree, timeout=self.random.choice([0, 0.001, 0.02]))
        if lock.acquire(blocking=self.random.random() < 0.8):
            with alone(tree):
                pass
            lock.release()
        assert not lock.locked()

    def enter_again(self) -> None:
        tree, lock = self.any_lock()
        with lock, source_tree_lock(tree, timeout=0), alone(tree), lock:
            pass
        assert not lock.locked()

    def enter_two_trees(self) -> None:
        tree = self.random.choice(self.trees.busy)
        with (
            source_tree_lock(self.own, timeout=_NEVER_REACHED),
            alone(self.own),
            source_tree_lock(tree, timeout=_NEVER_REACHED),
            alone(tree),
        ):
            pass

    def be_told(self) -> None:
        def refuse(wait: Wait) -> None:
            assert str(wait)
            if self.random.random() < 0.5:
                raise GivenUp

        tree = self.random.choice(self.trees.busy)
        try:
            with source_tree_lock(tree, timeout=_NEVER_REACHED, on_wait=refuse), alone(tree):
                pass
        except GivenUp:
            pass

    def look_and_hand_over(self) -> None:
        tree, lock = self.any_lock()
        assert lock.is_held() in (True, False)
        assert str(lock.holder()) != repr(lock)
        with lock, alone(tree):
            assert lock.environ
            assert lock.is_held()

    def drop_what_it_holds(self) -> None:
        """Leave it to the garbage collector to release, in whichever thread it runs."""
        lock = source_tree_lock(self.dropped, timeout=_NEVER_REACHED)
        lock.acquire()
        assert lock.locked()
        assert not is_free(self.dropped)
        circle: list[object] = [lock]
        circle.append(circle)
        if self.random.random() < _SELDOM:
            del lock, circle
            gc.collect()

    def run_an_event_loop(self) -> None:
        asyncio.run(self.run_tasks())

    async def run_tasks(self) -> None:
        async def enter(tree: str, lock: SourceTreeLock) -> None:
            async with lock, source_tree_lock(tree, timeout=0):
                with alone(tree):
                    await asyncio.sleep(self.random.choice([0, 0.001]))

        async def enter_in_time() -> None:
            try:
                await asyncio.wait_for(
                    enter(*self.any_lock()), self.random.choice([0.001, 0.02, _NEVER_REACHED])
                )
            except asyncio.TimeoutError as error:
                # No `LockTimeout`, which is one of its kinds from Python 3.11 on.
                if isinstance(error, LockTimeout):
                    raise

        await asyncio.gather(*[enter_in_time() for _ in range(3)])

    def fork(self) -> None:
        """Fork, inside of its own tree or not; the child enters like anyone."""
        if self.random.random() < 0.5:
            with source_tree_lock(self.own, timeout=_NEVER_REACHED), alone(self.own):
                self.fork_here()
        else:
            self.fork_here()

    def fork_here(self) -> None:
        tree, lock = self.random.choice(self.trees.shared)
        if self.random.random() < 0.5:
            lock = source_tree_lock(tree, timeout=_NEVER_REACHED)
        child = os.fork()
        if not child:
            status = 9
            try:
                signal.alarm(int(_CHILD))
                status = 0
                for each in (*self.trees.busy, self.own):
                    if source_tree_lock(each).locked():
                        status = 3
                with lock, alone(tree):
                    pass
            except BaseException:
                traceback.print_exc()
                status = 4
            finally:
                os._exit(status)
        deadline = time.monotonic() + _CHILD + 10
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGABRT)  # faulthandler tells where it hangs
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.001)
        assert not ended[1], f"child ended with status {ended[1]}"


def left_behind(trees: Trees, before: tuple[int, set[str]]) -> list[str]:
    """What is still locked, open, running or registered."""
    threads, descriptors = before
    tables = {
        "holds": _held._holds,
        "open": _kernel_lock._open,
        "lines": _queue._lines,
    }
    found = [f"{name}: {table}" for name, table in tables.items() if table]
    found += [f"open: {each}" for each in open_descriptors() - descriptors]
    if _thread._count() > threads:
        found.append(f"{_thread._count() - threads} threads run")
    for path in Path(trees.directory).iterdir():
        tree = str(path)
        for locked in (tree, source_tree_lock(tree).lock_file):
            if not is_free(locked):
                found.append(f"locked: {locked}")
        if os.listdir(tree):
            found.append(f"left in a tree: {os.listdir(tree)}")
    return found


def main(directory: str, seconds: float, number: int) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # a child whose time is up tells where it is
    # Whatever hangs: tell where, and end.
    faulthandler.dump_traceback_later(seconds + _LEAVING + 2 * LIMIT, exit=True)
    warnings.simplefilter("ignore")  # of forks beside threads, and of locks that were dropped
    logging.disable()
    gc.set_threshold(500, 2, 2)
    trees = Trees(directory)
    with source_tree_lock(directory), source_tree_lock(trees.busy[0]):
        pass  # what the first acquisition imports
    before = _thread._count(), open_descriptors()
    workers = [Worker(each, trees) for each in range(number)]
    for worker in workers:
        worker.start()
    trees.is_over.wait(seconds)
    trees.is_over.set()
    deadline = time.monotonic() + _LEAVING
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    if any(worker.is_alive() for worker in workers):
        trees.failures.append("a thread hangs: see its traceback")
        faulthandler.dump_traceback()
    else:
        gc.collect()
        deadline = time.monotonic() + LIMIT
        while left_behind(trees, before) and time.monotonic() < deadline:
            time.sleep(0.01)
        trees.failures += left_behind(trees, before)
    gone: Counter[str] = Counter()
    for worker in workers:
        gone += worker.gone
    print(json.dumps({"gone": gone, "failures": trees.failures}), flush=True)
    os._exit(0)  # whatever hangs


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
