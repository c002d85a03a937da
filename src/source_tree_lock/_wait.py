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
        """The same sentence in at most so many columns: the path is shortened from the left."""
        tree = self._shown_tree()
        excess = len(self._sentence(tree)) - columns
        if excess > 0:
            kept = max(0, len(tree) - excess - 1)
            tree = "…" + tree[len(tree) - kept :]
        return self._sentence(tree)[: max(0, columns)]

    def _sentence(self, tree: str) -> str:
        so_far = f"{in_words(self.waited)} " if self.waited >= 1 else ""
        who = "an unknown process" if self.holder is None else self.holder.name
        return f"waiting {so_far}for {who} to leave {tree}"

    def _shown_tree(self) -> str:
        return self.tree if self.tree.isprintable() else ascii(self.tree)
