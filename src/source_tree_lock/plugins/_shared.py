"""What the three plugins share: patching a frontend, and noticing Ctrl-C in worker threads."""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

#: The names that were replaced in this process: a frontend may load its plugins twice.
_replaced: set[str] = set()
#: SIGINT, once for each Ctrl-C since a plugin was loaded.
interrupts: list[int] = []


def replace(frontend: str, owner: str, name: str, make: Callable[[Any], object]) -> None:
    """Replace an attribute of a frontend, once in a process, so that its builds are locked.

    If the frontend has no such attribute, this says on stderr that builds are not locked. It does
    nothing if ``SOURCE_TREE_LOCK_PLUGINS`` turns the plugins off.

    Args:
        frontend: the name of the frontend's distribution.
        owner: the module that has the attribute, or ``module:Class``.
        name: the name of the attribute.
        make: called with the attribute's value, returns the new one.
    """
    switch = os.environ.get("SOURCE_TREE_LOCK_PLUGINS", "").strip().lower()
    if switch in ("0", "false", "no", "off") or f"{owner}.{name}" in _replaced:
        return
    try:
        place: Any = pkgutil.resolve_name(owner)
        original = place.__dict__[name]  # a class method itself, not bound to its class
    except (ImportError, AttributeError, KeyError):
        # Needed here only, and slow to import.
        from importlib.metadata import version

        sys.stderr.write(
            f"source-tree-lock {version('source-tree-lock')}: builds are not locked, because "
            f"{frontend} {version(frontend)} has no {name} in {owner}\n"
        )
        return
    _listen_for_ctrl_c()
    setattr(place, name, make(original))
    _replaced.add(f"{owner}.{name}")


def stop_if_interrupted(_: object) -> None:
    """End a wait after Ctrl-C; for use as ``while_waiting``.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if interrupts:
        raise KeyboardInterrupt


def _listen_for_ctrl_c() -> None:
    """Note Ctrl-C before the present handler is called.

    Frontends build in worker threads, and Python raises KeyboardInterrupt in the main thread only,
    which then waits for the workers.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        return  # SIGINT is ignored, or the handler was not installed from Python

    def note_ctrl_c(number: int, frame: FrameType | None) -> object:
        interrupts.append(number)
        return handler(number, frame)

    with suppress(ValueError):  # this is not the main thread
        signal.signal(signal.SIGINT, note_ctrl_c)
