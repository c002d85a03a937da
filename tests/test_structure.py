"""The structure of the library: imports run downwards, and an import costs little."""

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
from source_tree_lock import SourceTreeLock, adapters

PACKAGE = "source_tree_lock"

#: The core. Each module may import those before it, and nothing else of the library.
LOWEST_FIRST: Sequence[str] = """
    _hook_names
    _system.posix  _system.windows  _system.__init__
    _holder  errors  _kernel_lock  _digest  _paths  _record  _hold  _proc
    _handover  _queue  _deadlocks  _wait
    _acquire  _decorator  _lock
""".split()

#: What stands above the core. Each may import the core and those before it.
TOP = ["__init__", "adapters", "build_meta", "_command", "plugins", "__main__"]

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")
}


def part_of(name: str) -> str | None:
    """What a module above the core belongs to; ``None`` if it is of the core."""
    first = name.split(".", maxsplit=1)[0]
    return first if first in TOP else None


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements but those that only a type checker sees."""
    yield node
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
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
            candidates = [[*parts, each], [*parts, each, "__init__"], [*parts, "__init__"], parts]
            found.add(next(filter(MODULES.__contains__, map(".".join, candidates))))

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
                parts = [*package[: len(package) - (node.level - 1)], *parts]
            elif parts[:1] == [PACKAGE]:
                parts = parts[1:]
            else:
                continue
            add(parts, [alias.name for alias in node.names])
    return found - {name}


def test_every_module_of_the_core_has_its_place() -> None:
    assert sorted(name for name in MODULES if part_of(name) is None) == sorted(LOWEST_FIRST)


@pytest.mark.parametrize("name", LOWEST_FIRST)
def test_imports_of_the_core_run_downwards(name: str) -> None:
    below = set(LOWEST_FIRST[: LOWEST_FIRST.index(name)])
    assert imported(name, MODULES[name].read_text("utf-8")) <= below


@pytest.mark.parametrize("part", TOP)
def test_imports_above_the_core_run_downwards(part: str) -> None:
    below = {None, *TOP[: TOP.index(part) + 1]}
    for name, path in MODULES.items():
        if part_of(name) == part:
            found = imported(name, path.read_text("utf-8"))
            assert {each for each in found if part_of(each) not in below} == set(), name


def test_imports_run_in_no_circle() -> None:
    imports = {name: imported(name, path.read_text("utf-8")) for name, path in MODULES.items()}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("_queue", "from ._lock import x", {"_lock"}),
        ("_queue", "from . import _lock, cache_digest", {"_lock", "__init__"}),
        ("_queue", "def f():\n    from source_tree_lock._lock import x", {"_lock"}),
        ("_queue", "import source_tree_lock._lock as lock", {"_lock"}),
        ("_queue", "import source_tree_lock", {"__init__"}),
        ("_queue", "from source_tree_lock import source_tree_lock", {"__init__"}),
        ("_queue", "from .adapters import locked_hooks", {"adapters.__init__"}),
        ("adapters.which_trees", "from .._lock import x", {"_lock"}),
        ("adapters.which_trees", "from .hooks import x", {"adapters.hooks"}),
        ("adapters.__init__", "from . import hooks", {"adapters.hooks"}),
        ("plugins.tox", "from .. import _system", {"_system.__init__"}),
        ("_queue", "import os\nfrom typing import Any", set()),
        ("_queue", "if TYPE_CHECKING:\n    from ._lock import x", set()),
        ("_queue", "if TYPE_CHECKING:\n    pass\nelse:\n    from ._lock import x", {"_lock"}),
    ],
)
def test_an_import_that_runs_upwards_would_be_found(
    name: str, source: str, expected: set[str]
) -> None:
    assert imported(name, source) == expected


@pytest.mark.parametrize("name", [each for each in MODULES if not each.startswith("_system")])
def test_only_one_package_asks_which_system_this_is(name: str) -> None:
    asks = re.compile(r"(sys\.platform|os\.name|platform\.system)$|from (sys|os|platform) import")
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    named = {
        part
        for each in ast.walk(tree)
        if isinstance(each, ast.JoinedStr)
        for part in ast.walk(each)
    }
    asked = [each for each in ast.walk(tree) if isinstance(each, (ast.Attribute, ast.ImportFrom))]
    assert [each for each in asked if each not in named and asks.match(ast.unparse(each))] == []


def test_the_words_of_the_second_version_are_gone() -> None:
    words = re.compile(r"\b(room|house|face|story|line|teller|whoever|whom)s?\b", re.IGNORECASE)
    found = {name: words.findall(path.read_text("utf-8")) for name, path in MODULES.items()}
    assert {name: each for name, each in found.items() if each} == {}


# What an import costs

NAMES = "print(*[name for name in sys.modules if name.partition('.')[0] == 'source_tree_lock'])"


def test_a_free_with_imports_few_modules_and_nothing_expensive(tree: Path) -> None:
    said = in_a_bare_interpreter(
        "if sys.version_info < (3, 11): import typing_extensions\n"
        "before = set(sys.modules)\n"
        "from source_tree_lock import source_tree_lock\n"
        f"with source_tree_lock({str(tree)!r}): pass\n"
        "print(*sorted(set(sys.modules) - before))",
        *("-I", "-S"),  # what `site` imports, for anything that is installed, would hide ours
    )
    modules = said.split()
    assert f"{PACKAGE}._lock" in modules
    assert sum(name.partition(".")[0] == PACKAGE for name in modules) <= 12
    expensive = "asyncio concurrent.futures ctypes inspect json logging setuptools subprocess trio"
    assert set(modules) & {*expensive.split(), "portalocker", "tempfile", "tomllib"} == set()


@pytest.mark.parametrize("plugin", ["_shared", "tox", "pdm", "poetry"])
def test_a_plugin_imports_nothing_else_of_the_library(plugin: str) -> None:
    if plugin == "poetry":
        pytest.importorskip(plugin, reason="its plugin inherits from a class of it")
    said = in_a_bare_interpreter(f"import source_tree_lock.plugins.{plugin}\n{NAMES}")
    plugins = f"{PACKAGE}.plugins"
    assert set(said.split()) <= {PACKAGE, plugins, f"{plugins}._shared", f"{plugins}.{plugin}"}


def test_the_backend_imports_setuptools_only_when_it_is_asked_for_a_hook() -> None:
    said = in_a_bare_interpreter(
        "import source_tree_lock.build_meta as backend\n"
        "print('setuptools' in sys.modules)\n"
        "backend.build_wheel\n"
        "print('setuptools' in sys.modules)"
    )
    assert said.split() == ["False", "True"]


# What is public


def public_functions() -> Iterator[object]:
    """Functions, methods and constructors that a program can name."""
    for module in (source_tree_lock, adapters):
        for name in module.__all__:
            value = getattr(module, name)
            is_class_of_ours = inspect.isclass(value) and value.__module__.startswith(PACKAGE)
            members = vars(value).values() if is_class_of_ours else [value]
            for each in members:
                function = each.fget if isinstance(each, property) else each
                if inspect.isfunction(function) and function.__module__.startswith(PACKAGE):
                    yield pytest.param(function, id=function.__qualname__)


@pytest.mark.parametrize("function", list(public_functions()))
def test_the_types_of_every_public_function_can_be_asked_for(
    function: Callable[..., object],
) -> None:
    names = [each for each in inspect.signature(function).parameters if each != "self"]
    assert typing.get_type_hints(function).keys() == {*names, "return"}


def test_the_options_are_those_of_the_constructor() -> None:
    hints = typing.get_type_hints(source_tree_lock.LockOptions)
    parameters = inspect.signature(SourceTreeLock).parameters
    options = [each.name for each in parameters.values() if each.kind is each.KEYWORD_ONLY]
    assert list(hints) == options
    expected = typing.get_type_hints(SourceTreeLock.__init__)
    assert hints == {name: expected[name] for name in options}
    assert repr(parameters["timeout"].default) == "<from the environment>"


def test_every_public_name_is_there_and_listed_and_has_a_docstring() -> None:
    said = in_a_bare_interpreter(
        "import source_tree_lock as package\n"
        "print(*dir(package))\n"
        "from source_tree_lock import *\n"
        "print(*globals())"
    )
    listed, starred = (set(each.split()) for each in said.splitlines())
    expected = """
        SourceTreeLock source_tree_lock Holder Wait LockTimeout LockUnavailable SourceTreeLockError
        LockOptions AnyPath Digest cache_digest
    """
    public = set(source_tree_lock.__all__)
    assert set(expected.split()) <= public
    assert public <= listed & starred
    assert source_tree_lock.source_tree_lock is SourceTreeLock
    with pytest.raises(AttributeError):
        source_tree_lock.nonsense  # noqa: B018
    for name in public:
        assert inspect.getdoc(getattr(source_tree_lock, name)) or name in ("AnyPath", "Digest")


def test_the_version_is_public() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", source_tree_lock.__version__)
