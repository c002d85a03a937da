"""Wrong uses: a type checker finds an error in each line that says so, and in no other."""

from __future__ import annotations

from pathlib import Path

from pyproject_hooks import BuildBackendHookCaller

from source_tree_lock import (
    LockOptions,
    LockTimeout,
    SourceTreeLock,
    cache_digest,
    source_tree_lock,
)
from source_tree_lock.adapters import is_setuptools, locked_hooks, locked_runner

source_tree_lock(17)  # E: no path
source_tree_lock(".", 5)  # E: by keyword only
source_tree_lock(".", timeout="5")  # E: no number
source_tree_lock(".", timout=5)  # E: misspelt
source_tree_lock(".", lock_dir=5)  # E: no path
source_tree_lock(".", on_wait=5)  # E: not callable
source_tree_lock(lambda: 5)  # E: gives no path
cache_digest("tree")  # E: no pathlib path


def gives_a_number(path: Path) -> int:
    return 1


source_tree_lock(gives_a_number)  # E: gives no path
source_tree_lock(".", digest=gives_a_number)  # E: gives no name
source_tree_lock(".", on_wait=gives_a_number)  # E: gets a `Wait`
options: LockOptions = {"timout": 5}  # E: misspelt


def use(lock: SourceTreeLock, error: LockTimeout) -> None:
    with lock as entered:
        entered.unlock()  # E: no such method
    lock.acquire("1")  # E: no bool
    lock.acquire(timeout=None)  # E: no number
    lock.environ = {}  # E: read only
    lock.pass_fds = ()  # E: read only
    lock.tree.environ  # E: a path
    error.holder.pid  # E: may be None


async def use_async(lock: SourceTreeLock) -> None:
    await lock  # E: `async with` instead
    await lock.acquire()  # E: not async


@source_tree_lock(".")
def build(project: str, *, jobs: int = 1) -> bytes:
    return b""


@source_tree_lock(".")
async def fetch(project: str, *, jobs: int = 1) -> bytes:
    return b""


source_tree_lock(".")(17)  # E: no function
build()  # E: argument missing
build(17)  # E: no string
build("a", job=2)  # E: misspelt
text: str = build("a")  # E: bytes
content: bytes = fetch("a")  # E: not awaited


async def use_decorated() -> None:
    await build("a")  # E: not async
    number: int = await fetch("a")  # E: bytes


def adapt(caller: BuildBackendHookCaller) -> None:
    locked_runner(gives_a_number)  # E: no runner
    locked_runner(timout=5)  # E: misspelt
    locked_runner(when=5)  # E: no rule
    locked_runner()(["python"], shell=True)  # E: no such argument
    locked_hooks(caller, 17)  # E: no path
    locked_hooks(caller, lock_dir=5)  # E: no path
    locked_hooks(caller).build_egg("dist")  # E: no such hook
    locked_hooks(caller).build_wheel(17)  # E: no string
    is_setuptools(None)  # E: no path
