"""A progress bar: in place on a terminal, one line for each part elsewhere."""

from __future__ import annotations

import sys
import time

from typing_extensions import Self

_WIDTH = 30


class Progress:
    """How far a part of the work is. Use it with ``with``."""

    def __init__(self, label: str, total: int, *, hidden: bool = False) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        self._in_place = sys.stderr.isatty() and not hidden
        self._hidden = hidden

    def step(self, count: int = 1) -> None:
        self._done += count
        if self._in_place:
            self._draw("\r")

    def _draw(self, start: str, end: str = "") -> None:
        filled = _WIDTH * self._done // max(1, self._total)
        bar = "#" * filled + "." * (_WIDTH - filled)
        seconds = time.monotonic() - self._started
        text = f"{self._label:<28} [{bar}] {self._done}/{self._total}  {seconds:5.1f} s"
        print(start + text, end=end, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if self._in_place:
            self._draw("\r")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._hidden:
            self._draw("\r" if self._in_place else "", "\n")
