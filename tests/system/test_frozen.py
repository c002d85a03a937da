"""Programs that were frozen or zipped can lock: everything that is imported late is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipapp
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import typing_extensions
from bare import SOURCE
from support import Child, is_free

from source_tree_lock import source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the paths are those of POSIX")

#: A program that holds a tree, tells it, and waits for a line. Arguments: the tree.
PROGRAM = """
import sys
from source_tree_lock import source_tree_lock

def main():
    with source_tree_lock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()

if __name__ == "__main__":
    main()
"""


def test_a_tool_that_reads_import_statements_finds_all_modules_of_the_lock(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import source_tree_lock\n")
    finder = ModuleFinder([str(SOURCE.parent), *sys.path], excludes=["asyncio", "logging"])
    finder.run_script(str(script))
    modules = {f"source_tree_lock.{path.stem}" for path in SOURCE.glob("_[a-z]*.py")}
    modules.remove("source_tree_lock._hook_names")  # of the adapters
    assert modules | {"source_tree_lock._system.posix"} <= finder.modules.keys()


def holds_a_tree(tree: Path, *command: object) -> None:
    """Fail unless a program can lock a tree as any process does."""
    lock = source_tree_lock(tree)
    with Child("import os; os.execvp(sys.argv[1], sys.argv[1:])", *command, tree) as child:
        child.expect("held")
        assert not is_free(lock.lock_file)
        assert not is_free(tree)
        assert child.end() == 0
    assert not lock.locked()


def test_a_zipapp_can_lock(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(SOURCE, source / SOURCE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(typing_extensions.__file__, source)  # which older Pythons need
    (source / "program.py").write_text(PROGRAM)
    archive = tmp_path / "program.pyz"
    zipapp.create_archive(source, archive, main="program:main")
    holds_a_tree(tree, sys.executable, "-I", "-S", archive)


@pytest.mark.once
@pytest.mark.timeout(1200)
def test_a_program_that_pyinstaller_froze_can_lock(
    long_run: bool, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not long_run:
        pytest.skip("only with --long: it installs and runs a whole freezer")
    monkeypatch.setenv("PYINSTALLER_CONFIG_DIR", str(tmp_path / "cache"))
    (tmp_path / "program.py").write_text(PROGRAM)
    make = """
        "$1" -m venv new
        new/bin/python -m pip install -q "$2" pyinstaller
        new/bin/pyinstaller --onefile --log-level ERROR program.py
    """
    project = str(Path(__file__).parents[2])
    command = ["sh", "-ec", make, "sh", sys.executable, project]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    holds_a_tree(tree, tmp_path / "dist" / "program")
