"""The structure of the library: imports run downwards, and an import costs little."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import inspect
import re
import typing
from pathlib import Path

import pytest
from bare import SOURCE, in_a_bare_interpreter

import source_tree_lock
from source_tree_lock import SourceTreeLock

PACKAGE = "source_tree_lock"
#: Each module may import those before it, and nothing else of the library; a package above the
#: core, those of itself too.
LOWEST_FIRST = """
    _hook_names
    _system.posix  _system.windows  _system
    _holder  errors  _kernel_lock  _digest  _paths  _record  _hold  _proc
    _handover  _queue  _deadlocks  _wait
    _acquire  _decorator  _lock
""".split()
LOWEST_FIRST += ["", "adapters", "build_meta", "_command", "plugins", "__main__"]


PATHS = {path: path.relative_to(SOURCE).with_suffix("").parts for path in SOURCE.rglob("*.py")}
MODULES = {".".join(each for each in PATHS[path] if each != "__init__"): path for path in PATHS}


def imported(name: str) -> set[str]:
    """The modules of the library that one of them imports when it runs."""
    path = MODULES[name]
    package = f"{PACKAGE}.{name}".rstrip(".")
    if path.name != "__init__.py":
        package = package.rpartition(".")[0]
    names: list[str] = []
    nodes: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    for node in nodes:  # which grows
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse  # only a type checker sees the rest
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(module, package)
            names += [f"{base}.{alias.name}" for alias in node.names]
    ours = [each[len(PACKAGE) + 1 :] for each in names if f"{each}.".startswith(f"{PACKAGE}.")]
    # What is imported from a module may be a module, or a name in it.
    return {each if each in MODULES else each.rpartition(".")[0] for each in ours} - {name}


def test_imports_run_downwards_and_in_no_circle() -> None:
    imports = {name: imported(name) for name in MODULES}
    assert imports["_lock"] >= {"_acquire", "_hold", "errors", "_decorator"}, "they are found"
    assert "adapters" not in imports["_lock"]

    def place(name: str) -> int:
        return LOWEST_FIRST.index(name if name in LOWEST_FIRST else name.partition(".")[0])

    for name, found in imports.items():
        upwards = {each for each in found if place(each) > place(name)}
        assert upwards == set(), name
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", [each for each in MODULES if not each.startswith("_system")])
def test_only_one_package_asks_which_system_this_is(name: str) -> None:
    asks = re.compile(r"(sys\.platform|os\.name|platform\.system)$|from (sys|os|platform) import")
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    texts = [each for each in ast.walk(tree) if isinstance(each, ast.JoinedStr)]
    named = {part for text in texts for part in ast.walk(text)}
    asked = [each for each in ast.walk(tree) if isinstance(each, (ast.Attribute, ast.ImportFrom))]
    assert [each for each in asked if each not in named and asks.match(ast.unparse(each))] == []


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
    said = in_a_bare_interpreter(f"import source_tree_lock.plugins.{plugin}\nprint(*sys.modules)")
    ours = {name for name in said.split() if name.partition(".")[0] == PACKAGE}
    plugins = f"{PACKAGE}.plugins"
    assert ours <= {PACKAGE, plugins, f"{plugins}._shared", f"{plugins}.{plugin}"}


# What is public


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
    assert re.fullmatch(r"\d+\.\d+\.\d+", source_tree_lock.__version__)
    for name in public:
        assert inspect.getdoc(getattr(source_tree_lock, name)) or name in ("AnyPath", "Digest")
