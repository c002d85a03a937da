"""The way into a source tree and out of it: what is held, by whom, and what an entry has to do.

All policy stands here; what the kernel does, how callers wait and who holds what stand below.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from _weakref import ref
from contextlib import suppress

from ._handover import good_handover, uv_holds_for_us
from ._hold import Hold, enter_context, holds, was_started_from
from ._kernel import NO_SUCH_LOCK, KernelLock, guard, leads_to, prepare_locks, unavailable
from ._lock_file import open_lock_file
from ._log import informs, logger
from ._mounts import warn_if_other_hosts_get_in
from ._owner import current_owner, current_thread
from ._process import POSIX
from ._record import prepare_records
from ._tree import Tree, lock_file_of, open_tree
from ._waiting import (
    RESTARTS,
    Caller,
    TaskCaller,
    ThreadCaller,
    current_status,
    restarted_in_vain,
)
from ._who_holds import find_holder, kernel_holder, kernel_holders, may_be_ancestors
from .errors import LockTimeout, LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from ._holder import Holder
    from ._tree import AnyPath, Digest


_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


class _Here(threading.local):
    """The entries of the running thread that are under way.

    They are several where tasks wait, or where a signal handler interrupted one.
    """

    def __init__(self) -> None:
        # Weak: a task that nobody has any more must not be kept by its wait.
        self.unfinished: dict[int, ref[Entry]] = {}


_here = _Here()


class _UnderWay:
    """Has an entry stand among the unfinished ones of its thread."""

    __slots__ = ("_key", "_unfinished")

    def __init__(self, entry: Entry) -> None:
        self._key = id(entry)
        self._unfinished = _here.unfinished
        self._unfinished[self._key] = ref(entry)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        self._unfinished.pop(self._key, None)


class Entry:
    """One way into a tree, from the first attempt until it is left.

    All that it opens hangs on it from the moment that it is open, so that whatever
    interrupts it, `abandon` gives everything back.
    """

    __slots__ = (
        "__weakref__",
        "_blocked_by",
        "_caller",
        "_deadline",
        "_digest",
        "_file",
        "_lock_dir",
        "_lock_file",
        "_make_directory",
        "_may_be_ancestors",
        "_on_wait",
        "_path",
        "_pause",
        "_restarts",
        "_seen",
        "_started",
        "_told",
        "_tree",
        "_under_uv",
        "hold",
        "owner",
        "plain",
    )

    def __init__(
        self,
        path: AnyPath,
        seconds: float | None,
        digest: Digest,
        lock_dir: AnyPath | None,
        on_wait: Callable[[Holder | None], object] | None,
        *,
        plain: bool,
    ) -> None:
        self.owner = current_owner()
        self.hold: Hold | None = None
        self.plain = plain
        self._path = path
        self._digest = digest
        self._lock_dir = lock_dir
        self._on_wait = on_wait
        self._started = time.monotonic()
        self._deadline = None if seconds is None else self._started + seconds
        self._tree: Tree | None = None
        self._seen: Tree | None = None
        self._lock_file = ""
        self._file: KernelLock | None = None
        self._caller: Caller | None = None
        self._blocked_by: KernelLock | None = None
        self._make_directory = False
        self._under_uv = False
        self._may_be_ancestors = True
        self._told = False
        self._restarts = 0
        self._pause = _FIRST_PAUSE

    def lasts(self) -> bool:
        return self.hold is not None and self in self.hold.entries and self.hold.is_mine()

    # Getting in

    def enter(self) -> bool:
        """Get in, waiting in this thread; false when the time is up."""
        with _UnderWay(self):
            while self._has_to_wait():
                self._block()
        return self.hold is not None

    async def enter_async(self) -> bool:
        """Get in, waiting in this task; false when the time is up."""
        with _UnderWay(self):
            while self._has_to_wait():
                await self._pause_task()
        return self.hold is not None

    def _has_to_wait(self) -> bool:
        """Whether it is neither in by now nor out of time; then all is ready for the wait."""
        if self._advance() or self._is_over():
            return False
        self._prepare_to_wait()
        return True

    def _advance(self) -> bool:
        """Get in if that is possible without waiting; else say in `_blocked_by` what is in the way.

        First the lock file, where waiters queue, then the tree; and once both are granted,
        the paths must still lead to what was locked. Nobody gets in any other way.
        """
        while True:
            self._take_from_line()
            if self._tree is None:
                self._tree = open_tree(self._path)
            tree = self._tree
            if self._re_enter(tree):
                return True
            path, self._make_directory = lock_file_of(tree, self._digest, self._lock_dir)
            self._seen, self._lock_file = tree, path
            blocked_by = self._try_file(path) or self._try_tree(tree)
            if blocked_by is not None:
                return self._enter_ancestors_hold(tree, blocked_by)
            try:
                status = None if self._file is None else current_status(self._file)
                is_current = tree.is_current(after_a_wait=self._told) and (
                    self._uv_still_holds(tree) if self._file is None else status is not None
                )
            except OSError as error:
                raise unavailable(error, path, "cannot see whether the lock is in place") from error
            if is_current:
                return self._register(Hold(self.owner, tree, path, self._file, None), status)
            self._give_back()
            self._restarts += 1
            if self._restarts >= RESTARTS:
                raise restarted_in_vain(path)

    def _take_from_line(self) -> None:
        if self._caller is None:
            return
        self._caller.stand_back()
        outcome = self._caller.outcome()
        if isinstance(outcome, KernelLock):
            self._file = outcome
        self._caller = None
        if isinstance(outcome, Exception):
            raise outcome

    def _re_enter(self, tree: Tree) -> bool:
        hold = holds.get(tree.identity)
        if hold is None or hold.owner is not self.owner or hold.is_ending:
            return False
        self.hold = hold
        hold.entries.append(self)
        self._give_back()
        return True

    def _try_file(self, path: str) -> KernelLock | None:
        """Lock the lock file, or give it back as what is in the way."""
        if self._under_uv:
            return None
        if self._file is not None and self._file.path != path:
            self._file.close()
            self._file = None
        if self._file is None:
            self._file = open_lock_file(path, make_directory=self._make_directory)
        try:
            prepare_locks()
            prepare_records()
        except (ImportError, OSError) as error:  # for want of a free descriptor, for one
            code = error.errno if isinstance(error, OSError) else None
            raise LockUnavailable(
                code or errno.EIO, f"what is to lock it cannot be imported ({error})", path
            ) from error
        try:
            return None if self._file.try_lock() else self._file
        except OSError as error:
            raise unavailable(
                error,
                path,
                "the file system refuses to lock the lock file; mount it so that flock works "
                "(Lustre: -o flock), or name another directory with lock_dir or "
                "SOURCE_TREE_LOCK_DIR",
            ) from error

    def _try_tree(self, tree: Tree) -> KernelLock | None:
        """Lock the tree itself, where such a lock exists, or give it back as what is in the way."""
        if self._file is not None:
            warn_if_other_hosts_get_in(
                tree.path, tree.identity, self._file.path, self._file.identity[0]
            )
        if tree.lock is None:
            return None
        try:
            return None if tree.lock.try_lock() else tree.lock
        except OSError as error:
            if error.errno not in NO_SUCH_LOCK:
                raise unavailable(error, tree.path, "the source tree cannot be locked") from error
        logger().debug("Source tree %r has no lock of its own; its lock file serves.", tree.path)
        tree.close()
        tree.lock = None
        return None

    def _enter_ancestors_hold(self, tree: Tree, blocked_by: KernelLock) -> bool:
        """Get in where an ancestor holds the tree for us; else note what is in the way."""
        self._blocked_by = blocked_by
        handover = good_handover(tree.identity)
        if handover is not None:
            inside = Tree(tree.path, tree.identity, None, tree.given)
            return self._register(
                Hold(self.owner, inside, handover.lock_file, None, handover), None
            )
        if self._told or self._under_uv:
            return False
        file = (0, 0) if self._file is None else self._file.identity
        named = kernel_holders(tree.identity, file)
        self._may_be_ancestors = may_be_ancestors(named)
        if (
            self._may_be_ancestors
            and blocked_by is self._file
            and uv_holds_for_us(named.get(file), tree.identity)
        ):
            blocked_by.close()
            self._file = None
            self._under_uv = True
            return self._advance()
        return False

    def _uv_still_holds(self, tree: Tree) -> bool:
        """Whether the uv above us holds the lock file: it may have died while we waited."""
        status = leads_to(self._lock_file, os.lstat)
        self._under_uv = status is not None and uv_holds_for_us(
            kernel_holder((status.st_dev, status.st_ino)), tree.identity
        )
        return self._under_uv

    def _register(self, hold: Hold, status: os.stat_result | None) -> bool:
        self.hold = hold
        hold.entries.append(self)
        with guard:
            if holds.setdefault(hold.tree.identity, hold) is hold:
                if hold.handover is not None:
                    self._give_back()
                self._tree = self._file = None
        if hold.is_mine():
            if status is not None:
                hold.sign(status)
            enter_context(hold)
            return True
        # Another owner of this process is in, by a way that no kernel lock shows: it entered
        # an ancestor's hold, or holds another lock file where trees cannot be locked.
        self.hold = self._blocked_by = None
        self._give_back()
        return False

    # Waiting

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _prepare_to_wait(self) -> None:
        """Once for each entry: refuse a wait that cannot end, and tell whom it is for."""
        if self._told:
            return
        self._told = True
        tree = self._seen_tree()
        if self.plain and self._is_barred_by_its_thread():
            raise RuntimeError(
                f"source tree {tree.path!r} is already being entered by this very thread, in a "
                "task of its event loop or in what a signal handler has interrupted: neither could "
                "go on while the thread waits. In a task, use `async with` or `asyncio.to_thread`"
            )
        inside = holds.get(tree.identity) or self._hold_of_lock_file()
        if inside is not None:
            self._refuse_endless_wait(inside)
        is_heard = self._on_wait is not None or informs()
        # While they look, waiters stand in no line, and they may be many.
        holder = self._find_holder(tree) if is_heard or self._may_be_ancestors else None
        if is_heard:
            logger().info(
                "Waiting for source tree %r, held by %s.", tree.path, holder or "an unknown process"
            )
        if inside is not None and was_started_from(inside):
            logger().warning(
                "Waiting for source tree %r, which is held by the task or context that started "
                "this one: the wait never ends if the holder waits for it.",
                tree.path,
            )
        if holder is not None and holder.is_ancestor():
            logger().warning(
                "Waiting for source tree %r, which is held by an ancestor of this process, %s: "
                "the wait never ends if the holder waits for it. Hand the hold over: add "
                "`lock.environ` (the variable SOURCE_TREE_LOCK_HELD) to the environment of the "
                "child.",
                tree.path,
                holder,
            )
        if self._on_wait is not None:
            self._on_wait(holder)

    def _find_holder(self, tree: Tree) -> Holder | None:
        # While the lock file is ours, it tells of nobody else.
        is_ours = self._file is not None and self._file.held
        return find_holder(None if is_ours else self._lock_file, tree.identity)

    def _hold_of_lock_file(self) -> Hold | None:
        """What this process holds through the same lock file: a digest may give two trees one."""
        mine = self._file and self._file.identity
        for hold in list(holds.values()):
            if hold.file is not None and hold.file.identity == mine:
                return hold
        return None

    def _is_barred_by_its_thread(self) -> bool:
        """Whether another entry of this thread, which can only go on later, keeps this one out."""
        unfinished = [each() for each in list(_here.unfinished.values())]
        return any(
            each is not None and each is not self and each._bars(self._lock_file)
            for each in unfinished
        )

    def _bars(self, lock_file: str) -> bool:
        if self._lock_file != lock_file:
            return False
        if self._caller is not None:
            return self._caller.bars_its_thread()
        # One that was interrupted in the kernel's queue stands in it no more, and may just have
        # been granted the lock: to lock what is locked changes nothing.
        with suppress(OSError, ValueError):
            return self._file is not None and self._file.try_lock()
        return False

    def _refuse_endless_wait(self, inside: Hold) -> None:
        if inside.owner is self.owner:
            if inside.is_ending:
                raise RuntimeError(
                    f"source tree {inside.tree.path!r} is just being released by this very thread "
                    "or task, which a signal handler, or the like, interrupted: it cannot enter now"
                )
            raise RuntimeError(
                f"source tree {inside.tree.path!r}, which this very thread or task holds, has the "
                f"same lock file, {self._lock_file!r}; leave it first, or give each tree its own"
            )
        here = current_thread()
        if inside.thread is not here:
            return
        if inside.owner is here:
            raise RuntimeError(
                f"source tree {inside.tree.path!r} is held by this very thread, outside its "
                "event loop, so that a task would wait for ever; hold it inside the loop, with "
                "`async with`, instead"
            )
        if self.plain:
            raise RuntimeError(
                f"source tree {inside.tree.path!r} is held by a task of this thread, which could "
                "never go on while the thread waits; use `async with`, or `asyncio.to_thread`"
            )

    def _block(self) -> None:
        """Wait in this thread for what is in the way."""
        if self._blocked_by is None or not POSIX:
            time.sleep(self._next_pause())
        elif self._deadline is None:
            self._wait_in_kernel(self._blocked_by)
        elif self._blocked_by is self._file:
            caller = ThreadCaller()
            self._join(caller)
            caller.wait(max(0.0, self._deadline - time.monotonic()))
        else:
            time.sleep(self._next_pause())

    async def _pause_task(self) -> None:
        """Wait in this task for what is in the way."""
        if self._blocked_by is self._file is not None and POSIX:
            caller = TaskCaller()
            self._join(caller)
            seconds = None if self._deadline is None else self._deadline - time.monotonic()
            await caller.wait(seconds)
        else:
            import asyncio

            await asyncio.sleep(self._next_pause())

    def _wait_in_kernel(self, lock: KernelLock) -> None:
        try:
            lock.lock()
        except OSError as error:
            raise unavailable(error, lock.path, "the kernel ended the wait") from error

    def _join(self, caller: Caller) -> None:
        """Stand in line with nothing open, so that a thousand waiters cost no descriptors."""
        self._give_back()
        self._caller = caller
        caller.join(self._lock_file, make_directory=self._make_directory)

    def _next_pause(self) -> float:
        pause = self._pause
        self._pause = min(pause * 2, _LONGEST_PAUSE)
        if self._deadline is not None:
            pause = min(pause, max(0.0, self._deadline - time.monotonic()))
        return pause

    def timed_out(self) -> LockTimeout:
        tree = self._seen_tree()
        holder = self._find_holder(tree)
        waited = time.monotonic() - self._started
        return LockTimeout(
            f"waited {waited:.1f} s for source tree {tree.path!r}, held by "
            f"{holder or 'an unknown process'}",
            tree=tree.path,
            waited=waited,
            holder=holder,
        )

    def _seen_tree(self) -> Tree:
        """The tree that this entry is after, though its descriptor may be closed."""
        assert self._seen is not None, "an entry that has not advanced has seen no tree"
        return self._seen

    # Getting out

    def leave(self) -> None:
        """Leave the tree; the last entry ends the hold. Leaving twice does nothing."""
        hold = self.hold
        if hold is not None and self in hold.entries:
            with guard:
                if len(hold.entries) == 1:
                    hold.end()
                hold.entries.remove(self)

    def abandon(self) -> None:
        """Give back all that this entry has, whatever it has."""
        try:
            self.leave()
        finally:
            try:
                if self._caller is not None:
                    self._caller.leave()
            finally:
                self._give_back()

    def _give_back(self) -> None:
        try:
            if self._tree is not None:
                self._tree.close()
        finally:
            self._tree = None
            if self._file is not None:
                self._file.close()
            self._file = None


def _forget_in_child() -> None:
    _here.unfinished.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
