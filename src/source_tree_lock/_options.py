"""The arguments of a lock, and what the environment sets where they say nothing."""

from __future__ import annotations

import os
from _collections_abc import Callable  # collections.abc, without the package around it
from _thread import TIMEOUT_MAX

from ._paths.lock_file import Digest
from ._paths.tree import AnyPath
from ._wait_report import Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypedDict

    class LockOptions(TypedDict, total=False):
        """The keyword arguments of `source_tree_lock`, for what passes them on."""

        timeout: float | FromEnvironment | None
        digest: Digest
        lock_dir: AnyPath | None
        on_wait: Callable[[Wait], object] | None
        while_waiting: Callable[[Wait], object] | None
else:
    LockOptions = dict  # for `typing.get_type_hints`


TIMEOUT_VARIABLE: Final = "SOURCE_TREE_LOCK_TIMEOUT"


class FromEnvironment:
    """Stands for the timeout that the environment gives: ``SOURCE_TREE_LOCK_TIMEOUT``, or none."""

    def __repr__(self) -> str:
        return "<from the environment>"


FROM_ENVIRONMENT: Final = FromEnvironment()


def check_options(
    timeout: float | FromEnvironment | None,
    digest: Digest,
    lock_dir: AnyPath | None,
    on_wait: Callable[[Wait], object] | None,
    while_waiting: Callable[[Wait], object] | None,
) -> None:
    """Refuse what makes no sense.

    Raises:
        TypeError, ValueError: an argument makes no sense.
    """
    if not isinstance(timeout, FromEnvironment):
        check_timeout(timeout, "timeout")
    if not callable(digest):
        raise TypeError(f"digest must be a callable, not {digest!r}")
    if lock_dir is not None:
        if not isinstance(lock_dir, (str, bytes, os.PathLike)):
            raise TypeError(f"lock_dir must be a path or None, not {lock_dir!r}")
        if not os.fspath(lock_dir):
            raise ValueError("lock_dir is empty; name a directory, or leave it out")
    for name, callback in (("on_wait", on_wait), ("while_waiting", while_waiting)):
        if callback is not None and not callable(callback):
            raise TypeError(f"{name} must be a callable or None, not {callback!r}")


def check_path(path: AnyPath) -> AnyPath:
    """The same path.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path must be a path or a callable, not {path!r}")
    return path


def check_timeout(seconds: float | None, name: str) -> None:
    """Refuse a timeout that is no number of seconds.

    Raises:
        TypeError, ValueError: it names the argument or the variable.
    """
    if seconds is None:
        return
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {seconds!r}")
    if not seconds >= 0:  # neither negative nor NaN
        raise ValueError(f"{name} must be a non-negative number of seconds, not {seconds!r}")


def check_acquire(blocking: bool, timeout: float) -> None:
    """Refuse arguments of ``acquire`` that ``threading.RLock`` refuses.

    Raises:
        TypeError, ValueError, OverflowError: they make no sense.
    """
    if timeout == -1:
        return
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    check_timeout(timeout, "timeout")
    if timeout > TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")


def seconds_of(timeout: float | FromEnvironment | None) -> float | None:
    """The timeout in seconds, that of the environment if it says so; ``None`` for none.

    Raises:
        ValueError: what stands in the environment makes no sense.
    """
    if not isinstance(timeout, FromEnvironment):
        return timeout
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return None
    name = f"{TIMEOUT_VARIABLE} in the environment"
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {text!r}") from None
    check_timeout(seconds, name)
    return seconds
