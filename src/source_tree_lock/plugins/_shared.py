"""What the three plugins share: how they change a frontend, and how they hear a Ctrl-C."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

#: The names that were replaced in this process: a frontend may load its plugins again.
_replaced: set[str] = set()
#: What handled SIGINT before `_note_ctrl_c` did.
_handle_ctrl_c: Callable[[int, FrameType | None], object]
_interrupted = False


def replace(frontend: str, owner: str, name: str, make: Callable[[Any], object]) -> None:
    """Replace a name of a frontend, once a process, by what locks its builds.

    Where the name is gone, it says on stderr that nothing is locked. It does nothing where
    ``SOURCE_TREE_LOCK_PLUGINS`` is ``0``.

    Args:
        frontend: the frontend's distribution.
        owner: the module that has the name, or ``module:Class``.
        name: the name.
        make: gets what the name stands for, and returns what it is to stand for.
    """
    if os.environ.get("SOURCE_TREE_LOCK_PLUGINS") == "0" or f"{owner}.{name}" in _replaced:
        return
    module, _, class_ = owner.partition(":")
    try:
        place: Any = importlib.import_module(module)
        if class_:
            place = getattr(place, class_)
        original = place.__dict__[name]  # a class method as such, not as bound to its class
    except (ImportError, AttributeError, KeyError):
        from importlib.metadata import version

        sys.stderr.write(
            f"source-tree-lock {version('source-tree-lock')}: builds are not locked, because "
            f"{frontend} {version(frontend)} has no {name} in {owner}\n"
        )
        return
    _listen_for_ctrl_c()
    setattr(place, name, make(original))
    _replaced.add(f"{owner}.{name}")


def is_interrupted() -> bool:
    """Whether Ctrl-C was pressed since a plugin was loaded."""
    return _interrupted


def stop_if_interrupted(_: object) -> None:
    """End a wait after a Ctrl-C: a ``while_waiting``."""
    if _interrupted:
        raise KeyboardInterrupt


def _listen_for_ctrl_c() -> None:
    """Note a Ctrl-C, and then handle it as before.

    Frontends build in worker threads. Python interrupts the main thread alone, which then waits
    for the workers.
    """
    global _handle_ctrl_c
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    # It is no callable where Ctrl-C is ignored, or is not Python's to handle.
    if is_main and handler is not _note_ctrl_c and callable(handler):
        _handle_ctrl_c = handler
        signal.signal(signal.SIGINT, _note_ctrl_c)


def _note_ctrl_c(number: int, frame: FrameType | None) -> object:
    global _interrupted
    _interrupted = True
    return _handle_ctrl_c(number, frame)
