"""``source-tree-lock run``: a command under the lock."""

from __future__ import annotations

import os
import signal
import sys

from .._holder.holder import in_words
from .._lock import source_tree_lock
from .._system import run_command
from ..errors import LockTimeout
from .hints import why_not_executable, why_not_found
from .messages import NOT_EXECUTABLE, NOT_FOUND, SIGNALLED, TIMED_OUT, fail
from .waiting import Teller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

    from .._options import LockOptions
    from .options import Options


def run(options: Options) -> int:
    """Wait for the tree, run the command, and give its status.

    Raises:
        Those of entering a `source_tree_lock`, but `LockTimeout`.
        SystemExit: a signal ended the wait.
    """
    teller = Teller(is_quiet=options.is_quiet)
    lock_options: LockOptions = {"lock_dir": options.lock_dir}
    if options.timeout is not None:
        lock_options["timeout"] = options.timeout
    if not options.is_quiet:
        lock_options["on_wait"] = lock_options["while_waiting"] = teller.tell
    sys.argv[:1] = options.command[:1]  # the holder is the command, not its wrapper
    _end_in_order()
    try:
        with source_tree_lock(options.tree, **lock_options) as lock:
            teller.clear()
            environ, descriptors = lock._hand_over(with_descriptors=True)
            return _run(options, {**os.environ, **environ}, descriptors)
    except LockTimeout as error:
        teller.clear()
        return fail(TIMED_OUT, _words_for(error))
    finally:
        teller.clear()


def _run(options: Options, environ: dict[str, str], descriptors: list[int]) -> int:
    try:
        code = run_command(options.command, environ, descriptors)
    except FileNotFoundError:
        return fail(NOT_FOUND, why_not_found(options.command, options.tree))
    except OSError as error:
        return fail(NOT_EXECUTABLE, why_not_executable(options.command, error))
    return SIGNALLED - code if code < 0 else code


def _end_in_order() -> None:
    """Have signals end the wait as Ctrl-C does, unless they are ignored, as below nohup(1)."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(SIGNALLED + number)


def _words_for(error: LockTimeout) -> str:
    after = f" after {in_words(error.waited)}" if error.waited >= 1 else ""
    return f"timed out{after}: {error.tree!r} is held by {error.holder or 'an unknown process'}"
