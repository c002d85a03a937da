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
    def build(a: int, /, b: int = 2, *, c: int) -> tuple[int, int, int, bool]:
        """Build it."""
        return a, b, c, is_taken(tree)

    async def build_async(a: int, /, b: int = 2, *, c: int) -> tuple[int, int, int, bool]:
        """Build it."""
        await asyncio.sleep(0)
        return a, b, c, is_taken(tree)

    function: Callable[..., object] = build_async if is_async else build
    decorated = source_tree_lock(tree)(function)
    assert run(decorated, 1, c=3) == (1, 2, 3, True)
    assert not is_taken(tree)
    assert (decorated.__name__, decorated.__doc__) == (function.__name__, "Build it.")
    assert inspect.signature(decorated) == inspect.signature(function)
    assert inspect.iscoroutinefunction(decorated) is is_async


def test_an_exception_from_a_decorated_function_comes_out_as_it_is(tree: Path) -> None:
    raised = KeyError()

    @source_tree_lock(tree)
    def build() -> None:
        raise raised

    @source_tree_lock(tree)
    async def build_async() -> None:
        raise raised

    for function in (build, build_async):
        with pytest.raises(KeyError) as caught:
            run(function)
        assert caught.value is raised
        assert not is_taken(tree)


def test_a_path_may_depend_on_the_calls_arguments(tree: Path, tmp_path: Path) -> None:
    @source_tree_lock(lambda source, *, suffix="": source / suffix)
    def build(source: Path, *, suffix: str = "") -> tuple[bool, bool]:
        return is_taken(tree), is_taken(tmp_path)

    @source_tree_lock(os.fspath)
    async def build_async(source: Path) -> tuple[bool, bool]:
        return is_taken(tree), is_taken(tmp_path)

    class Project:
        root = tree

        @source_tree_lock(lambda self: self.root)
        def build(self) -> tuple[bool, bool]:
            return is_taken(tree), is_taken(tmp_path)

    assert build(tree) == (True, False)
    assert build(tmp_path) == (False, True)
    assert build(tmp_path, suffix="tree") == (True, False)
    assert run(build_async, tree) == (True, False)
    assert Project().build() == (True, False)
    with pytest.raises(TypeError, match="path must be a path, not 17"):
        source_tree_lock(lambda path: path)(is_taken)(17)  # type: ignore[arg-type]


def test_a_path_that_depends_on_arguments_serves_a_decorator_only(tree: Path) -> None:
    lock = source_tree_lock(lambda: tree)
    for look in (lock.__enter__, lock.acquire, lock.locked, lock.holder, lambda: lock.tree):
        with pytest.raises(TypeError, match="decorator only"):
            look()
    assert not lock.is_owner()


def test_each_call_waits_with_the_options_of_the_lock(tree: Path) -> None:
    @source_tree_lock(tree, timeout=0)
    def plain() -> None:
        pytest.fail("it runs without the lock")

    @source_tree_lock(lambda: tree, timeout=0)
    async def asynchronous() -> None:
        pytest.fail("it runs without the lock")

    with held_by_thread(tree):
        for function in (plain, asynchronous):
            with pytest.raises(LockTimeout):
                run(function)


class Example:
    def generator(self) -> Iterator[None]:
        yield

    async def async_generator(self) -> AsyncIterator[None]:
        yield

    def __call__(self) -> None:
        """As a command of click has it."""

    @functools.cached_property
    def cached(self) -> None: ...


WRONG: dict[str, tuple[Any, str]] = {
    "generator": (Example.generator, "generator"),
    "async generator": (Example.async_generator, "generator"),
    "part of a generator": (functools.partial(Example.generator, Example()), "generator"),
    "method that is a generator": (Example().async_generator, "generator"),
    "class": (Example, "decorates functions"),
    "object that can be called": (Example(), "decorates functions"),
    "class method": (classmethod(repr), "decorates functions"),
    "static method": (staticmethod(repr), "decorates functions"),
    "property": (property(repr), "decorates functions"),
    "cached property": (vars(Example)["cached"], "decorates functions"),
    "number": (17, "decorates functions"),
    "None": (None, "parentheses"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_function_or_a_generator_is_not_decorated(wrong: str, tree: Path) -> None:
    function, match = WRONG[wrong]
    with pytest.raises(TypeError, match=match):
        source_tree_lock(tree)(function)


def test_a_real_command_of_click_is_not_decorated(tree: Path) -> None:
    click = pytest.importorskip("click")
    with pytest.raises(TypeError, match="directly above its `def`"):
        source_tree_lock(tree)(click.command()(lambda: None))


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

    @source_tree_lock(tree)
    def build() -> object:
        return body()

    with pytest.raises(TypeError, match="returns a coroutine"):
        build()
    assert not is_taken(tree)


# Without parentheses


@source_tree_lock  # type: ignore[arg-type]
def bare(*arguments: object) -> None:
    pytest.fail("the body runs")


@source_tree_lock  # type: ignore[arg-type]
async def bare_async(*arguments: object) -> None:
    pytest.fail("the body runs")


@source_tree_lock
@functools.lru_cache
def bare_above_another(*arguments: object) -> str:
    pytest.fail("the body runs")


class Bare:
    @source_tree_lock
    def method(self, *arguments: object) -> str:
        pytest.fail("the body runs")


CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (function, arguments)
    for function in (bare, bare_async, bare_above_another, Bare.method)
    for arguments in ((), (1,), (print,), (1, 2))
    # Only a global function is told from a path that depends on the call: these decorate print.
    if not (function in (bare_above_another, Bare.method) and arguments == (print,))
]


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_a_function_that_was_decorated_without_parentheses_says_what_to_write(
    function: Any, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(TypeError, match=r"write @source_tree_lock\(\)"):
        function(*arguments)
