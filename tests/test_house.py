"""The house: who may import whom, and what an import of the library costs nobody."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from bare import SOURCE, in_a_bare_interpreter

import source_tree_lock
from source_tree_lock import adapters

PACKAGE = "source_tree_lock"

#: The core. Each module may import what stands before it, and nothing else of the library.
LOWEST_FIRST: Sequence[str] = """
    errors
    _system.from_portalocker  _system.posix  _system.windows  _system.__init__
    _log
    _kernel_lock
    _unfinished_entries  _owner
    _paths.__init__  _paths.digest  _paths.lock_file  _paths.mounts  _paths.tree
    _holder.__init__  _holder.processes  _holder.proc_locks  _holder.holder  _holder.record
    _holder.find  _holder.circle
    _wait_report  _options  _hook_names
    _held  _handover  _queue  _both_locks
    _deadlocks  _waiting  _entry
    _decorator  _lock
""".split()

#: The faces. Each may import the core and the faces before it.
FACES = ["_public_names", "__init__", "adapters", "build_meta", "_command", "plugins", "__main__"]

#: The only room that asks which system this is.
SYSTEM = "_system"

#: Of how many lines each may be, at most; the core's are those of code alone.
LONGEST_STORY, LONGEST_CLASS, LONGEST_FILE, LARGEST_CORE = 250, 250, 350, 3000


def face_of(name: str) -> str | None:
    """The face that a module belongs to; none if it is of the core."""
    first = name.split(".", maxsplit=1)[0]
    return first if first in FACES else None


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
        for path in SOURCE.rglob("*.py")
    }


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements but those that only a type checker sees."""
    yield node
    children = list(ast.iter_child_nodes(node))
    if (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ):
        children = list(node.orelse)
    for child in children:
        yield from statements(child)


def imported(name: str, source: str) -> set[str]:
    """The modules of the library that `name`, which has this source, imports when it runs."""
    package = name.split(".")[:-1]
    found: set[str] = set()

    def add(parts: list[str], names: list[str]) -> None:
        # `from . import x` may mean a module x or a name in the package.
        for each in names:
            path = [*parts, each]
            if (SOURCE.joinpath(*path).with_suffix(".py")).exists():
                found.add(".".join(path))
            elif SOURCE.joinpath(*path, "__init__.py").exists():
                found.add(".".join([*path, "__init__"]))
            elif SOURCE.joinpath(*parts).is_dir():
                found.add(".".join([*parts, "__init__"]))
            else:
                found.add(".".join(parts))

    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == PACKAGE:
                    add(rest[:-1], rest[-1:] or ["__init__"])
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                # In a package's own `__init__`, one dot is the package as well.
                base = package[: len(package) - (node.level - 1)]
            elif parts[:1] == [PACKAGE]:
                base, parts = [], parts[1:]
            else:
                continue
            add([*base, *parts], [alias.name for alias in node.names])
    return found - {name}


def test_every_module_has_its_place() -> None:
    core = [name for name in modules() if face_of(name) is None]
    assert sorted(core) == sorted(LOWEST_FIRST)


@pytest.mark.parametrize("name", LOWEST_FIRST)
def test_imports_of_the_core_run_downwards(name: str) -> None:
    below = set(LOWEST_FIRST[: LOWEST_FIRST.index(name)])
    upwards = imported(name, modules()[name].read_text("utf-8")) - below
    assert not upwards, f"{name} imports {', '.join(sorted(upwards))}, which stand above it"


@pytest.mark.parametrize("face", FACES)
def test_a_face_imports_the_core_and_the_faces_below_it(face: str) -> None:
    below = {None, *FACES[: FACES.index(face) + 1]}
    for name, path in modules().items():
        if face_of(name) == face:
            found = imported(name, path.read_text("utf-8"))
            upwards = {each for each in found if face_of(each) not in below}
            assert not upwards, f"{name} imports {', '.join(sorted(upwards))}, which stand above it"


def test_imports_run_in_no_circle() -> None:
    imports = {name: imported(name, path.read_text("utf-8")) for name, path in modules().items()}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, and tells the circle


@pytest.mark.parametrize("name", [each for each in modules() if not each.startswith(SYSTEM)])
def test_nobody_else_asks_which_system_this_is(name: str) -> None:
    asked = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(modules()[name].read_text("utf-8")))
        if isinstance(node, (ast.Attribute, ast.ImportFrom))
    }
    asks = re.compile(r"(sys\.platform|os\.name|platform\.system)$|from (sys|os|platform) import")
    assert [each for each in asked if asks.match(each)] == []


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def lines_of_code(path: Path) -> int:
    """All but blank lines, comments and docstrings."""
    text = path.read_text("utf-8")
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            assert node.end_lineno is not None
            told.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        number not in told and line.strip() != "" and not line.lstrip().startswith("#")
        for number, line in lines
    )


