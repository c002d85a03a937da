"""Holds handed from a process to the children that it starts on behalf of them.

One environment variable lists them. A child that is kept out by its own ancestor, and can tell
that it is, enters the tree inside the ancestor's hold.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import NamedTuple  # portalocker, which is there by now, imports it as well

from ._held import all_holds
from ._holder.find import is_held
from ._holder.proc_locks import kernel_holder
from ._holder.processes import (
    has_locked,
    is_uv,
    line_of_descent,
    pid_namespace,
    working_directory_of,
)
from ._holder.record import parse_json, read_record
from ._kernel_lock import Identity, guard, is_ours, leads_to
from ._system import CAN_HAND_DOWN
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._held import Hold
    from ._paths.tree import Tree

VARIABLE = "SOURCE_TREE_LOCK_HELD"


class Handover(NamedTuple):
    """One hold as it is written in the environment.

    Attributes:
        tree: device and inode of the source tree.
        lock_file: path of the holder's lock file.
        pid: the holder.
        pid_namespace: inode of the holder's pid namespace; 0 where there are none.
        token: what the record in the lock file says while the hold lasts.
        descriptors: inherited ones, of the lock file and of the tree, -1 for one that is not;
            empty where neither is.
    """

    tree: Identity
    lock_file: str
    pid: int
    pid_namespace: int
    token: str
    descriptors: Sequence[int] = ()

    def inheritable_descriptors(self) -> list[int]:
        """Descriptors that still refer to the lock file and the tree.

        Raises:
            OSError, ValueError, OverflowError: what the environment says makes no sense.
        """
        identities = (_identity_at(self.lock_file), self.tree)
        return [
            descriptor
            for descriptor, identity in zip(self.descriptors, identities, strict=False)
            if CAN_HAND_DOWN and descriptor >= 0 and _identity_of(descriptor) == identity
        ]

    def is_believed(self, tree: Tree) -> bool:
        """Whether the holder of ``tree``, which is locked or whose lock file is, is the writer."""
        try:
            if self._is_inherited():
                return True
            if tree.lock is None:
                return self._has_lock_file()
            named = kernel_holder(self.tree)
            if named is not None:
                return self._is_writer(named)
            # Another pid namespace, an overlay, btrfs, macOS: the kernel names nobody. Only ours
            # lock trees, and each writes its own record on the way in.
            return is_held(tree.path, follow=True) and self._is_recorded(same_namespace=False)
        except (OSError, ValueError, OverflowError):
            return False  # a path or a number in the environment that no system has

    def _is_inherited(self) -> bool:
        """Whether an inherited descriptor is the hold. It is not ours, and never unlocked here."""
        # The last one named is the tree's, where trees can be locked: that one has to be good. The
        # path of the lock file may lead elsewhere: then somebody deleted it.
        named = [each for each in self.descriptors if each >= 0]
        if not named or named[-1] not in self.inheritable_descriptors():
            return False
        identity = _identity_of(named[-1])
        return identity is not None and has_locked("self", identity, named[-1]) is True

    def _has_lock_file(self) -> bool:
        """The same question where trees cannot be locked: who holds the lock file?"""
        lock_file = _identity_at(self.lock_file)
        named = None if lock_file is None else kernel_holder(lock_file)
        if named is not None:
            return self._is_writer(named) and self._is_recorded(same_namespace=True)
        return self._is_recorded(same_namespace=True) and is_held(self.lock_file, follow=False)

    def _is_writer(self, pid: int) -> bool:
        return pid == self.pid and pid_namespace() == self.pid_namespace

    def _is_recorded(self, *, same_namespace: bool) -> bool:
        """Whether the record is the writer's, of this kernel, or even this pid namespace."""
        record = read_record(self.lock_file)
        if record is None or record.token != self.token:
            return False
        if same_namespace:
            return record.is_from_here() and not record.is_stale()
        return record.is_from_this_kernel


def _identity_of(descriptor: int) -> Identity | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None  # it was not inherited
    return status.st_dev, status.st_ino


def _identity_at(path: str) -> Identity | None:
    status = leads_to(path, os.lstat)
    return None if status is None else (status.st_dev, status.st_ino)


# In the child


