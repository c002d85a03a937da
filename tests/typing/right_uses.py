"""Right uses: a type checker finds no error here, and the types that it is told of."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

import pyproject_api
from build import ProjectBuilder
from build.util import project_wheel_metadata
from pyproject_hooks import BuildBackendHookCaller, SubprocessRunner, quiet_subprocess_runner
from typing_extensions import Unpack, assert_type

from source_tree_lock import (
    AnyPath,
    FromEnvironment,
    Holder,
    LockOptions,
    LockTimeout,
    LockUnavailable,
    SourceTreeLock,
    SourceTreeLockError,
    Wait,
    cache_digest,
    source_tree_lock,
)
from source_tree_lock.adapters import is_setuptools, locked_hooks, locked_runner


def tell(wait: Wait) -> None:
    assert_type([wait.tree, wait.lock_file, wait.fit(80)], list[str])
    assert_type((wait.holder, wait.waited), tuple[Holder | None, float])


def name_of(path: Path) -> str:
    return path.name


def options(tree: Path, entry: os.DirEntry[str]) -> None:
    source_tree_lock()
    source_tree_lock(b"tree", timeout=5)
    source_tree_lock(entry, timeout=0.5, digest=cache_digest)
    source_tree_lock(tree, digest=name_of, lock_dir=tree, on_wait=tell)
    source_tree_lock("tree", timeout=None, lock_dir="locks", on_wait=print, after_wait=print)
    source_tree_lock(tree, while_waiting=lambda wait: wait.holder and wait.holder.pid)
    SourceTreeLock(tree, timeout=FromEnvironment())


def passes_on(tree: AnyPath, **options: Unpack[LockOptions]) -> SourceTreeLock:
    return source_tree_lock(tree, **options)


# A lock


class Subclass(SourceTreeLock): ...


def use(lock: SourceTreeLock, own: Subclass) -> int:
    assert_type([lock.acquire(), lock.locked(), lock.is_owner()], list[bool])
    lock.acquire(False)
    lock.acquire(blocking=True, timeout=1)
    lock.release()
    assert_type(lock.holder(), Holder | None)
    assert_type([lock.tree, lock.lock_file], list[Path])
    subprocess.run(["make"], env={**os.environ, **lock.environ}, pass_fds=lock.pass_fds, check=True)
    assert_type((lock.environ, lock.pass_fds), tuple[dict[str, str], tuple[int, ...]])
    with lock as entered, own as entered_too:  # it swallows no exception: nothing has to follow
        assert_type((entered, entered_too), tuple[SourceTreeLock, Subclass])
        return 1


async def use_async(lock: SourceTreeLock) -> SourceTreeLock:
    async with lock as entered:
        return entered


def errors(lock: SourceTreeLock) -> None:
    try:
        lock.acquire()
    except LockTimeout as error:
        is_one_of: tuple[SourceTreeLockError, TimeoutError] = (error, error)
        assert_type((error.tree, error.waited, error.holder), tuple[str, float, Holder | None])
        print(is_one_of)
    except LockUnavailable as error:
        is_too: tuple[SourceTreeLockError, OSError] = (error, error)
        print(is_too, error.errno)


def holders(holder: Holder, path: Path) -> None:
    assert_type((holder.pid, holder.name, holder.since), "tuple[int, str, float | None]")
    assert_type([holder.program, holder.host, holder.user], "list[str | None]")
    assert_type([holder.is_stopped, holder.is_local], list[bool])
    for each in (path, PurePosixPath("/a"), PureWindowsPath("C:\\a")):
        assert_type(cache_digest(each), str)


# A decorator


@source_tree_lock("tree")
def build(project: str, *, jobs: int = 1) -> bytes:
    return b""


@source_tree_lock("tree")
async def fetch(project: str, *, jobs: int = 1) -> bytes:
    return b""


# Strict pyright wants to know the types of a lambda's parameters, and no `Callable` tells it.
@source_tree_lock(
    lambda project: project  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
)
async def fetch_any(project: str) -> bytes:
    return b""


class Project:
    @source_tree_lock("tree")
    def build(self, wheel_directory: str) -> Path:
        return Path(wheel_directory)


async def signatures_are_kept() -> None:
    assert_type((build("a", jobs=2), Project().build("dist")), tuple[bytes, Path])
    assert_type((await fetch("a", jobs=2), await fetch_any("a")), tuple[bytes, bytes])
    assert_type(await asyncio.create_task(fetch("a")), bytes)


# The adapters


def runs_as_pip_does(cmd: list[str], cwd: str | None = None, extra_environ: Any = None) -> None: ...


class RunsAsPdmDoes:
    def run(self, cmd: list[str], cwd: Path | str | None = None, environ: Any = None) -> None: ...


def runners(project: str) -> None:
    runner: SubprocessRunner = locked_runner()
    twice: SubprocessRunner = locked_runner(locked_runner(quiet_subprocess_runner))
    BuildBackendHookCaller(project, "setuptools.build_meta", runner=runner)
    ProjectBuilder(project, runner=twice)
    project_wheel_metadata(project, isolated=False, runner=twice)
    locked_runner(runs_as_pip_does)
    locked_runner(RunsAsPdmDoes().run)
    locked_runner(when=is_setuptools, timeout=5, lock_dir="locks", digest=name_of, on_wait=tell)
    locked_runner(when=lambda tree: True, say=print)
    runner(["python"], cwd="tree", extra_environ={"A": "1"})


def any_hooks(
    caller: BuildBackendHookCaller, frontend: pyproject_api.SubprocessFrontend, backend: ModuleType
) -> None:
    assert_type(locked_hooks(caller, also=["build_app"]), BuildBackendHookCaller)
    assert_type(locked_hooks(caller).build_wheel("dist"), str)
    assert_type(locked_hooks(frontend, "tree"), pyproject_api.SubprocessFrontend)
    assert_type(locked_hooks(backend, timeout=5, on_wait=tell), ModuleType)
    locked_hooks(caller, Path("tree"), when=lambda tree: True, lock_dir="locks", digest=name_of)
