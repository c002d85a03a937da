"""Who holds a source tree, and a wait for it, in words."""

from __future__ import annotations

import os
import time

from ._record import this_host
from ._system import user_id, user_name


class Holder:
    """The process that holds a source tree.

    Attributes:
        pid: its process id, on its own host and in its own pid namespace.
        program: its name, without arguments; ``None`` when unknown.
        host: the name of its host; ``None`` when unknown.
        since: when it got the lock, in seconds since the epoch; ``None`` when unknown.
        user: the name of its user; ``None`` when unknown.
        is_stopped: whether it is stopped (Ctrl-Z, SIGSTOP), and so will not leave by itself.
        is_local: whether its process id means something to this process: same host and namespace.
    """

    # A NamedTuple or a dataclass would take as long to make as a fifth of an import of the library.
    def __init__(
        self,
        pid: int,
        program: str | None = None,
        host: str | None = None,
        since: float | None = None,
        user: str | None = None,
        is_stopped: bool = False,
        is_local: bool = True,
    ) -> None:
        self.pid = pid
        self.program = program
        self.host = host
        self.since = since
        self.user = user
        self.is_stopped = is_stopped
        self.is_local = is_local

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holder) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.pid, self.since))

    def __repr__(self) -> str:
        return f"Holder({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @property
    def name(self) -> str:
        """``pip (pid 4242)``, with user and host where they are not those of this process."""
        details = f"pid {self.pid}"
        if self.is_local and self.pid == os.getpid():
            details += ", this process"
        if self.user is not None and self.user != user_name(user_id()):
            details += f", user {self.user}"
        if not self.is_local and self.host == this_host():
            details += ", in another container"
        text = f"{self.program} ({details})" if self.program else details
        return text if self.host in (None, this_host()) else f"{text} on {self.host}"

    def __str__(self) -> str:
        held = "" if self.since is None else f" for {in_words(time.time() - self.since)}"
        return f"{self.name}{held}{' (stopped)' if self.is_stopped else ''}"


class Wait:
    """A wait for a source tree.

    Attributes:
        tree: canonical path of the source tree.
        lock_file: path of the lock file that is waited for.
        holder: who holds the tree; ``None`` when unknown.
        waited: how long the wait has lasted, in seconds.
    """

    def __init__(self, tree: str, lock_file: str, holder: Holder | None, waited: float) -> None:
        self.tree = tree
        self.lock_file = lock_file
        self.holder = holder
        self.waited = waited

    def __repr__(self) -> str:
        return f"<Wait: {self}>"

    def __str__(self) -> str:
        return self._sentence(printable(self.tree))

    def fit(self, columns: int) -> str:
        """The same sentence in at most ``columns`` letters: the path is shortened from the left."""
        text = str(self)
        spare = columns - len(self._sentence("…"))
        if len(text) <= columns:
            return text
        return self._sentence("…" + text[-spare:] if spare > 0 else "…")[: max(0, columns)]

    def _sentence(self, tree: str) -> str:
        so_far = f"{in_words(self.waited)} " if self.waited >= 1 else ""
        holder = self.holder
        name = "an unknown process" if holder is None else holder.name
        stopped = ", which is stopped," if holder is not None and holder.is_stopped else ""
        return f"waiting {so_far}for {name}{stopped} to leave {tree}"


def acquired(wait: Wait) -> str:
    """The sentence that a wait is over, since the tree is held."""
    return f"acquired {printable(wait.tree)} after {in_words(wait.waited)}"


def printable(text: str) -> str:
    """The text, escaped if it could control a terminal."""
    return text if text.isprintable() else ascii(text)


def in_words(seconds: float) -> str:
    """A duration in words: ``5 s``, ``2 min 5 s``, ``1 h 0 min``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
