"""Programs that were frozen or zipped can lock: everything that is imported late is found."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipapp
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import typing_extensions
from bare import SOURCE
from support import LIMIT, is_free

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


@pytest.mark.long
def test_a_tool_that_reads_import_statements_finds_all_modules_of_the_lock(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import source_tree_lock\n")
    finder = ModuleFinder([str(SOURCE.parent), *sys.path], excludes=["asyncio", "logging"])
    finder.run_script(str(script))
    modules = {f"source_tree_lock.{path.stem}" for path in SOURCE.glob("_[a-z]*.py")}
    assert modules | {"source_tree_lock._system.posix"} <= finder.modules.keys()


def holds_a_tree(tree: Path, *command: object) -> None:
    """Fail unless a program can lock a tree as any process does."""
    tree.mkdir(exist_ok=True)
    lock = source_tree_lock(tree)
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not is_free(lock.lock_file)
        assert not is_free(tree)
        process.communicate("\n", timeout=LIMIT)
        assert process.returncode == 0
        assert not lock.locked()
    finally:
        process.kill()
        process.wait(LIMIT)


def test_a_zipapp_can_lock(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(SOURCE, source / SOURCE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(typing_extensions.__file__, source)  # which older Pythons need
    (source / "program.py").write_text(PROGRAM)
    archive = tmp_path / "program.pyz"
    zipapp.create_archive(source, archive, main="program:main")
    holds_a_tree(tmp_path / "tree", sys.executable, "-I", "-S", archive, tmp_path / "tree")


#: How each makes a program of `program.py` in the working directory, and how it is run: `{bin}` has
#: the programs of an environment with the library, `{site}` its modules, `{python}` runs it.
FREEZERS: dict[str, tuple[str, ...]] = {
    "pyinstaller": ("{bin}/pyinstaller --onefile --log-level ERROR program.py", "dist/program"),
    "cx_Freeze": ("{bin}/cxfreeze --script program.py build_exe --build-exe dist", "dist/program"),
    "shiv": (
        "mkdir packed; cp -r {site}/source_tree_lock program.py packed",
        "{bin}/shiv --site-packages packed -e program:main -o p.pyz",
        "{python} p.pyz",
    ),
    "pex": (
        "mkdir sources; cp program.py sources",
        "{bin}/pex source-tree-lock -D sources --venv-repository {bin}/.. -m program:main -o p.pex",
        "{python} p.pex",
    ),
}


def sh(command: str, cwd: Path) -> None:
    """Run a command, which must end well."""
    run = ["sh", "-ec", f"exec < /dev/null 2>&1; {command}"]
    done = subprocess.run(run, cwd=cwd, stdout=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A new virtual environment, in which the library is installed."""
    project = Path(__file__).parents[2]
    if not (project / "pyproject.toml").exists():
        pytest.skip("the project of the library is not beside its tests")
    directory = tmp_path_factory.mktemp("freezers")
    install = f"bin/python -m pip install -q {shlex.quote(str(project))}"
    sh(f"{sys.executable} -m venv . && {install}", directory)
    [site] = directory.glob("lib/python*/site-packages")
    return {"bin": f"{directory}/bin", "site": str(site), "python": sys.executable}


@pytest.mark.long
@pytest.mark.once
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("freezer", FREEZERS)
def test_a_frozen_program_can_lock(
    freezer: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = environment
    sh(f"{names['bin']}/python -m pip install -q {freezer}", tmp_path)
    for variable in ("SHIV_ROOT", "PEX_ROOT", "PYINSTALLER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    *make, program = FREEZERS[freezer]
    (tmp_path / "program.py").write_text(PROGRAM)
    sh("; ".join(make).format(**names), tmp_path)
    monkeypatch.chdir(tmp_path)
    holds_a_tree(tmp_path / "tree", *program.format(**names).split(), tmp_path / "tree")
