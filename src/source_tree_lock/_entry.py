"""THE STORY of getting into a source tree: try, say who holds it, wait, check, register.

Nobody gets in but with the kernel locks, or inside the hold of an ancestor that has them.
"""

from __future__ import annotations

import time

from ._both_locks import Locks
from ._held import Hold, enter_context, hold_of
from ._kernel_lock import forks, guard, unavailable
from ._owner import Owner
from ._paths.lock_file import RESTARTS, place_of, restarted_in_vain
from ._unfinished_entries import no_longer_under_way, now_under_way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _collections_abc import Callable, Generator

    from ._paths.lock_file import Digest, Place
    from ._paths.tree import AnyPath, Tree
    from ._wait_report import Wait
    from ._waiting import Pause, Waiting
    from .errors import LockTimeout


class Request:
    """How a tree is entered; the arguments are those of `source_tree_lock`.

    Attributes:
        is_for_hooks: whether the tree is held on behalf of hooks that the hold is not handed to.
        given_up: the wait of the last attempt, if that was given up.
    """

    def __init__(
        self,
        digest: Digest,
        lock_dir: AnyPath | None,
        on_wait: Callable[[Wait], object] | None,
        while_waiting: Callable[[Wait], object] | None,
    ) -> None:
        self.digest = digest
        self.lock_dir = lock_dir
        self.on_wait = on_wait
        self.while_waiting = while_waiting
        self.is_for_hooks = False
        self.given_up: Waiting | None = None


