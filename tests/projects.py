"""Projects to build, and what became of a build: compared by content, not by exit status."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from pathlib import Path

from pyproject_hooks import BuildBackendHookCaller

from source_tree_lock import source_tree_lock

#: What an archive holds: the name of each file with the hash of its content.
Content = dict[str, str]

_PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "{backend}"

[project]
name = "sample"
version = "1.0"

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
sample = ["*.txt"]
"""

_WITNESS = """
import fcntl, sys
with open({lock_file!r}, "a") as file, open({log!r}, "a") as log:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(sys.argv[1], "unlocked", file=log)
    except BlockingIOError:
        print(sys.argv[1], "locked", file=log)
"""


class Witness:
    """For a `setup.py`: writes down each of its commands, and whether the tree was locked."""

    def __init__(self, tree: Path) -> None:
        self._log = tree / "witness.log"
        lock_file = source_tree_lock(tree).lock_file
        self.setup = _WITNESS.format(lock_file=str(lock_file), log=str(self._log))

    def report(self) -> set[str]:
        """What it has seen since the last time, such as ``bdist_wheel locked``."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return set(lines)


def make_project(tree: Path, backend: str = "setuptools.build_meta", modules: int = 30) -> Path:
    """A package with so many modules and some files of data."""
    package = tree / "src" / "sample"
    package.mkdir(parents=True)
    (tree / "pyproject.toml").write_text(_PYPROJECT.format(backend=backend))
    (package / "__init__.py").write_text("")
    for number in range(modules):
        lines = (f"def function_{each}():\n    return {number * each}\n" for each in range(40))
        (package / f"module_{number:02}.py").write_text("\n".join(lines))
        if number % 3 == 0:
            (package / f"table_{number:02}.txt").write_text(f"{number}\n" * 500)
    return tree


def archives(directory: Path) -> list[Path]:
    """The wheels and sdists in a directory."""
    return sorted([*directory.glob("*.whl"), *directory.glob("*.tar.gz")])


def content(archive: Path) -> Content:
    """What a wheel or an sdist holds."""
    found = {}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = wheel.namelist()
            assert len(set(names)) == len(names), "something is packed twice"
            for name in names:
                data = wheel.read(name)
                if name.endswith("/RECORD"):
                    data = b"\n".join(sorted(data.splitlines()))  # its order means nothing
                found[name] = data
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist.getmembers():
                file = sdist.extractfile(member)
                found[member.name] = b"" if file is None else file.read()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


#: What setuptools is told to do by all hooks together: the words of a `Witness` begin with them.
ALL_COMMANDS = {"egg_info", "dist_info", "bdist_wheel", "sdist", "editable_wheel"}


def call_all_hooks(hooks: BuildBackendHookCaller, out: Path) -> None:
    hooks.get_requires_for_build_wheel()
    hooks.prepare_metadata_for_build_wheel(str(out))
    hooks.build_wheel(str(out))
    hooks.get_requires_for_build_sdist()
    hooks.build_sdist(str(out))
    hooks.get_requires_for_build_editable()
    hooks.prepare_metadata_for_build_editable(str(out))
    hooks.build_editable(str(out))
