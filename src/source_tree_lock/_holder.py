"""Who holds a source tree, as a value that people can read."""

from __future__ import annotations

import time

from ._process import host, line_of_descent


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

    def __str__(self) -> str:
        text = f"pid {self.pid}"
        if self._is_foreign and self.host == host():
            text += " of another container or host"
        if self.program:
            text = f"{self.program} ({text})"
        if self.host is not None and self.host != host():
            text += f" on {self.host}"
        if self.since is not None:
            text += f" for {max(0.0, time.time() - self.since):.0f} s"
        return text

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names())
        return f"Holder({values})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Holder):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._names())

    def __hash__(self) -> int:
        return hash((self.pid, self.host, self.since))

    def is_ancestor(self) -> bool:
        """Whether this process descends from it."""
        return not self._is_foreign and self.pid in line_of_descent()[1:]

    def _names(self) -> tuple[str, ...]:
        return ("pid", "program", "host", "since")
