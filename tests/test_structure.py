"""The structure of the library: imports run downwards, and an import costs little."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib.util import resolve_name
from pathlib import Path

import pytest
from bare import SOURCE, in_a_bare_interpreter

import source_tree_lock
from source_tree_lock import SourceTreeLock, adapters

PACKAGE = "source_tree_lock"

#: Each part may import itself and those before it, and nothing else of the library.
LOWEST_FIRST: Sequence[str] = """
    _system
    errors  _kernel_lock  _digest  _paths  _record  _holder  _hold  _proc
    _handover  _queue  _deadlocks  _wait
    _acquire  _decorator  _lock
    __init__  adapters  build_meta  _command  plugins  __main__
""".split()

MODULES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path
    for path in SOURCE.rglob("*.py")
}


def part_of(name: str) -> str:
    return name.split(".")[1]


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements but those that only a type checker sees."""
    yield node
    is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if is_for_types else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from statements(child)


def imported(name: str, source: str) -> set[str]:
    """The modules of the library that `name`, which has this source, imports when it runs."""
    found: set[str] = set()
    for node in statements(ast.parse(source)):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        prefix = ""
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            prefix = resolve_name(module, name.rpartition(".")[0]) + "."
        for alias in node.names:  # a module, a package, or a name in one of them
            each = prefix + alias.name
            parent = each.rpartition(".")[0]
            places = (each, f"{each}.__init__", f"{parent}.__init__", parent)
            found.update(list(filter(MODULES.__contains__, places))[:1])
    return found - {name}


IMPORTS = {name: imported(name, path.read_text("utf-8")) for name, path in MODULES.items()}


def test_imports_run_downwards_and_in_no_circle() -> None:
    assert {part_of(name) for name in MODULES} == set(LOWEST_FIRST)
    for name, imports in IMPORTS.items():
        below = LOWEST_FIRST[: LOWEST_FIRST.index(part_of(name)) + 1]
        assert {part_of(each) for each in imports} <= set(below), name
    expected = {f"{PACKAGE}.{each}" for each in ("__init__", "_lock")}
    assert expected <= IMPORTS[f"{PACKAGE}.adapters.hooks"], "imports are not found"
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


def test_only_one_package_asks_which_system_this_is() -> None:
    names = r"[^{](sys\.platform|os\.name|platform\.system)\b"  # not in a message
    asks = re.compile(names + "|from (sys|os|platform) import")
    asking = [name for name, path in MODULES.items() if asks.search(path.read_text("utf-8"))]
    assert {part_of(name) for name in asking} == {"_system"}, asking


def test_the_words_of_the_second_version_are_gone() -> None:
    words = re.compile(r"\b(room|house|face|story|line|teller|whoever|whom)s?\b", re.IGNORECASE)
    found = {name: words.findall(path.read_text("utf-8")) for name, path in MODULES.items()}
    assert {name: each for name, each in found.items() if each} == {}


# What an import costs


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
    plugins = f"{PACKAGE}.plugins"
    said = in_a_bare_interpreter(f"import {plugins}.{plugin}\nprint(*sys.modules)")
    ours = {name for name in said.split() if name.partition(".")[0] == PACKAGE}
    assert ours <= {PACKAGE, plugins, f"{plugins}._shared", f"{plugins}.{plugin}"}


def test_the_backend_imports_setuptools_only_when_it_is_asked_for_a_hook() -> None:
    said = in_a_bare_interpreter(
        "import source_tree_lock.build_meta as backend\n"
        "print('setuptools' in sys.modules)\n"
        "backend.build_wheel\n"
        "print('setuptools' in sys.modules)"
    )
    assert said.split() == ["False", "True"]


# What is public


def public_functions() -> Iterator[Callable[..., object]]:
    """Functions, methods and constructors that a program can name."""
    for module in (source_tree_lock, adapters):
        for name in module.__all__:
            value = getattr(module, name)
            is_class_of_ours = inspect.isclass(value) and value.__module__.startswith(PACKAGE)
            for each in vars(value).values() if is_class_of_ours else [value]:
                function = each.fget if isinstance(each, property) else each
                if inspect.isfunction(function) and function.__module__.startswith(PACKAGE):
                    yield function


def test_the_types_of_every_public_function_can_be_asked_for() -> None:
    for function in public_functions():
        names = [each for each in inspect.signature(function).parameters if each != "self"]
        assert typing.get_type_hints(function).keys() == {*names, "return"}, function


def test_the_options_are_those_of_the_constructor() -> None:
    hints = typing.get_type_hints(source_tree_lock.LockOptions)
    parameters = inspect.signature(SourceTreeLock).parameters
    expected = typing.get_type_hints(SourceTreeLock.__init__)
    options = [name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY]
    assert list(hints.items()) == [(name, expected[name]) for name in options]
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
    assert set(expected.split()) <= public <= listed & starred
    assert source_tree_lock.source_tree_lock is SourceTreeLock
    assert re.fullmatch(r"\d+\.\d+\.\d+", source_tree_lock.__version__)
    with pytest.raises(AttributeError):
        source_tree_lock.nonsense  # noqa: B018
    for name in public - {"AnyPath", "Digest"}:
        assert inspect.getdoc(getattr(source_tree_lock, name)), name
