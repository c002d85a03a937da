"""Functions that run under the lock: what is written wrongly is refused when it is written.

The other tests of decorators are beside those of `with`, whose promises they share.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from source_tree_lock import source_tree_lock


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