def handed_down() -> list[Handover]:
    """What the environment of this process hands down; nothing of it is believed yet."""
    found: list[Handover] = []
    text = os.environ.get(VARIABLE)
    if not text:
        return found
    try:
        entries: list[Any] = parse_json(text)
    except (ValueError, RecursionError):
        return found
    for entry in entries if isinstance(entries, list) else ():
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            device, inode = map(int, entry["tree"])
            # A number that was not inherited after all may be one of ours by now.
            numbers = [-1 if is_ours(each) else each for each in map(int, entry["descriptors"])]
            pid, namespace = int(entry["pid"]), int(entry["pid_namespace"])
            lock_file, token = str(entry["lock_file"]), str(entry["token"])
            found.append(Handover((device, inode), lock_file, pid, namespace, token, numbers))
    return found


def believed_handover(tree: Tree) -> Handover | None:
    """A hold of ``tree`` that was handed to this process and lasts."""
    for each in handed_down():
        if each.tree == tree.identity and each.is_believed(tree):
            return each
    return None


def is_held_for_us(holder: int | None, tree: Identity) -> bool:
    """Whether a holder runs this process, or an ancestor of it, in ``tree``, as for a hook."""
    line = line_of_descent()
    if holder is None or holder not in line[1:]:
        return False
    return working_directory_of(line[line.index(holder) - 1]) == tree


def uv_holds_for_us(holder: int | None, tree: Identity) -> bool:
    """Whether a uv that holds the lock file runs this process to build ``tree``.

    uv hands nothing over, but it locks the tree on behalf of the hook that it starts in it.
    """
    return holder is not None and is_uv(holder) and is_held_for_us(holder, tree)


def uv_still_holds_for_us(lock_file: str, tree: Identity) -> bool:
    """The same, asked anew: uv may have died meanwhile."""
    identity = _identity_at(lock_file)
    return identity is not None and uv_holds_for_us(kernel_holder(identity), tree)


def hooks_handover(holder: int | None, tree: Identity, lock_file: str) -> Handover | None:
    """A hold of an ancestor that holds ``tree`` on behalf of the hooks that it runs.

    It has no way to hand its hold over; its record says so.
    """
    if not is_held_for_us(holder, tree):
        return None
    record = read_record(lock_file)
    if record is None or not record.is_for_hooks or record.holder.pid != holder:
        return None
    return Handover(tree, lock_file, record.holder.pid, pid_namespace(), record.token)


# In the parent


def handover_of(hold: Hold, *, with_descriptors: bool) -> Handover:
    """What hands a hold to a child, with or without the descriptors of its locks.

    Raises:
        LockUnavailable: a child could believe nothing of it.
    """
    if hold.handover is not None:
        return hold.handover
    descriptors: list[int] = []
    if with_descriptors and CAN_HAND_DOWN:
        locks = (hold.file, hold.tree.lock)
        descriptors = [-1 if lock is None else lock.fileno() for lock in locks]
    elif not hold.token and kernel_holder(hold.tree.identity) != os.getpid():
        why = hold.unwritten or "there is none of ours"
        raise LockUnavailable(
            (hold.unwritten and hold.unwritten.errno) or errno.EROFS,
            f"the hold cannot be handed over, because nothing can be written into the lock file "
            f"({why}); give the lock file mode 0666, or name another directory with lock_dir",
            hold.lock_file,
        )
    return Handover(
        hold.tree.identity, hold.lock_file, os.getpid(), pid_namespace(), hold.token, descriptors
    )


def hand_over(hold: Hold, *, with_descriptors: bool) -> tuple[dict[str, str], list[int]]:
    """What hands down a hold, all others of its owner, and all that was handed to this process.

    It is what to add to a child's environment, and the descriptors that the child is to inherit.

    Raises:
        LockUnavailable: a child could believe nothing of this hold.
    """
    with guard:  # as for a record
        import json
    handovers = handed_down()
    for other in all_holds():
        if other is not hold and hold.owner.stands_for(other.owner):
            with suppress(LockUnavailable):
                handovers.append(handover_of(other, with_descriptors=with_descriptors))
    handovers.append(handover_of(hold, with_descriptors=with_descriptors))
    last = {each.tree: each for each in handovers}.values()
    entries = [each._asdict() for each in last]
    descriptors: list[int] = []
    for each in last if with_descriptors else ():
        with suppress(OSError, ValueError, OverflowError):
            descriptors += each.inheritable_descriptors()
    return {VARIABLE: json.dumps(entries)}, descriptors
