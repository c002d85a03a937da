"""What the three plugins share: the switch, the Ctrl-C, and the word that nothing is locked."""

from __future__ import annotations

import os
import signal
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_interrupted = False


def is_on() -> bool:
    """Whether the plugins are to do anything: ``SOURCE_TREE_LOCK_PLUGINS=0`` says no."""
    return os.environ.get("SOURCE_TREE_LOCK_PLUGINS") != "0"


def is_interrupted() -> bool:
    """Whether Ctrl-C was pressed since `listen_for_ctrl_c`."""
    return _interrupted


def stop_if_interrupted(_: object = None) -> None:
    """A ``while_waiting`` that ends the wait when Ctrl-C was pressed."""
    if _interrupted:
        raise KeyboardInterrupt


def listen_for_ctrl_c() -> None:
    """Note a Ctrl-C, and then handle it as before.

    The frontends build in worker threads. Python interrupts the main thread alone, which then
    waits for the workers.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is None or not callable(before) or before is _note:
        return  # Ctrl-C is ignored, or somebody else handles it below Python
    if threading.current_thread() is threading.main_thread():
        _note.before = before  # type: ignore[attr-defined]
        signal.signal(signal.SIGINT, _note)


def _note(number: int, frame: FrameType | None) -> object:
    global _interrupted
    _interrupted = True
    return _note.before(number, frame)  # type: ignore[attr-defined]


def say_unlocked(frontend: str, error: Exception) -> None:
    """Say on stderr that a frontend's builds are not locked, and why."""
    from importlib.metadata import version

    ours = version("source-tree-lock")
    sys.stderr.write(
        f"source-tree-lock {ours} does not know {frontend} {version(frontend)}: its builds are "
        f"not locked ({error})\n"
    )