def test_the_story_of_getting_in_stays_short() -> None:
    assert lines_of(SOURCE / "_entry.py") < LONGEST_STORY


@pytest.mark.parametrize("name", modules())
def test_no_room_and_no_class_is_too_long_to_be_read(name: str) -> None:
    path = modules()[name]
    assert lines_of(path) <= LONGEST_FILE
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_CLASS, node.name


def test_the_core_fits_in_ones_head() -> None:
    assert sum(map(lines_of_code, map(modules().__getitem__, LOWEST_FIRST))) < LARGEST_CORE


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("_queue", "from ._lock import x", {"_lock"}),
        ("_queue", "from . import _lock, cache_digest", {"_lock", "__init__"}),
        ("_queue", "def f():\n    from source_tree_lock._lock import x", {"_lock"}),
        ("_queue", "import source_tree_lock._lock as lock", {"_lock"}),
        ("_queue", "import source_tree_lock", {"__init__"}),
        ("_queue", "from source_tree_lock import source_tree_lock", {"__init__"}),
        ("adapters.which_trees", "from .._lock import x", {"_lock"}),
        ("adapters.which_trees", "from .hooks import x", {"adapters.hooks"}),
        ("adapters.__init__", "from .hooks import x", {"adapters.hooks"}),
        ("adapters.__init__", "from . import hooks", {"adapters.hooks"}),
        ("_queue", "from .adapters import locked_hooks", {"adapters.__init__"}),
        ("_holder.find", "from .. import _system", {"_system.__init__"}),
        ("_queue", "import os\nfrom typing import Any", set()),
        ("_queue", "if TYPE_CHECKING:\n    from ._lock import x", set()),
        (
            "_queue",
            "if TYPE_CHECKING:\n    pass\nelse:\n    from ._lock import x",
            {"_lock"},
        ),
    ],
)
def test_an_import_that_runs_upwards_would_be_found(
    name: str, source: str, expected: set[str]
) -> None:
    assert imported(name, source) == expected


#: What takes longer to import than the library, and what only some of its uses need.
EXPENSIVE = (
    "portalocker json re logging asyncio pathlib inspect subprocess typing typing_extensions "
    "dataclasses tempfile ctypes setuptools pyproject_hooks tomllib tomli trio"
).split()


def test_an_import_of_the_library_imports_nothing_expensive() -> None:
    told = in_a_bare_interpreter(
        "before = set(sys.modules)\n"
        "from source_tree_lock import source_tree_lock\n"
        "print(*sorted(set(sys.modules) - before))",
        *("-I", "-S"),  # what `site` imports, for whatever is installed, would hide ours
    )
    assert "source_tree_lock._lock" in told.split()
    assert set(told.split()) & set(EXPENSIVE) == set()


def test_a_plugin_imports_nothing_else_of_the_library_until_it_builds() -> None:
    told = in_a_bare_interpreter(
        "import source_tree_lock.plugins._shared\n"
        "print(*[name for name in sys.modules if name.startswith('source_tree_lock')])"
    )
    plugins = f"{PACKAGE}.plugins"
    assert told.split() == [PACKAGE, plugins, f"{plugins}._shared"]


def test_the_backend_imports_setuptools_only_when_it_is_asked_for_a_hook() -> None:
    told = in_a_bare_interpreter(
        "import source_tree_lock.build_meta as backend\n"
        "print('setuptools' in sys.modules)\n"
        "backend.build_wheel\n"
        "print('setuptools' in sys.modules)"
    )
    assert told.split() == ["False", "True"]


def public_functions() -> Iterator[object]:
    """Functions and methods that a program can name."""
    for module in (source_tree_lock, adapters):
        for name in module.__all__:
            value = getattr(module, name)
            is_class_of_ours = type(value) is type and value.__module__.startswith(SOURCE.name)
            members = vars(value).values() if is_class_of_ours else [value]
            for each in members:
                function = each.fget if isinstance(each, property) else each
                if inspect.isfunction(function):
                    yield pytest.param(function, id=function.__qualname__)


@pytest.mark.parametrize("function", list(public_functions()))
def test_the_types_of_every_public_function_can_be_asked_for(
    function: Callable[..., object],
) -> None:
    hints = typing.get_type_hints(function)
    names = [each for each in inspect.signature(function).parameters if each != "self"]
    assert hints.keys() == {*names, "return"}
