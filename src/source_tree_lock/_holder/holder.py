"""Who holds a source tree, as a value that people can read."""

from __future__ import annotations

import time

from .processes import host, line_of_descent


class Holder:
    """The process that holds a source tree.

    Attributes:
        pid: its process id, on its own host and in its own pid namespace.
        program: its name, without arguments; ``None`` when unknown.
        host: the name of its host; ``None`` when unknown.
        since: when it got the lock, in seconds since the epoch; ``None`` when unknown.
    """

    __slots__ = ("_is_foreign", "host", "pid", "program", "since")

    def __init__(
        self,
        pid: int,
        program: str | None = None,
        host: str | None = None,
        since: float | None = None,
        *,
        _is_foreign: bool = False,
    ) -> None:
        self.pid: int = pid
        self.program: str | None = program
        self.host: str | None = host
        self.since: float | None = since
        self._is_foreign = _is_foreign

    @property
    def name(self) -> str:
        """What people call it: ``pip (pid 4242)``, and its host if that is another one."""
        text = f"pid {self.pid}"
        if self._is_foreign and self.host == host():
            text += " of another container or host"
        if self.program:
            text = f"{self.program} ({text})"
        if self.host is not None and self.host != host():
            text += f" on {self.host}"
        return text

    def __str__(self) -> str:
        if self.since is None:
            return self.name
        return f"{self.name} for {in_words(time.time() - self.since)}"

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in _FIELDS)
        return f"Holder({values})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Holder):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    def __hash__(self) -> int:
        return hash((self.pid, self.host, self.since))

    def is_ancestor(self) -> bool:
        """Whether this process descends from it."""
        return not self._is_foreign and self.pid in line_of_descent()[1:]


_FIELDS = ("pid", "program", "host", "since")


def in_words(seconds: float) -> str:
    """A duration as a clock shows it: ``5 s``, ``2 min 5 s``, ``1 h 0 min``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
