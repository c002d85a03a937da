"""The two kernel locks of one entry: first the lock file, where waiters queue, then the tree."""

from __future__ import annotations

from ._holder.record import prepare_records
from ._kernel_lock import (
    KernelLock,
    current_status,
    error_unsupported,
    guard,
    prepare_locks,
    unavailable,
)
from ._log import say_once
from ._paths.lock_file import NoPlace, Place, open_lock_file
from ._paths.mounts import warn_if_other_hosts_get_in
from ._paths.tree import open_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

    from ._paths.tree import AnyPath, Tree


class Locks:
    """What an entry has open and locked.

    It hangs here from the moment that it is open, so that whatever interrupts the entry, `close`
    gives everything back.

    Attributes:
        tree: the source tree; after `close`, the one that was open last.
        place: where its lock file is.
        file: the lock file, for as long as it is open.
        blocked_by: the lock that somebody else has; ``None`` for what can only be asked again.
        is_under_uv: whether a uv above this process has the lock file on our behalf.
    """

    def __init__(self) -> None:
        self.tree: Tree | None = None
        self.place: Place | None = None
        self.file: KernelLock | None = None
        self.blocked_by: KernelLock | None = None
        self.is_under_uv: bool = False
        self._nobody_has_file: NoPlace | None = None

    def open_tree(self, path: AnyPath) -> Tree:
        """The source tree that ``path`` leads to, unless it is open already."""
        if self.tree is None or not self.tree.is_open():
            self.tree = open_tree(path)
        return self.tree

    def try_both(self, tree: Tree, place: Place) -> bool:
        """Take both without waiting, or as many as there are; false if somebody else has one.

        Raises:
            LockUnavailable: one of them cannot be locked, or neither can be had.
        """
        self.place = place
        return self._try_file(place) and self._try_tree(tree)

    def _try_file(self, place: Place) -> bool:
        self.blocked_by = None
        if self.is_under_uv:
            return True
        if self.file is not None and self.file.path != place.path:
            self.file.close()
            self.file = None
        try:
            self.file = self.file or open_lock_file(place)
        except NoPlace as error:
            self._nobody_has_file = error  # the tree alone may serve
            return True
        except BlockingIOError:
            return False  # somebody has a lease on it, and is asked to give it back
        what = "what is to lock it cannot be imported"
        try:
            prepare_records()
            prepare_locks()
            what = _REFUSED
            if self.file.try_lock():
                return True
            what = "what is to wait cannot be imported"
            with guard:  # a fork waits for what is imported
                from ._queue import unwanted_grant

            what = _REFUSED
            self.blocked_by = self.file
            self.file = unwanted_grant(self.file) or self.file
        except (ImportError, OSError) as error:
            raise unavailable(error, place.path, what) from error
        return self.file.held

    def _try_tree(self, tree: Tree) -> bool:
        if self.file is not None:
            device = self.file.identity[0]
            warn_if_other_hosts_get_in(tree.path, tree.identity, self.file.path, device)
        self.blocked_by = tree.lock
        if tree.lock is not None:
            try:
                return tree.lock.try_lock()
            except OSError as error:
                if not error_unsupported(error):
                    what = "the source tree cannot be locked"
                    raise unavailable(error, tree.path, what) from error
            tree.lock.close()
            tree.lock = None
        if self.file is None and not self.is_under_uv:
            assert self._nobody_has_file is not None
            raise self._nobody_has_file
        return True

    def check(self, tree: Tree, place: Place) -> os.stat_result | bool:
        """Whether what was locked is in place: the status of the lock file, if we have it.

        Raises:
            LockUnavailable: it cannot be seen.
        """
        try:
            if not tree.is_current():
                return False
        except OSError as error:  # its path may be too long, though "." is not
            raise unavailable(error, tree.path, "cannot see the source tree by its path") from error
        try:
            if self.file is not None:
                return current_status(self.file) or False
        except OSError as error:
            what = "cannot see whether the lock is in place"
            raise unavailable(error, place.path, what) from error
        if self.is_under_uv:
            from ._handover import uv_still_holds_for_us

            self.is_under_uv = uv_still_holds_for_us(place.path, tree.identity)
            return self.is_under_uv
        say_once(
            "Source tree %r is locked by itself alone, which uv does not see: %s.",
            tree.path,
            self._nobody_has_file,
        )
        return True

    def close(self) -> None:
        """Give back what is open, in reverse order."""
        try:
            if self.tree is not None:
                self.tree.close()
        finally:
            if self.file is not None:
                self.file.close()
            self.file = None


_REFUSED = (
    "the file system refuses to lock the lock file; mount it so that flock works "
    "(Lustre: -o flock), or name another directory with lock_dir or SOURCE_TREE_LOCK_DIR"
)
