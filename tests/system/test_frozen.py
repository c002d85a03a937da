"""Programs that were frozen or zipped can lock: everything that is imported late is found."""

from __future__ import annotations

import shutil
import sys
import zipapp
from modulefinder import ModuleFinder
from pathlib import Path

import typing_extensions
from bare import SOURCE
from support import Child, is_free

from source_tree_lock import source_tree_lock

#: A program that holds a tree, tells it, and waits for a line. Arguments: the tree.
PROGRAM = """
import sys
from source_tree_lock import source_tree_lock

def main():
    with source_tree_lock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
"""


def test_a_tool_that_reads_import_statements_finds_all_modules_of_the_lock(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import source_tree_lock\n")
    finder = ModuleFinder([str(SOURCE.parent), *sys.path], excludes=["asyncio", "logging"])
    finder.run_script(str(script))
    modules = {f"source_tree_lock.{path.stem}" for path in SOURCE.glob("_[a-z]*.py")}
    modules.remove("source_tree_lock._hook_names")  # of the adapters
    assert modules | {"source_tree_lock._system.posix"} <= finder.modules.keys()


def test_a_zipapp_can_lock(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(SOURCE, source / SOURCE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(typing_extensions.__file__, source)  # which older Pythons need
    (source / "program.py").write_text(PROGRAM)
    archive = tmp_path / "program.pyz"
    zipapp.create_archive(source, archive, main="program:main")
    become = "import os; os.execvp(sys.executable, [sys.executable, *sys.argv[1:]])"
    lock = source_tree_lock(tree)
    with Child(become, "-I", "-S", archive, tree) as child:
        child.expect("held")
        assert (is_free(lock.lock_file), is_free(tree)) == (False, False)
        assert child.end() == 0
    assert not lock.locked()
