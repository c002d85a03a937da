"""Sample setuptools projects to build, and what a wheel of one has to contain."""

import hashlib
import zipfile
from pathlib import Path

_PYPROJECT = """\
[build-system]
requires = [{requires}]
build-backend = "{backend}"

[project]
name = "sample"
version = "1.0"

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
sample = ["data/*.txt"]
"""
#: Backends, and what they require.
SETUPTOOLS = ("setuptools.build_meta", '"setuptools"')
OURS = ("source_tree_lock.build_meta", '"setuptools", "source-tree-lock"')

#: What a wheel holds: the name of each file with the hash of its content.
Content = list[tuple[str, str]]


def make_tree(directory: Path, backend: tuple[str, str] = SETUPTOOLS, modules: int = 30) -> Path:
    """Make a setuptools project with so many modules and some package data."""
    package = directory / "src" / "sample"
    (package / "data").mkdir(parents=True)
    name, requires = backend
    pyproject = _PYPROJECT.format(backend=name, requires=requires)
    (directory / "pyproject.toml").write_text(pyproject)
    (package / "__init__.py").write_text("")
    for number in range(modules):
        lines = (f"def function_{each}():\n    return {number * each}\n\n" for each in range(40))
        (package / f"module_{number:02}.py").write_text("\n".join(lines))
    for number in range(10):
        (package / "data" / f"table_{number:02}.txt").write_text(f"{number}\n" * 500)
    return directory


def wheel_content(directory: Path) -> Content | None:
    """What the one wheel in ``directory`` holds; ``None`` if there is none that can be read."""
    content = []
    try:
        (wheel,) = directory.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                data = archive.read(member)
                if member.filename.endswith("/RECORD"):
                    data = b"\n".join(sorted(data.splitlines()))  # its order means nothing
                content.append((member.filename, hashlib.sha256(data).hexdigest()))
    except (zipfile.BadZipFile, EOFError, OSError, ValueError):
        return None
    return sorted(content)
