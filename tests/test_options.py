"""The arguments of a lock, and what the environment sets where they say nothing."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from support import held_by_thread, held_elsewhere, is_taken

from source_tree_lock import (
    LockTimeout,
    Wait,
    source_tree_lock,
)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"blocking": False, "timeout": 1}, ValueError),
        ({"timeout": -2}, ValueError),
        ({"timeout": math.nan}, ValueError),
        ({"timeout": threading.TIMEOUT_MAX * 2}, OverflowError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": None}, TypeError),
    ],
)
def test_acquire_refuses_what_rlock_refuses(
    arguments: dict[str, Any], error: type[Exception], tree: Path, temp_dir: Path
) -> None:
    with pytest.raises(error):
        threading.RLock().acquire(**arguments)
    with pytest.raises(error):
        source_tree_lock(tree).acquire(**arguments)
    assert list(temp_dir.iterdir()) == []


@pytest.mark.parametrize("timeout", [math.inf, threading.TIMEOUT_MAX * 2, 10**12, 0, None, True])
def test_a_free_tree_is_entered_with_any_timeout_that_makes_sense(
    timeout: float | None, tree: Path
) -> None:
    with source_tree_lock(tree, timeout=timeout):
        assert is_taken(tree)


@pytest.mark.parametrize("timeout", [math.inf, threading.TIMEOUT_MAX * 2])
def test_a_timeout_beyond_what_the_system_counts_is_a_wait_like_any(
    timeout: float, tree: Path
) -> None:
    with held_elsewhere(tree) as child:
        lock = source_tree_lock(tree, timeout=timeout, on_wait=lambda holder: child.say())
        with lock:
            child.expect("released")

    async def main() -> None:
        with held_elsewhere(tree) as child:
            lock = source_tree_lock(tree, timeout=timeout, on_wait=lambda holder: child.say())
            async with lock:
                child.expect("released")

    asyncio.run(main())


def test_the_time_that_on_wait_takes_counts(tree: Path) -> None:
    def until_the_time_is_up(holder: Wait) -> None:
        threading.Event().wait(0.02)

    with held_elsewhere(tree), pytest.raises(LockTimeout):
        source_tree_lock(tree, timeout=0.01, on_wait=until_the_time_is_up).__enter__()


def test_the_environment_sets_the_timeout_and_an_argument_wins(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "0.01")
    with held_by_thread(tree):
        with pytest.raises(LockTimeout):
            source_tree_lock(tree).__enter__()
        assert not source_tree_lock(tree).acquire()
        monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "nonsense")
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0).__enter__()


def test_an_empty_timeout_in_the_environment_is_none(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", "")
    with held_elsewhere(tree) as child, source_tree_lock(tree, on_wait=lambda _: child.say()):
        child.expect("released")


def test_the_signature_tells_where_the_timeout_comes_from() -> None:
    signature = str(inspect.signature(source_tree_lock))
    assert re.search(r"timeout: \S.* = <from the environment>, ", signature)


@pytest.mark.parametrize("name", ["digest", "on_wait"])
def test_what_is_to_be_called_is_looked_at_before_it_is_called(tree: Path, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a callable"):
        source_tree_lock(tree, **{name: "no callable"})  # type: ignore[arg-type]
