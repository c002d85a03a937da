"""Functions that run under the lock, and what cannot be decorated."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import held_by_thread, is_taken

from source_tree_lock import LockTimeout, source_tree_lock


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a plain or a coroutine function returns."""
    is_async = inspect.iscoroutinefunction(function)
    return asyncio.run(function(*args, **kwargs)) if is_async else function(*args, **kwargs)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_decorated_function_runs_under_the_lock_and_looks_as_before(
    is_async: bool, tree: Path, no_leaks: object
) -> None:
    raised = KeyError()

    def build(a: int, /, b: int = 2, *, c: int) -> tuple[int, int, int, bool]:
        """Build it."""
        if a == 0:
            raise raised
        return a, b, c, is_taken(tree)

    async def build_async(a: int, /, b: int = 2, *, c: int) -> tuple[int, int, int, bool]:
        """Build it."""
        await asyncio.sleep(0)
        return build(a, b, c=c)

    function: Callable[..., object] = build_async if is_async else build
    decorated = source_tree_lock(tree, timeout=0)(function)
    assert run(decorated, 1, c=3) == (1, 2, 3, True)
    assert not is_taken(tree)
    with pytest.raises(KeyError) as caught:
        run(decorated, 0, c=3)
    assert caught.value is raised
    with held_by_thread(tree), pytest.raises(LockTimeout):  # with the options of the lock
        run(decorated, 0, c=3)
    assert not is_taken(tree)
    assert (decorated.__name__, decorated.__doc__) == (function.__name__, "Build it.")
    assert inspect.signature(decorated) == inspect.signature(function)
    assert inspect.iscoroutinefunction(decorated) is is_async


def test_a_path_may_depend_on_the_calls_arguments(tree: Path, tmp_path: Path) -> None:
    def look(*_: object, **__: object) -> tuple[bool, bool]:
        return is_taken(tree), is_taken(tmp_path)

    @source_tree_lock(os.fspath)
    async def build_async(source: Path) -> tuple[bool, bool]:
        return look()

    class Project:
        root = tree
        build = source_tree_lock(lambda self: self.root)(look)

    build = source_tree_lock(lambda source, *, suffix="": source / suffix)(look)
    assert build(tree) == (True, False)
    assert build(tmp_path) == (False, True)
    assert build(tmp_path, suffix="tree") == (True, False)
    assert run(build_async, tree) == (True, False)
    assert Project().build() == (True, False)
    with pytest.raises(TypeError, match="path must be a path, not 17"):
        source_tree_lock(lambda path: path)(look)(17)
    with held_by_thread(tree), pytest.raises(LockTimeout):
        source_tree_lock(lambda: tree, timeout=0)(look)()


def test_a_path_that_depends_on_arguments_serves_a_decorator_only(tree: Path) -> None:
    lock = source_tree_lock(lambda: tree)
    for look in (lock.__enter__, lock.acquire, lock.locked, lock.holder, lambda: lock.tree):
        with pytest.raises(TypeError, match="decorator only"):
            look()
    assert not lock.is_owner()


class Example:
    def generator(self) -> Iterator[None]:
        yield

    async def async_generator(self) -> AsyncIterator[None]:
        yield

    def __call__(self) -> None:
        """As a command of click has it."""


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (Example.generator, "is a generator"),
        (functools.partial(Example.generator, Example()), "is a generator"),
        (Example().async_generator, "is a generator"),
        (Example, "decorates functions"),
        (Example(), "directly above its `def`"),
        (classmethod(repr), "decorates functions"),
        (staticmethod(repr), "decorates functions"),
        (property(repr), "decorates functions"),
        (17, "decorates functions"),
        (None, "with parentheses"),
    ],
)
def test_what_is_no_function_or_a_generator_is_not_decorated(
    wrong: Any, match: str, tree: Path
) -> None:
    with pytest.raises(TypeError, match=match):
        source_tree_lock(tree)(wrong)


@pytest.mark.parametrize(
    "function", [len, functools.partial(len), functools.lru_cache(len), "four".count]
)
def test_whatever_else_is_a_function_is_decorated(
    function: Callable[[str], int], tree: Path
) -> None:
    assert source_tree_lock(tree)(function)("four") == function("four")


def test_a_coroutine_that_a_decorator_hides_is_found_out(tree: Path) -> None:
    """Its body would run after the lock is released."""

    async def body() -> None:
        pytest.fail("it runs")

    def build() -> object:
        return body()

    with pytest.raises(TypeError, match="returns a coroutine"):
        source_tree_lock(tree)(build)()
    assert not is_taken(tree)


# Without parentheses


@source_tree_lock  # type: ignore[arg-type]
def bare(*arguments: object) -> None:
    pytest.fail("the body runs")


class Bare:
    @source_tree_lock
    def method(self, *arguments: object) -> str:
        pytest.fail("the body runs")


above_another = source_tree_lock(functools.lru_cache(repr))
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    *((each, call) for each in (bare, Bare.method, above_another) for call in ((), (1,), (1, 2))),
    (bare, (print,)),  # the others cannot be told from a path that depends on the call
]


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_a_function_that_was_decorated_without_parentheses_says_what_to_write(
    function: Any, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(TypeError, match=r"write @source_tree_lock\(\)"):
        function(*arguments)
