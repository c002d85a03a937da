"""Holds that ancestors of this process handed over to it.

A child inside such a hold does not take the locks that its ancestor has, but a lock one level down:
another lock file, by the same steps. So the children of one hold take turns.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from . import _proc
from ._hold import HELD_VARIABLE, all_holds
from ._kernel_lock import Identity
from ._paths import Place, inner_lock_file, inner_lock_files
from .errors import LockUnavailable


class Outer(NamedTuple):
    """A hold of an ancestor of this process.

    Attributes:
        tree: device and inode of the source tree.
        base: path of the lock file of the outermost hold; ``None`` if that has no lock file.
        level: 0 for the outermost hold of a tree, 1 for a hold inside that one, and so on.
        pid: its holder.
        token: what the record in its lock file says while it lasts; empty if there is no record.
        has_tree: whether the tree itself is locked, which uv does not do.
        directory: device and inode of the directory of the lock files; ``None`` where unknown.
    """

    tree: Identity
    base: str | None
    level: int
    pid: int
    token: str
    has_tree: bool = True
    directory: Identity | None = None

    def inner_place(self) -> Place:
        """The place of the lock file that its children take.

        Raises:
            LockUnavailable: there can be none.
        """
        if self.base is None:
            what = (
                "a parent process could make no lock file, without which its children cannot take "
                "turns; set SOURCE_TREE_LOCK_DIR for it to a directory that may be written"
            )
            raise LockUnavailable(errno.EROFS, what, os.getcwd())
        return Place(inner_lock_file(self.base, self.level + 1), True)

    def lasts(self) -> bool:
        """Whether this hold has not ended.

        If a record can be read, it has to have the token of this hold, and the kernel must not name
        another holder. If none can be read, the kernel has to name the holder of this hold.
        """
        directory = _proc.identity_at(os.path.dirname(self.base or ""), os.stat)
        if self.directory is not None and directory != self.directory:
            return False  # another directory is mounted there: siblings do not see its files
        file = None if self.base is None else inner_lock_file(self.base, self.level)
        tree = self.tree if self.level == 0 and self.has_tree else None
        named = _proc.kernel_holders(None if file is None else _proc.identity_at(file), tree)
        record = _proc.read_record(file) if file is not None and self.token else None
        if file is None or record is None:
            # A process that has the lock file may still wait for the tree, whose holder counts.
            return self.pid == (named[0] if named[1] is None else named[1])
        # What another host wrote may have been overwritten: a network file system caches it.
        if record.token != self.token or not record.is_of_this_boot:
            return False
        if named[0] is not None:
            return named[0] == self.pid
        # The record of a process that has died says nothing: uv, which writes none, may have the
        # lock by now.
        return not record.is_stale() and _proc.is_held(file)


def find_outer(tree: Identity, place: Place) -> Outer | None:
    """The innermost hold on a tree that an ancestor has handed to this process.

    Args:
        tree: device and inode of the tree.
        place: where this process would have the lock file of the tree.
    """
    outers = [each for each in _handed_down() if each.tree == tree and each.lasts()]
    # Where no environment arrives (sudo, env -i, uv), the record of an ancestor says so.
    outers += _held_by_ancestors(tree, place)
    return max(outers, key=lambda each: each.level, default=None)


def _handed_down() -> Iterator[Outer]:
    """What the environment of this process hands over, whether or not it lasts."""
    own = {(os.getpid(), hold.token) for hold in all_holds()}  # may be in os.environ for children
    try:
        entries = list(json.loads(os.environ.get(HELD_VARIABLE) or "[]"))
    except (ValueError, TypeError, RecursionError):
        return
    for each in entries:
        with suppress(ValueError, TypeError, LookupError, AttributeError, OverflowError):
            device, inode = map(int, each["tree"])
            base = None if each["lock_file"] is None else str(each["lock_file"])
            level, pid, token = int(each["level"]), int(each["pid"]), str(each["token"])
            directory = each["directory"] and tuple(each["directory"])
            outer = Outer((device, inode), base, level, pid, token, directory=directory)
            if (pid, token) not in own:
                yield outer


def _held_by_ancestors(tree: Identity, place: Place) -> Iterator[Outer]:
    """Holds of ancestors on behalf of their children, by the kernel's list or their records."""
    name = os.path.basename(place.path)
    pattern = re.compile(rf"{re.escape(name.removesuffix('.lock'))}(?:\.(\d+))?\.lock")
    family = _proc.ancestry()
    ancestors = family[1:]
    paths = {place.path, *inner_lock_files(place.path, 1)}
    holders = {each.pid for each in _proc.flocks() if not each.is_waiting}
    for ancestor in holders.intersection(ancestors):
        # Its temporary directory may be another one, so the lock file that it has open counts.
        paths.update(path for _, path in _proc.open_paths(ancestor))
    for path in paths:
        match = pattern.fullmatch(os.path.basename(path))
        holder = None if match is None else _proc.find_holder(path, None)
        if match is None or holder is None or not holder.is_local or holder.pid not in ancestors:
            continue
        level, pid = int(match[1] or 0), holder.pid
        child = family[family.index(pid) - 1]
        base = os.path.join(os.path.dirname(path), name)
        record = _proc.read_record(path)
        if record is not None and record.holder.pid == pid and record.for_children:
            yield Outer(tree, base, level, pid, record.token)
        elif level == 0 and _proc.program_of(pid) == "uv" and _proc.works_in(child, tree):
            # uv hands nothing over, but it locks the tree for the hook, which it starts there.
            yield Outer(tree, base, level, pid, "", has_tree=False)
