"""Holds handed from a process to the children that it starts on behalf of them.

One environment variable lists them. A child that shows what stands in the lock file, or that
inherited the descriptors of the kernel locks, enters the tree inside its ancestor's hold.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ._kernel import is_ours, leads_to, try_lock_descriptor, unlock_descriptor
from ._process import POSIX, is_uv, line_of_descent, working_directory_of
from ._record import parse_json, read_record
from ._who_holds import is_held, kernel_holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from ._process import Identity

VARIABLE = "SOURCE_TREE_LOCK_HELD"


class Handover:
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

    __slots__ = ("descriptors", "lock_file", "pid", "pid_namespace", "token", "tree")

    def __init__(
        self,
        tree: Identity,
        lock_file: str,
        pid: int,
        pid_namespace: int,
        token: str,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.tree = tree
        self.lock_file = lock_file
        self.pid = pid
        self.pid_namespace = pid_namespace
        self.token = token
        self.descriptors = list(descriptors)

    def heirlooms(self) -> list[int]:
        """The descriptors that a child is to inherit: those that lead where they should.

        Raises:
            OSError, ValueError, OverflowError: what the environment says makes no sense.
        """
        if not POSIX:
            return []
        lock_file = leads_to(self.lock_file, os.lstat)
        identities = [(lock_file.st_dev, lock_file.st_ino) if lock_file else None, self.tree]
        return [
            descriptor
            for descriptor, identity in zip(self.descriptors, identities, strict=False)
            if descriptor >= 0 and _identity_of(descriptor) == identity
        ]

    def is_good(self) -> bool:
        """Whether the hold that it speaks of lasts, and may be entered."""
        try:
            return self._is_inherited() or self._is_vouched_for()
        except (OSError, ValueError, OverflowError):
            return False  # a path or a number in the environment that no system has

    def _is_inherited(self) -> bool:
        """Whether inherited descriptors are the hold. It is not ours, and never unlocked here."""
        named = [descriptor for descriptor in self.descriptors if descriptor >= 0]
        heirlooms = self.heirlooms()
        # The last one named is the tree's, where trees can be locked: that one must be good, and is
        # tried first, since what turns out free may have to stay locked where nobody tells who
        # has it. The path of the lock file may lead elsewhere: then somebody deleted it.
        return (
            named != []
            and named[-1] in heirlooms
            and all(_is_locked_by_it(descriptor) for descriptor in reversed(heirlooms))
        )

    def _is_vouched_for(self) -> bool:
        """Whether the record has the token, and the kernel names its writer as the holder."""
        record = read_record(self.lock_file)
        lock_file = leads_to(self.lock_file, os.lstat)
        if record is None or lock_file is None or record.token != self.token:
            return False
        pid = kernel_holder((lock_file.st_dev, lock_file.st_ino))
        # The writer may live and have lost the lock, by becoming another program with exec(3).
        if pid != self.pid and (
            pid is not None
            or not record.is_from_here()
            or record.is_stale()
            or not is_held(self.lock_file, follow=False)
        ):
            return False
        # Between the two looks, it may have let go and locked it anew.
        record = read_record(self.lock_file)
        return record is not None and record.token == self.token


def _identity_of(descriptor: int) -> Identity | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None  # it was not inherited
    return status.st_dev, status.st_ino


def _is_locked_by_it(descriptor: int) -> bool:
    """Whether an inherited descriptor has the lock: to lock what is locked changes nothing."""
    if not try_lock_descriptor(descriptor):
        return False
    if kernel_holder(_identity_of(descriptor) or (0, 0)) != os.getpid():
        return True
    # It was free: the hold is over, and nobody would ever unlock what was taken just now.
    unlock_descriptor(descriptor)
    return False


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
            found.append(
                Handover(
                    (device, inode),
                    str(entry["lock_file"]),
                    int(entry["pid"]),
                    int(entry["pid_namespace"]),
                    str(entry["token"]),
                    # A number that was not inherited after all may be one of ours by now, and to
                    # try that one would unlock our own hold.
                    [
                        -1 if is_ours(number) else number
                        for number in map(int, entry["descriptors"])
                    ],
                )
            )
    return found


def good_handover(tree: Identity) -> Handover | None:
    """A hold of ``tree`` that was handed to this process and lasts."""
    return next((each for each in handed_down() if each.tree == tree and each.is_good()), None)


def hand_over(handovers: Iterable[Handover]) -> tuple[dict[str, str], list[int]]:
    """What hands these holds down, with all that was handed to this process.

    It is what to add to a child's environment, and the descriptors that it is to inherit if
    it is to have any.
    """
    import json  # as `prepare_records` has done

    all_of_them = {each.tree: each for each in (*handed_down(), *handovers)}.values()
    entries = [{name: getattr(each, name) for name in Handover.__slots__} for each in all_of_them]
    descriptors: list[int] = []
    for each in all_of_them:
        with suppress(OSError, ValueError, OverflowError):
            descriptors += each.heirlooms()
    return {VARIABLE: json.dumps(entries)}, descriptors


def uv_holds_for_us(holder: int | None, tree: Identity) -> bool:
    """Whether a uv that holds the lock file runs this process to build ``tree``.

    uv hands nothing over, but it locks the tree on behalf of the hook that it starts in it.
    """
    line = line_of_descent()
    if holder is None or holder not in line[1:]:
        return False
    child = line[line.index(holder) - 1]
    return is_uv(holder) and working_directory_of(child) == tree
