"""Many trees at once: what the lock takes of builds that never wait for each other.

Processes build wheels of many trees, each tree once, beside thousands of lock files. What
`locked_runner` takes is the time around the hooks, which are timed inside it.
"""

from __future__ import annotations

import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from build import ProjectBuilder
from measure import number, progress
from pyproject_hooks import quiet_subprocess_runner
from report import Goal, Section
from sample import make_tree

from source_tree_lock.adapters import locked_runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from source_tree_lock.adapters import Runner


class Spent(NamedTuple):
    """Seconds of one build: all of its hooks, what of it is the lock's, and the lock's CPU."""

    hooks: float
    lock: float
    lock_cpu: float


class _Timed:
    """A runner that adds up what the one that it calls takes."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.wall = self.cpu = 0.0

    def __call__(
        self,
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self._runner(cmd, cwd, extra_environ)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def build(tree: str, *, locked: bool) -> Spent:
    inner = _Timed(quiet_subprocess_runner)
    outer = _Timed(locked_runner(inner) if locked else inner)
    builder = ProjectBuilder(tree, runner=outer)
    builder.get_requires_for_build("wheel")
    builder.build("wheel", f"{tree}-wheels")
    return Spent(outer.wall, outer.wall - inner.wall, outer.cpu - inner.cpu)


def _build_locked(tree: str) -> Spent:
    return build(tree, locked=True)


def _build_unlocked(tree: str) -> Spent:
    return build(tree, locked=False)


def run(*, quick: bool) -> Section:
    trees, processes, files = (8, 4, 100) if quick else (200, 50, 10_000)
    seconds, spent = {}, []
    for label, one in (("without", _build_unlocked), ("with the lock", _build_locked)):
        with tempfile.TemporaryDirectory() as directory:
            locks = Path(directory, "locks")
            locks.mkdir()
            for index in range(files):
                (locks / f"uv-setuptools-{index:016x}.lock").touch()
            os.environ["SOURCE_TREE_LOCK_DIR"] = str(locks)
            paths = [str(make_tree(Path(directory, str(each)), modules=3)) for each in range(trees)]
            context = get_context("fork")
            started = time.perf_counter()
            with context.Pool(processes) as pool, progress(f"{trees} trees {label}", trees) as step:
                for each in pool.imap_unordered(one, paths):
                    spent.append(each)
                    step()
            seconds[label] = time.perf_counter() - started
            del os.environ["SOURCE_TREE_LOCK_DIR"]
    locked = spent[trees:]
    hooks, lock, cpu = (sum(each) for each in zip(*locked, strict=True))
    caption = f"{trees} trees built by {processes} processes, beside {files:,} lock files:"
    share = 100 * lock / hooks
    row = [f"{seconds[label]:.1f} s" for label in seconds]
    row += [f"{number(share)} %", f"{1000 * cpu / trees:.2f} ms"]
    columns = [*seconds, "the lock's share of the time", "the lock's CPU in the frontend, a build"]
    reason = "builds of different trees have nothing to wait for"
    what = f"{trees} trees at once: the lock's share of the time"
    return Section([(caption, columns, [row])], {}, [Goal(what, share, 1, reason, "%")])
