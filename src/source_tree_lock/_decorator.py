"""Functions that run under the lock."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def _is_function(value: object) -> bool:
    # Descriptors, such as `functools.cached_property`, are routines too, but cannot be called.
    if not callable(value) or isinstance(value, staticmethod):
        return False
    return inspect.isroutine(value) or isinstance(value, functools.partial)


def decorate(
    function: Callable[P, R],
    lock_for_call: Callable[[tuple[Any, ...], dict[str, Any]], Any],
) -> Callable[P, R]:
    """A function that runs under the lock that ``lock_for_call`` gives for its arguments.

    Raises:
        TypeError: it is not a function, or a generator function.
    """
    if not _is_function(function):
        raise TypeError(
            f"a source tree lock decorates functions, not {function!r}; to decorate one, write "
            "@source_tree_lock(), with parentheses, directly above its `def`"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{function!r} is a generator function: the lock would be released before its body "
            "runs; use `with` in the body"
        )
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def locked_async(*args: Any, **kwargs: Any) -> Any:
            async with lock_for_call(args, kwargs):
                return await function(*args, **kwargs)

        return locked_async  # type: ignore[return-value]

    @functools.wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        with lock_for_call(args, kwargs):
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    f"{function!r} returns a coroutine, whose body would run after the lock is "
                    "released; decorate the `async def` itself"
                )
            return result

    return locked
