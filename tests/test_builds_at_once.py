"""Many builds of one source tree at once, by real tools: none fails, and every archive is right."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from projects import Content, archives, content, make_project
from support import finish, long_after, start, wait_until, waiters

import source_tree_lock as library
from source_tree_lock import source_tree_lock

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not os.path.exists("/proc/locks"), reason="asks the kernel who waits for a lock"
    ),
]

EXAMPLES = Path(__file__).with_name("examples")
FRONTENDS = [f"frontends.py {each}" for each in ("build", "pyproject_hooks", "pyproject_api")]
PYTHON = [sys.executable, "-m"]
OURS = "source_tree_lock.build_meta"
UV = "uv build -q --wheel --no-build-isolation --offline --no-config --no-cache --python"
#: Each is followed by the directory for the wheel, and the tree.
TOOLS = [
    [*PYTHON, *"pip wheel -q --no-build-isolation --no-deps -w".split()],
    [*PYTHON, *"build -n --wheel -o".split()],
    [*PYTHON, *UV.split(), sys.executable, "-o"],
]
SDIST = """
import sys
from build import ProjectBuilder
from source_tree_lock.adapters import locked_runner
ProjectBuilder(sys.argv[1], runner=locked_runner()).build("sdist", sys.argv[2])
"""
Command = list[object]


def alone(tree: Path, backend: str, tmp_path: Path) -> dict[str, Content]:
    """What a wheel and an sdist of the project in `tree` have to hold, by suffix."""
    other, out = tmp_path / "alone" / "tree", tmp_path / "alone" / "out"
    for each in tree, other:
        make_project(each, backend)
        (each / "setup.py").write_text("import setuptools\nsetuptools.setup()\n")
    finish(start(*PYTHON, *"build -n --wheel --sdist -o".split(), out, other))
    return {archive.suffix: content(archive) for archive in archives(out)}


def run_at_once(tree: Path, commands: list[Command], **environ: str) -> None:
    """Let them all go when the last of them has come to wait for the tree."""
    with source_tree_lock(tree) as lock:
        processes = [start(*command, cwd=tree, **environ) for command in commands]
        wait_until(lambda: len(waiters(lock.lock_file)) == len(commands))
    finish(*processes)


@pytest.mark.long
@pytest.mark.parametrize("script", [*FRONTENDS, "build_script.py"])
def test_each_example_waits_for_the_tree_and_builds_right_archives(
    tree: Path, tmp_path: Path, script: str
) -> None:
    """Of locked_runner (every second one makes an sdist), locked_hooks, and the decorator."""
    expected = alone(tree, "setuptools.build_meta", tmp_path)
    outs = [tmp_path / str(number) for number in range(10)]
    name, *kind = script.split()
    command = [sys.executable, EXAMPLES / name, *kind]
    commands: list[Command] = [[*command, tree, out] for out in outs]
    if script == "frontends.py build":
        commands[::2] = [[sys.executable, "-c", SDIST, tree, out] for out in outs[::2]]
    run_at_once(tree, commands)
    for out in outs:
        [archive] = archives(out)
        assert content(archive) == expected[archive.suffix]


@pytest.mark.parametrize("times", long_after(1, [1, 5]))
def test_pip_build_and_uv_build_right_wheels_of_a_project_with_our_backend(
    tree: Path, tmp_path: Path, times: int
) -> None:
    expected = alone(tree, OURS, tmp_path)
    tools = TOOLS * times
    outs = [tmp_path / str(number) for number in range(len(tools))]
    run_at_once(tree, [[*tool, out, tree] for tool, out in zip(tools, outs, strict=True)])
    for out in outs:
        [wheel] = archives(out)
        assert content(wheel) == expected[".whl"]


# Whole tools


def packages_of_this_environment() -> str:
    """What PYTHONPATH has to be for an environment that installs nothing."""
    found = [path for path in sys.path if path.endswith("-packages")]
    return os.pathsep.join([str(Path(library.__file__).parents[1]), *found])


TOX = """
[testenv]
package = {package}
commands = python -c "from sample import module_03; assert module_03.function_2() == 6"
[testenv:.pkg]
set_env = PYTHONPATH = {path}
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("package", "backend"),
    [("wheel", OURS), ("editable", OURS), ("wheel", "setuptools.build_meta")],
)
def test_two_tox_runs_at_once_pass(tree: Path, tmp_path: Path, package: str, backend: str) -> None:
    """With setuptools' own backend, it is the plugin that locks."""
    if backend != OURS and not entry_points(group="tox", name="source-tree-lock"):
        pytest.skip("tox finds plugins of installed distributions only")
    make_project(tree, backend)
    pyproject = tree / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('["setuptools"]', "[]"))
    (tree / "tox.ini").write_text(TOX.format(package=package, path=packages_of_this_environment()))
    tox = [*PYTHON, *"tox run -e py --workdir".split()]
    run_at_once(tree, [[*tox, tmp_path / "one"], [*tox, tmp_path / "two"]], PIP_NO_INDEX="1")