class Entry:
    """One way into a tree, from the first attempt until it is left.

    Attributes:
        path: the path of the source tree as it was given.
        request: how it is entered.
        owner: who enters.
        is_plain: whether it waits in its thread, and not in a task.
        started: when, as `time.monotonic` has it.
        deadline: when the time is up; ``None`` for never.
        hold: what it is inside of, once it is.
        locks: what it has open until then.
        waiting: its wait, once it has to.
        may_be_below_holder: whether the holder may be an ancestor of this process.
    """

    def __init__(
        self, path: AnyPath, request: Request, seconds: float | None, *, is_plain: bool
    ) -> None:
        self.path = path
        self.request = request
        self.owner: Owner = Owner()
        self.is_plain = is_plain
        self.started: float = time.monotonic()
        self.deadline: float | None = None if seconds is None else self.started + seconds
        self.hold: Hold | None = None
        self.locks: Locks = Locks()
        self.waiting: Waiting | None = None
        self.may_be_below_holder: bool = True
        self._forks: int = forks()

    # Getting in

    def enter(self) -> bool:
        """Get in, waiting in this thread; false when the time is up. What fails is to `abandon`."""
        now_under_way(self)
        if not self._attempt():
            for pause, seconds in self._pauses():
                pause.block(seconds)
        no_longer_under_way(self)
        return self.hold is not None

    async def enter_async(self) -> bool:
        """Get in, waiting in this task; false when the time is up. What fails is to `abandon`."""
        now_under_way(self)
        if not self._attempt():
            for pause, seconds in self._pauses():
                await pause.suspend(seconds)
        no_longer_under_way(self)
        return self.hold is not None

    def _pauses(self) -> Generator[tuple[Pause, float | None], None, None]:
        """Give what to wait for, and how long at most, until it is in or the time is up."""
        from ._waiting import Waiting

        while not self.is_over():
            self.waiting = self.waiting or Waiting(self)
            yield from self.waiting.pauses()
            if self._attempt():
                return
        self.request.given_up = self.waiting or self.request.given_up

    def _attempt(self) -> bool:
        """Get in if that is possible without waiting."""
        locks = self.locks
        for _ in range(RESTARTS):
            tree = locks.open_tree(self.path)
            if self._re_enter(tree):
                return True
            place = place_of(tree.path, self.request.digest, self.request.lock_dir)
            if self.is_of_parent():
                self._forks = forks()
                locks.close()
                continue
            if not locks.try_both(tree, place):
                _import_for_a_wait(place.path)
                return self._enter_ancestors_hold(tree, place)
            if status := locks.check(tree, place):
                return self._register(Hold(self.owner, tree, place.path, locks.file), status)
            locks.close()
        raise restarted_in_vain(self.lock_file)

    def _re_enter(self, tree: Tree) -> bool:
        hold = hold_of(tree.identity)
        if hold is not None and not hold.is_ending and self.owner.stands_for(hold.owner):
            with guard:
                self.hold, hold.owner = hold, self.owner
                hold.entries.append(self)
            if self.lasts():
                self.locks.close()
            else:  # a lock that nobody has any more was collected meanwhile, and has ended it
                self.hold = None
        return self.hold is not None

    def _enter_ancestors_hold(self, tree: Tree, place: Place) -> bool:
        """Get in where an ancestor holds the tree for us, and has said so or is known for it."""
        from ._handover import believed_handover, hooks_handover, uv_holds_for_us
        from ._holder.find import may_be_ancestors
        from ._holder.proc_locks import kernel_holders

        locks = self.locks
        handover = believed_handover(tree)
        if handover is None and self.waiting is None and not locks.is_under_uv:
            file = (0, 0) if locks.file is None else locks.file.identity
            named = kernel_holders(tree.identity, file)
            self.may_be_below_holder = may_be_ancestors(set(named.values()))
            if self.may_be_below_holder:
                handover = hooks_handover(named.get(tree.identity), tree.identity, place.path)
                if handover is None and uv_holds_for_us(named.get(file), tree.identity):
                    locks.close()
                    locks.is_under_uv = True
                    return self._attempt()
        if handover is None:
            return False
        return self._register(Hold(self.owner, tree.unlocked(), handover.lock_file, None, handover))

    def _register(self, hold: Hold, status: object = None) -> bool:
        self.hold = hold
        hold.entries.append(self)
        with guard:
            if hold.register():
                if hold.handover is not None:
                    self.locks.close()
                self.locks.tree = self.locks.file = None
        if not hold.is_registered():
            # Another owner of this process is in, by a way that no kernel lock shows: it entered
            # an ancestor's hold, or holds another lock file where trees cannot be locked.
            self.hold = self.locks.blocked_by = None
            self.locks.close()
            return False
        hold.write_record(status, is_for_hooks=self.request.is_for_hooks)
        enter_context(hold)
        self.request.given_up = None
        return True

    # What a wait asks of it

    @property
    def lock_file(self) -> str:
        """Path of the lock file."""
        return "" if self.locks.place is None else self.locks.place.path

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def is_of_parent(self) -> bool:
        """Whether this is a child that was forked in a callback: it starts over, for itself."""
        return self._forks != forks()

    def blocks_own_thread(self) -> bool:
        """Whether its thread would wait for ever for what it has, or may get first."""
        caller = None if self.waiting is None else self.waiting.caller
        return caller is None or caller.blocks_own_thread()

    def timed_out(self) -> LockTimeout:
        """The error for an entry whose time is up."""
        from ._waiting import Waiting

        return (self.waiting or Waiting(self)).timed_out()

    # Getting out

    def lasts(self) -> bool:
        """Whether it is inside a tree that this process holds."""
        return self.hold is not None and self in self.hold.entries and self.hold.is_registered()

    def leave(self) -> None:
        """Leave the tree; the last entry ends the hold. Leaving twice does nothing."""
        if (hold := self.hold) is not None and self in hold.entries:
            with guard:
                if len(hold.entries) == 1:
                    hold.end()
                hold.entries.remove(self)

    def abandon(self) -> None:
        """Give back all that this entry has, whatever it has."""
        try:
            no_longer_under_way(self)
            self.leave()
        finally:
            try:
                if self.waiting is not None:
                    self.waiting.give_up()
            finally:
                self.locks.close()


def _import_for_a_wait(lock_file: str) -> None:
    """Import what a free tree does not need. A fork waits for it, as in `prepare_locks`."""
    try:
        with guard:
            for name in ("json", "signal"):
                __import__(name)
            # Names, and no modules: half a module, which a handler interrupted, has not the name.
            from ._handover import hand_over  # noqa: F401  # pyright: ignore[reportUnusedImport]
            from ._waiting import Waiting  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except (ImportError, OSError) as error:
        raise unavailable(error, lock_file, "what is to wait cannot be imported") from error
