"""Functions that run under the lock."""

from __future__ import annotations

import functools
import inspect
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import CodeType
    from typing import Any, ParamSpec, TypeVar

    from ._lock import SourceTreeLock

    P = ParamSpec("P")
    R = TypeVar("R")


def refuse_bare_decorator(function: Callable[..., object]) -> None:
    """Refuse ``@source_tree_lock`` without parentheses, which takes the function for a path.

    A function that is being decorated begins at a decorator's line, in which its caller is.

    Raises:
        TypeError: it says what to write.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)  # below other decorators
    caller = sys._getframe(2)
    if (
        code is not None
        and code.co_name != "<lambda>"
        # PyPy's built-in functions have code without a file.
        and getattr(code, "co_filename", None) == caller.f_code.co_filename
        and code.co_firstlineno <= caller.f_lineno <= _first_line_of_body(code)
    ):
        raise TypeError("write @source_tree_lock(), with parentheses, to decorate a function")


def _first_line_of_body(code: CodeType) -> int:
    # The first instruction is of the line of the `def`.
    lines = {line for _, _, line in code.co_lines() if line is not None}
    return min(lines - {code.co_firstlineno}, default=code.co_firstlineno)


def decorate(
    function: Callable[P, R],
    lock_for_call: Callable[[tuple[Any, ...], dict[str, Any]], SourceTreeLock],
) -> Callable[P, R]:
    """Have a function run under the lock that ``lock_for_call`` gives for its arguments.

    An ``async def`` one waits without blocking its loop.

    Raises:
        TypeError: it is a generator function, before whose body runs the lock would be over, or
            no function.
    """
    if not callable(function) or isinstance(function, (type, classmethod, staticmethod)):
        raise TypeError(f"a source tree lock decorates functions, not {function!r}")
    # What a partial is made of, and what an object does when it is called, count as well.
    codes = (function, type(function).__call__)
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in codes):
        raise TypeError(
            f"{function!r} is a generator function: the lock would be released before its body "
            "runs; use `with` in the body"
        )
    if any(map(inspect.iscoroutinefunction, codes)):
        return _decorate_async(function, lock_for_call)  # type: ignore[arg-type,return-value]

    @functools.wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        with lock_for_call(args, kwargs):
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    f"{function!r} gives a coroutine, before whose body runs the lock would be "
                    "over; put the lock below the decorator that hides its `async def`"
                )
            return result

    return locked


def _decorate_async(
    function: Callable[P, Coroutine[Any, Any, R]],
    lock_for_call: Callable[[tuple[Any, ...], dict[str, Any]], SourceTreeLock],
) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(function)
    async def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        async with lock_for_call(args, kwargs):
            return await function(*args, **kwargs)

    return locked
