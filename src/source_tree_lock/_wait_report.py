"""What the caller of an entry is told while it waits."""

from __future__ import annotations

from ._holder.holder import Holder, in_words


class Wait:
    """A wait that is under way.

    Attributes:
        tree: canonical path of the source tree.
        lock_file: path of its lock file.
        holder: who holds the tree; ``None`` when unknown.
        waited: how long the wait has lasted, in seconds.
    """

    __slots__ = ("holder", "lock_file", "tree", "waited")

    def __init__(self, tree: str, lock_file: str, holder: Holder | None, waited: float) -> None:
        self.tree: str = tree
        self.lock_file: str = lock_file
        self.holder: Holder | None = holder
        self.waited: float = waited

    def __str__(self) -> str:
        return self._sentence(self._shown_tree())

    def __repr__(self) -> str:
        return f"<Wait: {self}>"

    def line(self, columns: int) -> str:
        """The same sentence in at most so many columns: the path is shortened from the left.

        Args:
            columns: of a terminal; letters of East Asia take two of them, combining marks none.
        """
        room = columns - len(self._sentence(""))  # where each letter takes one column
        if room < 1:
            return self._sentence("…")[: max(0, columns)]
        return self._sentence(_end_of(self._shown_tree(), room))

    def _sentence(self, tree: str) -> str:
        so_far = f"{in_words(self.waited)} " if self.waited >= 1 else ""
        who = "an unknown process" if self.holder is None else self.holder.name
        return f"waiting {so_far}for {who} to leave {tree}"

    def _shown_tree(self) -> str:
        return self.tree if self.tree.isprintable() else ascii(self.tree)


def _end_of(text: str, columns: int) -> str:
    """As much of the end of a text as fits, after a mark for the rest."""
    if sum(map(_width, text)) <= columns:
        return text
    start, room = len(text), columns - 1
    while (room := room - _width(text[start - 1])) >= 0:
        start -= 1
    while _width(text[start : start + 1]) == 0:
        start += 1  # it would combine with the mark
    return "…" + text[start:]


def _width(letter: str) -> int:
    """How many columns of a terminal a letter takes."""
    if letter.isascii():
        return 1
    import unicodedata

    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 1 + (unicodedata.east_asian_width(letter) in "WF")
