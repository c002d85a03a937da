"""The ways into a tree, each of which promises the same of its wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from source_tree_lock import SourceTreeLock

#: Enters, runs what it is given, and leaves.
Way = Callable[[SourceTreeLock, Callable[[], Any]], Any]


def _with(lock: SourceTreeLock, body: Callable[[], Any]) -> None:
    with lock:
        body()


def _acquire(lock: SourceTreeLock, body: Callable[[], Any]) -> None:
    assert lock.acquire()
    try:
        body()
    finally:
        lock.release()


def _decorator(lock: SourceTreeLock, body: Callable[[], Any]) -> None:
    lock(body)()


def _async_with(lock: SourceTreeLock, body: Callable[[], Any]) -> None:
    async def main() -> None:
        async with lock:
            body()

    asyncio.run(main())


def _async_decorator(lock: SourceTreeLock, body: Callable[[], Any]) -> None:
    @lock
    async def main() -> None:
        body()

    asyncio.run(main())


WAYS: dict[str, Way] = {
    "with": _with,
    "acquire": _acquire,
    "decorator": _decorator,
    "async with": _async_with,
    "async decorator": _async_decorator,
}
