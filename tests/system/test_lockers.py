"""portalocker's lockers: imported late, alone, and by whatever name they go."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import textwrap
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from bare import SOURCE, in_a_bare_interpreter
from support import LIMIT

import source_tree_lock


def test_portalocker_is_imported_at_the_first_acquisition(tmp_path: Path) -> None:
    told = in_a_bare_interpreter(
        "def is_there(): return any('portalocker' in name for name in sys.modules)\n"
        "from source_tree_lock import source_tree_lock\n"
        f"lock = source_tree_lock({str(tmp_path)!r})\n"
        "lock.lock_file, lock.tree, lock.locked(), repr(lock)\n"
        "print(is_there())\n"
        "with lock: print(is_there())"
    )
    assert told.split() == ["False", "True"]


def test_an_acquisition_does_not_import_redis_with_portalocker(tmp_path: Path) -> None:
    tree, site = tmp_path / "tree", tmp_path / "site"
    tree.mkdir()
    site.mkdir()
    (site / "redis.py").write_text("print('redis')")
    told = in_a_bare_interpreter(
        f"sys.path.insert(0, {str(site)!r})\n"
        "from source_tree_lock import source_tree_lock\n"
        f"with source_tree_lock({str(tree)!r}): print('held')\n"
        "import portalocker\n"
        "print(portalocker.Lock.__module__)"  # others get it whole
    )
    assert told.split() == ["held", "redis", "portalocker.utils"]


def test_a_portalocker_that_is_there_serves(tmp_path: Path) -> None:
    told = in_a_bare_interpreter(
        "import portalocker\n"
        "from source_tree_lock import source_tree_lock\n"
        f"with source_tree_lock({str(tmp_path)!r}): pass\n"
        "print(*(name for name in sys.modules if name.endswith('.portalocker')))"
    )
    assert told.split() == ["portalocker.portalocker"]


#: Finds no module whose name starts so.
FINDER = """
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.startswith({!r}) else super().find_spec(name, path, target)
sys.meta_path[:] = [Finder if each is PathFinder else each for each in sys.meta_path]
"""


def test_where_modules_are_found_by_their_own_names_alone_portalocker_serves_whole(
    tmp_path: Path,
) -> None:
    told = in_a_bare_interpreter(
        FINDER.format("source_tree_lock._system._portalocker.")
        + "from source_tree_lock import source_tree_lock\n"
        f"with source_tree_lock({str(tmp_path)!r}) as lock: print(lock.locked())\n"
        "print('portalocker.portalocker' in sys.modules)"
    )
    assert told.split() == ["True", "True"]


def test_without_portalocker_nobody_gets_in(tmp_path: Path) -> None:
    told = in_a_bare_interpreter(
        FINDER.format("portalocker")
        + "from source_tree_lock import LockUnavailable, source_tree_lock\n"
        f"lock = source_tree_lock({str(tmp_path)!r})\n"
        "try:\n"
        "    with lock: print('held')\n"
        "except LockUnavailable as error: print(error)\n"
        "print(lock.locked())"
    )
    assert "No module named 'portalocker'" in told
    assert told.splitlines()[1:] == ["False"]
