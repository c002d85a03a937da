"""portalocker's lockers: imported late, alone, and by whatever name they go."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipapp
from collections.abc import Callable
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from bare import SOURCE, in_a_bare_interpreter
from support import LIMIT, is_free

from source_tree_lock import source_tree_lock


def portalocker() -> Path:
    """The folder of the portalocker that is installed."""
    spec = importlib.util.find_spec("portalocker")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def test_portalocker_is_imported_at_the_first_acquisition(tmp_path: Path) -> None:
    told = in_a_bare_interpreter(
        "def is_there(): return any('portalocker.' in name for name in sys.modules)\n"
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


# Vendored: a tool has rewritten the import statements, and nothing else

#: Beside the vendored one, there is a portalocker of somebody else's.
EXPLODES = "raise SystemExit('the wrong portalocker')"


def vendored(site: Path) -> None:
    """Copy both packages below `vendored._vendor`, as pip's vendoring tool does."""
    target = site / "vendored" / "_vendor"
    for package in (SOURCE, portalocker()):
        shutil.copytree(
            package, target / package.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for directory in (target, target.parent):
        (directory / "__init__.py").touch()
    for path in target.rglob("*.py"):
        text = path.read_text("utf-8")
        for name in ("source_tree_lock", "portalocker"):
            text = re.sub(
                rf"^(\s*)from {name}(\.| import)",
                rf"\1from vendored._vendor.{name}\2",
                text,
                flags=re.MULTILINE,
            )
            text = re.sub(
                rf"^(\s*)import {name}(\s|$)",
                rf"\1from vendored._vendor import {name}\2",
                text,
                flags=re.MULTILINE,
            )
        path.write_text(text, "utf-8")
    (site / "portalocker").mkdir()
    for name in ("__init__", "portalocker"):
        (site / "portalocker" / f"{name}.py").write_text(EXPLODES)


@pytest.mark.parametrize("is_there", [False, True], ids=["alone", "whole"])
def test_a_vendored_copy_uses_its_own_portalocker(is_there: bool, tmp_path: Path) -> None:
    site, tree = tmp_path / "site", tmp_path / "tree"
    tree.mkdir()
    vendored(site)
    told = in_a_bare_interpreter(
        f"sys.path.insert(0, {str(site)!r})\n"
        + ("import vendored._vendor.portalocker\n" if is_there else "")
        + "from vendored._vendor.source_tree_lock import source_tree_lock\n"
        f"with source_tree_lock({str(tree)!r}) as lock: print(lock.locked())\n"
        "for name, module in sorted(sys.modules.items()):\n"
        "    if name.endswith('.portalocker') and module.__file__.endswith('portalocker.py'):\n"
        "        print(module.__file__)\n"
        "print('portalocker' in sys.modules, 'source_tree_lock' in sys.modules)"
    )
    used = str(site / "vendored" / "_vendor" / "portalocker" / "portalocker.py")
    lines = told.splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("True", {used}, "False False")


# Frozen and zipped

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


@pytest.mark.skipif(os.name == "nt", reason="modulefinder itself fails on the Python under Wine")
def test_a_tool_that_reads_import_statements_finds_portalocker(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import source_tree_lock\n")
    finder = ModuleFinder([str(SOURCE.parent), str(portalocker().parent)])
    finder.run_script(str(script))
    found = finder.modules.keys()
    assert {"source_tree_lock._system.from_portalocker", "portalocker.portalocker"} <= found


def holds_a_tree(tree: Path, *command: object) -> None:
    """Whether a program can lock a tree as any process does."""
    tree.mkdir(exist_ok=True)
    lock = source_tree_lock(tree)
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert lock.is_held()
        if os.name == "posix":
            assert not is_free(lock.lock_file)
            assert not is_free(tree)
        process.communicate("\n", timeout=LIMIT)
        assert process.returncode == 0
        assert not lock.is_held()
    finally:
        process.kill()
        process.wait(LIMIT)


def test_a_zipapp_can_lock(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in (SOURCE, portalocker()):
        shutil.copytree(
            package, source / package.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (source / "program.py").write_text(PROGRAM)
    archive = tmp_path / "program.pyz"
    zipapp.create_archive(source, archive, main="program:main")
    holds_a_tree(tmp_path / "tree", sys.executable, "-I", "-S", archive, tmp_path / "tree")


def pyinstaller_onedir(bin_dir: Path, work: Path) -> list[object]:
    run(work, bin_dir / "pyinstaller", "--onedir", "--log-level", "ERROR", "program.py")
    return [work / "dist" / "program" / "program"]


def pyinstaller_onefile(bin_dir: Path, work: Path) -> list[object]:
    run(work, bin_dir / "pyinstaller", "--onefile", "--log-level", "ERROR", "program.py")
    return [work / "dist" / "program"]


def cx_freeze(bin_dir: Path, work: Path) -> list[object]:
    run(work, bin_dir / "cxfreeze", "--script", "program.py", "build_exe", "--build-exe", "dist")
    return [work / "dist" / "program"]


def shiv(bin_dir: Path, work: Path) -> list[object]:
    site = next(bin_dir.parent.glob("lib/python*/site-packages"))
    packed = work / "packed"
    for package in ("source_tree_lock", "portalocker"):
        shutil.copytree(site / package, packed / package)
    shutil.copy(work / "program.py", packed)
    command = ["--site-packages", packed, "--entry-point", "program:main", "--output-file", "p.pyz"]
    run(work, bin_dir / "shiv", *command)
    return [sys.executable, work / "p.pyz"]


def pex(bin_dir: Path, work: Path) -> list[object]:
    (work / "sources").mkdir()
    shutil.copy(work / "program.py", work / "sources")
    command = ["--venv-repository", bin_dir.parent, "-D", "sources", "-m", "program:main"]
    run(work, bin_dir / "pex", "source-tree-lock", *command, "-o", "p.pex")
    return [sys.executable, work / "p.pex"]


def run(work: Path, *command: object) -> None:
    done = subprocess.run(
        list(map(str, command)),
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout


#: Each makes a program of `program.py`, and what it comes from on PyPI.
FREEZERS: dict[Callable[[Path, Path], list[object]], str] = {
    pyinstaller_onedir: "pyinstaller",
    pyinstaller_onefile: "pyinstaller",
    cx_freeze: "cx_Freeze",
    shiv: "shiv",
    pex: "pex",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new virtual environment, in which the library is installed."""
    project = Path(__file__).parents[2]
    if not (project / "pyproject.toml").exists():
        pytest.skip("the project of the library is not beside its tests")
    directory = tmp_path_factory.mktemp("freezers")
    subprocess.run([sys.executable, "-m", "venv", directory], check=True, timeout=LIMIT)
    # By setuptools' scheme `bin`; on Windows nothing of this is tried.
    bin_dir = directory / "bin"
    install(bin_dir, str(project))
    return bin_dir


def install(bin_dir: Path, requirement: str) -> None:
    """Install something from PyPI, or skip the test that needs it."""
    command = [str(bin_dir / "python"), "-m", "pip", "install", "--quiet", requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        pytest.skip(f"pip cannot install {requirement}: {done.stderr[-300:]}")


@pytest.mark.once
@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.name != "posix", reason="the paths are those of POSIX")
@pytest.mark.parametrize("freeze", FREEZERS, ids=lambda freeze: freeze.__name__)
def test_a_frozen_program_can_lock(
    freeze: Callable[[Path, Path], list[object]],
    long_run: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not long_run:
        pytest.skip("only with --long: it installs and runs a whole freezer")
    bin_dir: Path = request.getfixturevalue("environment")
    install(bin_dir, FREEZERS[freeze])
    for variable in ("SHIV_ROOT", "PEX_ROOT", "PYINSTALLER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    (work / "program.py").write_text(PROGRAM)
    holds_a_tree(tmp_path / "tree", *freeze(bin_dir, work), tmp_path / "tree")
