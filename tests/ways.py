"""The ways into a tree, each of which promises the same of its wait."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support import LIMIT

from source_tree_lock import source_tree_lock
from source_tree_lock.adapters import locked_hooks, locked_runner

#: Enters a tree with some options, runs what it is given, and leaves.
Way = Callable[..., Any]
Body = Callable[[], Any]


def _with(tree: Path, body: Body, **options: Any) -> None:
    with source_tree_lock(tree, **options):
        body()


def _acquire(tree: Path, body: Body, **options: Any) -> None:
    lock = source_tree_lock(tree, **options)
    assert lock.acquire()
    try:
        body()
    finally:
        lock.release()


def _decorator_of_arguments(tree: Path, body: Body, **options: Any) -> None:
    source_tree_lock(lambda path: path, **options)(lambda path: body())(tree)


def _async_with(tree: Path, body: Body, **options: Any) -> None:
    async def main() -> None:
        async with source_tree_lock(tree, **options):
            body()

    asyncio.run(main())


def _async_decorator(tree: Path, body: Body, **options: Any) -> None:
    async def main() -> None:
        body()

    asyncio.run(source_tree_lock(tree, **options)(main)())


def _runner(tree: Path, body: Body, **options: Any) -> None:
    locked_runner(lambda *_: body(), **options)(["a hook"], str(tree))


def _hooks(tree: Path, body: Body, **options: Any) -> None:
    locked_hooks(SimpleNamespace(build_wheel=body), tree, **options).build_wheel()


WAYS: dict[str, Way] = {
    "with": _with,
    "acquire": _acquire,
    "decorator": lambda tree, body, **options: source_tree_lock(tree, **options)(body)(),
    "decorator of arguments": _decorator_of_arguments,
    "async with": _async_with,
    "async decorator": _async_decorator,
    "locked_runner": _runner,
    "locked_hooks": _hooks,
}

#: Every kind of wait, as code of another process, which goes on with `inside` once it is in.
WAITS = {
    "for ever": "with source_tree_lock(tree): inside()",
    "bounded": f"with source_tree_lock(tree, timeout={LIMIT}): inside()",
    "in asyncio": "asyncio.run(enter())",
    "in asyncio, bounded": f"asyncio.run(enter(timeout={LIMIT}))",
    "in asyncio, by wait_for": f"asyncio.run(asyncio.wait_for(enter(), {LIMIT}))",
}
#: One of each kind.
KINDS = ("for ever", "bounded", "in asyncio")
#: What that code needs. The first argument of the process is the tree.
PRELUDE = """
import _thread, asyncio, os, signal, sys, threading, time
from source_tree_lock import LockTimeout, source_tree_lock
tree = sys.argv[1]
def inside():
    tell("held")
    heard()
async def enter(**options):
    async with source_tree_lock(tree, **options):
        inside()
"""


def script(wait: str, around: str = "{}") -> str:
    """What a child runs: one of the `WAITS`, in the place of the braces in some other code."""
    return PRELUDE + textwrap.dedent(around).format(WAITS[wait])
