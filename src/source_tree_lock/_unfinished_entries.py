"""Entries under way: those that a thread has started and not finished, of its tasks, say."""

from __future__ import annotations

import _thread
from _weakref import ref  # the module around it takes half a millisecond to import

from ._kernel_lock import forgets_in_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._entry import Entry


class _Here(_thread._local):
    def __init__(self) -> None:
        # Weak: a task that nobody has any more must not be kept by its wait.
        self.entries: dict[int, ref[Entry]] = {}


_here = _Here()


@forgets_in_child
def _forget_entries() -> None:
    _here.entries = {}


def now_under_way(entry: Entry) -> None:
    """Have an entry stand among those of its thread that are under way."""
    _here.entries[id(entry)] = ref(entry)


def no_longer_under_way(entry: Entry) -> None:
    """Forget an entry that is in, or that is given up, wherever it was interrupted."""
    _here.entries.pop(id(entry), None)


def others_under_way(entry: Entry) -> list[Entry]:
    """The other entries of this thread that are under way."""
    found = [each() for each in list(_here.entries.values())]
    return [each for each in found if each is not None and each is not entry]
