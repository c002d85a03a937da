"""Right uses: a type checker finds no error here, and the types that it is told of."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, TypeVar

import pyproject_api
from build import ProjectBuilder
from build.util import project_wheel_metadata
from pyproject_hooks import (
    BuildBackendHookCaller,
    SubprocessRunner,
    default_subprocess_runner,
    quiet_subprocess_runner,
)
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

T = TypeVar("T")


def tell(wait: Wait) -> None:
    assert_type(wait.tree, str)
    assert_type(wait.lock_file, str)
    assert_type(wait.holder, Holder | None)
    assert_type(wait.waited, float)
    assert_type(wait.fit(80), str)


def name_of(path: Path) -> str:
    return path.name


def options(tree: Path, entry: os.DirEntry[str]) -> list[SourceTreeLock]:
    return [
        source_tree_lock(),
        source_tree_lock("tree", timeout=None),
        source_tree_lock(b"tree", timeout=5),
        source_tree_lock(entry, timeout=0.5, digest=cache_digest),
        source_tree_lock(tree, digest=name_of, lock_dir=tree, on_wait=tell),
        source_tree_lock(tree, lock_dir="locks", on_wait=print, after_wait=print),
        source_tree_lock(tree, on_wait=lambda wait: wait.holder and wait.holder.pid),
        source_tree_lock(tree, while_waiting=lambda wait: print(wait.waited, wait.tree)),
        SourceTreeLock(tree, timeout=FromEnvironment()),
    ]


def passes_on(tree: AnyPath, **options: Unpack[LockOptions]) -> SourceTreeLock:
    return source_tree_lock(tree, **options)


class Subclass(SourceTreeLock):
    name = "it"


# A lock


def use(lock: SourceTreeLock, own: Subclass) -> None:
    with lock as entered, own as entered_too:
        assert_type(entered, SourceTreeLock)
        assert_type(entered_too, Subclass)
    assert_type(lock.acquire(), bool)
    lock.acquire(False)
    lock.acquire(blocking=True, timeout=1)
    lock.release()
    assert_type(lock.locked(), bool)
    assert_type(lock.is_owner(), bool)
    assert_type(lock.holder(), Holder | None)
    assert_type(lock.tree, Path)
    assert_type(lock.lock_file, Path)
    assert_type(lock.environ, dict[str, str])
    assert_type(lock.pass_fds, tuple[int, ...])
    subprocess.run(["make"], env={**os.environ, **lock.environ}, pass_fds=lock.pass_fds, check=True)


async def use_async(lock: SourceTreeLock) -> int:
    async with lock as entered:  # it swallows no exception, so that nothing is to follow
        assert_type(entered, SourceTreeLock)
        return 1


def returns_from_within(lock: SourceTreeLock) -> int:
    with lock:
        return 1


def errors(lock: SourceTreeLock) -> None:
    try:
        lock.acquire()
    except LockTimeout as error:
        is_one_of: tuple[SourceTreeLockError, TimeoutError] = (error, error)
        assert_type(error.tree, str)
        assert_type(error.waited, float)
        assert_type(error.holder, Holder | None)
        print(is_one_of)
    except LockUnavailable as error:
        is_too: tuple[SourceTreeLockError, OSError] = (error, error)
        assert_type(error.errno, "int | None")
        print(is_too)


def holders(holder: Holder) -> None:
    assert_type(holder.pid, int)
    assert_type(holder.program, "str | None")
    assert_type(holder.host, "str | None")
    assert_type(holder.since, "float | None")
    assert_type(holder.user, "str | None")
    assert_type(holder.is_stopped, bool)
    assert_type(holder.is_local, bool)
    assert_type(holder.name, str)


def digests(path: Path) -> None:
    for each in (path, PurePosixPath("/a"), PureWindowsPath("C:\\a")):
        assert_type(cache_digest(each), str)


# A decorator


@source_tree_lock("tree")
def build(project: str, *, jobs: int = 1) -> bytes:
    return b""


@source_tree_lock("tree")
async def fetch(project: str, *, jobs: int = 1) -> bytes:
    return b""


def tree_of(project: str, *, jobs: int = 1) -> Path:
    return Path(project)


@source_tree_lock(tree_of)
def build_any(project: str, *, jobs: int = 1) -> bytes:
    return b""


# Strict pyright wants to know the types of a lambda's parameters, and no `Callable` tells it.
@source_tree_lock(
    lambda project: project  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
)
async def fetch_any(project: str) -> bytes:
    return b""


def tree_of_project(project: Project, wheel_directory: str) -> Path:
    return project.tree


class Project:
    tree: Path = Path("tree")

    @source_tree_lock(tree_of_project)
    def build(self, wheel_directory: str) -> Path:
        return Path(wheel_directory)

    @staticmethod
    @source_tree_lock("tree")
    def check() -> bool:
        return True


@source_tree_lock("tree")
def first(items: list[T]) -> T:
    return items[0]


async def signatures_are_kept() -> None:
    assert_type(build("a", jobs=2), bytes)
    assert_type(build_any("a"), bytes)
    assert_type(await fetch("a", jobs=2), bytes)
    assert_type(await fetch_any("a"), bytes)
    assert_type(await asyncio.create_task(fetch("a")), bytes)
    project = Project()
    assert_type(project.build("dist"), Path)
    assert_type(project.check(), bool)
    assert_type(first([1, 2]), int)


# The adapters


def runs_as_pip_does(
    cmd: list[str],
    cwd: str | None = None,
    extra_environ: Mapping[str, Any] | None = None,
) -> None: ...


class RunsAsPdmDoes:
    """Its runner is a method, and takes paths."""

    def run(
        self,
        cmd: list[str],
        cwd: str | os.PathLike[str] | None = None,
        extra_environ: dict[str, str] | None = None,
    ) -> None: ...


def runners(project: str) -> None:
    runner: SubprocessRunner = locked_runner()
    around: SubprocessRunner = locked_runner(quiet_subprocess_runner)
    locked_runner(runs_as_pip_does)
    locked_runner(RunsAsPdmDoes().run)
    twice: SubprocessRunner = locked_runner(locked_runner(default_subprocess_runner))
    BuildBackendHookCaller(project, "setuptools.build_meta", runner=runner)
    ProjectBuilder(project, runner=around)
    project_wheel_metadata(project, isolated=False, runner=twice)
    locked_runner(when=is_setuptools, timeout=5, lock_dir="locks", digest=name_of, on_wait=tell)
    locked_runner(when=lambda tree: True, say=print)
    runner(["python"])
    runner(["python"], cwd="tree", extra_environ={"A": "1"})


def any_hooks(
    caller: BuildBackendHookCaller,
    frontend: pyproject_api.SubprocessFrontend,
    backend: ModuleType,
) -> None:
    assert_type(locked_hooks(caller), BuildBackendHookCaller)
    assert_type(locked_hooks(caller).build_wheel("dist"), str)
    assert_type(locked_hooks(frontend, "tree"), pyproject_api.SubprocessFrontend)
    assert_type(locked_hooks(backend, timeout=5, on_wait=tell), ModuleType)
    locked_hooks(caller, also=["build_app"])
    locked_hooks(caller, Path("tree"), when=lambda tree: True, lock_dir="locks", digest=name_of)


def rules(tree: Path) -> None:
    assert_type(is_setuptools(tree), bool)
    assert_type(is_setuptools("tree"), bool)
    assert_type(is_setuptools(b"tree"), bool)
