"""Functions that run under the lock, and what is written wrongly: refused when it is written."""

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

from source_tree_lock import (
    LockTimeout,
    source_tree_lock,
)


def test_a_decorated_function_runs_under_the_lock(tree: Path, no_leaks: object) -> None:
    @source_tree_lock(tree)
    def build(a: int, /, b: int = 2, *, c: int) -> tuple[int, int, int]:
        """Build it."""
        assert is_taken(tree)
        return a, b, c

    assert build(1, c=3) == (1, 2, 3)
    assert not is_taken(tree)
    assert (build.__name__, build.__doc__) == ("build", "Build it.")
    assert str(inspect.signature(build)) == (
        "(a: 'int', /, b: 'int' = 2, *, c: 'int') -> 'tuple[int, int, int]'"
    )
    assert not inspect.iscoroutinefunction(build)


def test_a_decorator_that_hides_a_coroutine_is_found_out(tree: Path) -> None:
    """Its body would run when the lock is over."""

    def hide(function: Callable[[], object]) -> Callable[[], object]:
        @functools.wraps(function)
        def hiding() -> object:
            return function()

        return hiding

    async def body() -> None:
        raise AssertionError("it is not to run")

    build = source_tree_lock(tree)(hide(body))
    with pytest.raises(TypeError, match="gives a coroutine"):
        build()
    assert not is_taken(tree)


def test_a_decorated_async_function_runs_under_the_lock(tree: Path, no_leaks: object) -> None:
    @source_tree_lock(tree)
    async def build(a: int, *, b: int = 2) -> tuple[int, int]:
        """Build it."""
        await asyncio.sleep(0)
        assert is_taken(tree)
        return a, b

    assert inspect.iscoroutinefunction(build)
    assert asyncio.run(build(1)) == (1, 2)
    assert not is_taken(tree)
    assert (build.__name__, build.__doc__) == ("build", "Build it.")
    assert "(a: 'int', *, b: 'int' = 2)" in str(inspect.signature(build))


def test_an_exception_from_a_decorated_function_comes_out_as_it_is(tree: Path) -> None:
    raised = KeyError()

    @source_tree_lock(tree)
    def build() -> None:
        raise raised

    @source_tree_lock(tree)
    async def build_async() -> None:
        raise raised

    for call in (build, lambda: asyncio.run(build_async())):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value is raised
        assert not is_taken(tree)


def test_a_path_may_depend_on_the_calls_arguments(tree: Path, tmp_path: Path) -> None:
    @source_tree_lock(lambda source, *, suffix="": source / suffix)
    def build(source: Path, *, suffix: str = "") -> tuple[bool, bool]:
        return is_taken(tree), is_taken(tmp_path)

    @source_tree_lock(lambda source: source)
    async def build_async(source: Path) -> tuple[bool, bool]:
        return is_taken(tree), is_taken(tmp_path)

    assert build(tree) == (True, False)
    assert build(tmp_path) == (False, True)
    assert build(tmp_path, suffix="tree") == (True, False)
    assert asyncio.run(build_async(tree)) == (True, False)


def test_a_method_may_name_the_tree_of_its_object(tree: Path) -> None:
    class Project:
        root = tree

        @source_tree_lock(lambda self: self.root)
        def build(self) -> bool:
            return is_taken(tree)

    assert Project().build()


def test_a_path_that_depends_on_arguments_serves_a_decorator_only(tree: Path) -> None:
    lock = source_tree_lock(lambda: tree)
    with pytest.raises(TypeError, match="decorator"), lock:
        pass
    with pytest.raises(TypeError, match="decorator"):
        lock.acquire()
    assert not lock.locked()


def test_a_path_that_a_callable_returns_is_checked_as_any_path() -> None:
    def build(path: object) -> None:
        raise AssertionError("not without the lock")

    with pytest.raises(TypeError, match="17"):
        source_tree_lock(lambda path: path)(build)(17)


def test_every_call_of_a_decorated_function_waits_by_the_locks_options(tree: Path) -> None:
    lock = source_tree_lock(tree, timeout=0)

    @lock
    def plain() -> None:
        raise AssertionError("not without the lock")

    @source_tree_lock(lambda: tree, timeout=0)
    async def asynchronous() -> None:
        raise AssertionError("not without the lock")

    with held_by_thread(tree):
        with pytest.raises(LockTimeout):
            plain()
        with pytest.raises(LockTimeout):
            asyncio.run(asynchronous())


class Callables:
    @staticmethod
    def generator(tree: Path) -> Iterator[None]:
        yield

    @staticmethod
    async def async_generator(tree: Path) -> AsyncIterator[None]:
        yield

    async def __call__(self, tree: Path) -> bool:
        await asyncio.sleep(0)
        return is_taken(tree)


class GeneratorObject:
    def __call__(self, tree: Path) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    "function",
    [
        Callables.generator,
        Callables.async_generator,
        functools.partial(Callables.generator, Path()),
        functools.partial(Callables.async_generator, Path()),
        GeneratorObject(),
        GeneratorObject().__call__,
    ],
)
def test_a_generator_function_is_refused(function: Callable[..., object], tree: Path) -> None:
    with pytest.raises(TypeError, match="generator"):
        source_tree_lock(tree)(function)


@pytest.mark.parametrize(
    "function",
    [Callables, classmethod(repr), staticmethod(repr), 17, None, property(repr)],
)
def test_what_is_no_function_is_not_decorated(function: Any, tree: Path) -> None:
    with pytest.raises(TypeError, match="decorates functions"):
        source_tree_lock(tree)(function)


@pytest.mark.parametrize(
    "function",
    [
        Callables(),
        functools.partial(Callables().__call__),
        Callables().__call__,
    ],
)
def test_whatever_gives_a_coroutine_holds_the_lock_until_it_has_ended(
    function: Callable[..., Any], tree: Path
) -> None:
    assert asyncio.run(source_tree_lock(tree)(function)(tree)) is True


def test_a_builtin_function_may_be_decorated(tree: Path) -> None:
    assert source_tree_lock(tree)(len)("four") == 4


# Written wrongly


def test_a_bare_decorator_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"write @source_tree_lock\(\)"):

        @source_tree_lock
        def build() -> str:
            raise AssertionError("it runs")


def test_a_bare_decorator_of_an_async_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write @source_tree_lock\(\)"):

        @source_tree_lock  # type: ignore[arg-type]
        async def build(*arguments: object) -> None:
            raise AssertionError("it runs")


def test_a_bare_decorator_above_another_one_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write @source_tree_lock\(\)"):

        @source_tree_lock
        @functools.lru_cache
        def build() -> str:
            raise AssertionError("it runs")


def test_a_bare_decorator_of_a_method_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write @source_tree_lock\(\)"):

        class Backend:  # pyright: ignore[reportUnusedClass]
            @source_tree_lock
            def build(self) -> str:
                raise AssertionError("it runs")


def _tree_of_argument(tree: Path) -> Path:
    return tree


@pytest.mark.parametrize("tree_of", [_tree_of_argument, lambda tree: tree, os.fspath])
def test_a_callable_that_gives_the_path_is_no_bare_decorator(
    tree_of: Callable[[Any], Any], tree: Path
) -> None:
    @source_tree_lock(tree_of)
    def build(path: Path) -> bool:
        return source_tree_lock(path).locked()

    assert build(tree) is True
