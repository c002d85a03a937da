"""What `test_stress` runs: threads that do all at once what people do with the lock.

Usage: python -m attacks.stress DIRECTORY SECONDS THREADS NAME. Several processes share the
directory.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress

from support import LIMIT, open_descriptors, wait_until

from source_tree_lock import LockTimeout, SourceTreeLock, Wait, source_tree_lock

#: How often a thread does what costs most.
_SELDOM = 0.05
#: A wait with a limit is another one than without, but none here reaches its own. In seconds.
_NEVER_REACHED = 20 * LIMIT


class GivenUp(Exception):
    """A callback ends the wait."""


@contextmanager
def alone(tree: str) -> Iterator[None]:
    """Be inside, as the only one of all threads, tasks and processes: else `AssertionError`.

    The marker of a process that was killed says nothing.
    """
    marker = f"{tree}/inside"
    for _ in range(10):
        try:
            os.symlink(str(os.getpid()), marker)
            break
        except FileExistsError:
            with suppress(FileNotFoundError):
                pid = os.readlink(marker)
                assert not is_running(pid), f"{pid} is inside {tree} as well"
                os.unlink(marker)
    else:
        raise AssertionError("others keep coming in")
    try:
        yield
    finally:
        os.unlink(marker)


def is_running(pid: str) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        # One that was killed has released its locks before it is a zombie (PF_EXITING).
        return fields[0] not in "ZX" and not int(fields[6]) & 4
    return False


class Trees:
    """The trees that all want, the objects that the threads share, and whether it is over."""

    def __init__(self, directory: str, name: str, seconds: float) -> None:
        self.directory = directory
        self.name = name
        self.busy = [self.new(f"busy-{number}") for number in range(4)]
        self.shared = [
            (tree, source_tree_lock(tree, timeout=timeout))
            for tree in self.busy
            for timeout in (None, _NEVER_REACHED)
        ]
        self.ends = time.monotonic() + seconds
        self.has_failed = threading.Event()
        self.ways_gone: set[str] = set()

    def new(self, name: str) -> str:
        tree = f"{self.directory}/{name}"
        os.makedirs(tree, exist_ok=True)
        return tree

    def is_over(self) -> bool:
        """On a loaded machine, it goes on until each way was gone."""
        late = time.monotonic() - self.ends
        return self.has_failed.is_set() or late > (0 if len(self.ways_gone) == 6 else LIMIT)


class Worker:
    """A thread that goes one way after the other."""

    def __init__(self, number: int, trees: Trees) -> None:
        self.trees = trees
        self.own = trees.new(f"own-{trees.name}-{number}")
        self.random = random.Random(f"{trees.name} {number}")

    def run(self) -> None:
        often = [self.try_to_enter, self.enter_again, self.give_up_in_a_callback]
        seldom = [self.run_asyncio, self.fork, self.hand_over]
        try:
            while not self.trees.is_over():
                way = self.random.choice(seldom if self.random.random() < _SELDOM else often)
                way()
                self.trees.ways_gone.add(way.__name__)
        except BaseException:
            self.trees.has_failed.set()
            raise

    def any_lock(self) -> tuple[str, SourceTreeLock]:
        """One that lets its caller in, sooner or later."""
        if self.random.random() < 0.5:
            return self.random.choice(self.trees.shared)
        tree = self.random.choice([*self.trees.busy, self.own])
        return tree, source_tree_lock(tree, timeout=self.random.choice([None, _NEVER_REACHED]))

    def try_to_enter(self) -> None:
        tree = self.random.choice(self.trees.busy)
        lock = source_tree_lock(tree)
        if lock.acquire(timeout=self.random.choice([0, 0.001, 0.02])):
            with alone(tree):
                pass
            lock.release()
        assert not lock.is_owner()

    def enter_again(self) -> None:
        """From inside of a tree of its own."""
        tree, lock = self.any_lock()
        with (
            source_tree_lock(self.own, timeout=_NEVER_REACHED),
            lock,
            source_tree_lock(tree, timeout=0),
            alone(tree),
            lock,
        ):
            assert lock.environ
            holder = lock.holder()
            assert holder is None or holder.pid == os.getpid()
        assert not lock.is_owner()

    def give_up_in_a_callback(self) -> None:
        def refuse(wait: Wait) -> None:
            assert str(wait)
            if self.random.random() < 0.5:
                raise GivenUp

        tree = self.random.choice(self.trees.busy)
        lock = source_tree_lock(tree, timeout=_NEVER_REACHED, on_wait=refuse)
        with suppress(GivenUp), lock, alone(tree):
            pass

    def run_asyncio(self) -> None:
        async def enter() -> None:
            tree, lock = self.any_lock()
            async with lock, source_tree_lock(tree, timeout=0):
                with alone(tree):
                    await asyncio.sleep(self.random.choice([0, 0.001]))

        async def enter_in_time() -> None:
            limit = self.random.choice([0.001, 0.02, _NEVER_REACHED])
            try:
                await asyncio.wait_for(enter(), limit)
            except asyncio.TimeoutError as error:
                # No `LockTimeout`, which is one of its kinds from Python 3.11 on.
                if isinstance(error, LockTimeout):
                    raise

        async def main() -> None:
            await asyncio.gather(*[enter_in_time() for _ in range(3)])

        asyncio.run(main())

    def fork(self) -> None:
        """Fork, inside of its own tree or not; the child enters like anyone, or is killed."""
        tree, lock = self.any_lock()
        is_outside = tree == self.own or self.random.random() < 0.5
        with nullcontext() if is_outside else source_tree_lock(self.own, timeout=_NEVER_REACHED):
            child = self.child(tree, lock)
            if self.random.random() < 0.5:
                time.sleep(self.random.random() * 0.01)
                os.kill(child, signal.SIGKILL)
            wait_for(child)

    def hand_over(self) -> None:
        """The children take turns. One may be killed, and its parent may leave before they do."""
        tree, lock = self.any_lock()
        with lock:
            environ = lock.environ
            children = [self.child(tree, lock, environ) for _ in range(3)]
            if self.random.random() < 0.5:
                os.kill(children[0], signal.SIGKILL)
            if self.random.random() < 0.7:
                wait_for(*children)
                return
        wait_for(*children)

    def child(self, tree: str, lock: SourceTreeLock, environ: dict[str, str] | None = None) -> int:
        child = os.fork()
        if child:
            return child
        status = 4
        try:
            signal.alarm(int(3 * LIMIT))  # ends one that hangs
            os.environ.update(environ or {})
            assert not any(source_tree_lock(each).is_owner() for each in self.trees.busy)
            with lock, alone(tree):
                time.sleep(0.001)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def wait_for(*children: int) -> None:
    """Until they have ended, in a good way or killed by us."""
    for child in children:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), f"child ended with status {status}"


def main(directory: str, seconds: float, number: int, name: str) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # a child whose time is up tells where it is
    # What hangs tells where, and ends.
    faulthandler.dump_traceback_later(seconds + 6 * LIMIT, exit=True)
    warnings.simplefilter("ignore")  # of forks beside threads, and of locks that were dropped
    logging.disable()
    gc.set_threshold(500, 2, 2)
    trees = Trees(directory, name, seconds)
    threads, descriptors = len(os.listdir("/proc/self/task")), open_descriptors()
    with ThreadPoolExecutor(number) as pool:
        workers = [pool.submit(Worker(each, trees).run) for each in range(number)]
    for worker in workers:
        worker.result()
    assert len(trees.ways_gone) == 6, f"a way was never gone: {trees.ways_gone}"
    gc.collect()
    # Threads that wait for callers that gave up end soon.
    with suppress(AssertionError):
        wait_until(lambda: open_descriptors() <= descriptors)
        wait_until(lambda: len(os.listdir("/proc/self/task")) <= threads)
    assert open_descriptors() <= descriptors, open_descriptors() - descriptors
    assert len(os.listdir("/proc/self/task")) <= threads


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
