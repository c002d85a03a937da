"""tox, tox-uv, PDM and Poetry with the plugins, on projects that know nothing of the lock."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support import LIMIT, held_elsewhere, wait_until

from source_tree_lock import source_tree_lock

from .frontends import (
    Frontend,
    installed,
    is_awaited,
    lock_file_of,
    make_checkout,
    make_frontend,
    output_of,
    seconds_after_ctrl_c,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="asks the kernel who waits"),
]
#: How each of them is told to leave its plugin off.
OFF = {"tox": "0", "tox-uv": "False", "pdm": "no", "poetry": "OFF"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


def with_own_backend(tree: Path, module: str) -> None:
    """Give a checkout an in-tree backend."""
    (tree / "own_backend.py").write_text(module)
    project = tree / "pyproject.toml"
    text = project.read_text().replace("setuptools.build_meta", "own_backend")
    own = '["setuptools", "source-tree-lock"]\nbackend-path = ["."]'
    project.write_text(text.replace('["setuptools"]', own))


def wait_and_build(start: Callable[[], subprocess.Popen[str]], tree: Path) -> None:
    """It waits while another process holds the tree, and then builds it."""
    with held_elsewhere(tree) as holder:
        process = start()
        wait_until(lambda: is_awaited(tree))
        assert not list(tree.glob("**/*.egg-info"))
        holder.say()
        output_of(process)


@pytest.mark.parametrize(
    ("at_once", "module"),
    [(5, None), (3, "from source_tree_lock.build_meta import *")],
    ids=["setuptools", "our backend in the tree"],
)
def test_builds_at_once_install_what_one_alone_installs(
    frontend: Frontend, tmp_path: Path, at_once: int, module: str | None
) -> None:
    """In the second case the plugin holds the tree, and the backend takes a lock inside."""
    alone, tree = make_checkout(tmp_path / "alone"), make_checkout(tmp_path / "together")
    if module is not None:
        with_own_backend(alone, module)
        with_own_backend(tree, module)
    output_of(frontend.start(alone, tmp_path / "into"))
    expected = installed(tmp_path / "into")
    assert len(expected) > 30
    into = [tmp_path / f"into-{number}" for number in range(at_once)]
    with source_tree_lock(tree):
        processes = [frontend.start(tree, each) for each in into]
        wait_until(lambda: is_awaited(tree, at_once))
    for process, each in zip(processes, into, strict=True):
        output_of(process)
        assert installed(each) == expected


def test_it_says_what_it_waits_for_and_when_the_wait_is_over(
    frontend: Frontend, checkout: Path, tmp_path: Path
) -> None:
    with held_elsewhere(checkout) as holder:
        process = frontend.start(checkout, tmp_path / "into")
        assert process.stdout is not None
        said = next((line for line in process.stdout if "waiting" in line), "")
        assert f"(pid {holder.pid})" in said
        assert not list(checkout.glob("**/*.egg-info"))
        holder.say()
        said = output_of(process)
    assert re.search(rf"acquired .*{checkout.name} after", said), said


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["the frontend", "the whole terminal"])
def test_ctrl_c_ends_the_wait_and_leaves_the_holder_alone(
    frontend: Frontend, checkout: Path, tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    took = seconds_after_ctrl_c(lambda: frontend.start(checkout, tmp_path / "into"), checkout, send)
    print(f"{frontend.name}: gone {took:.2f} s after Ctrl-C")  # 0.3 s where nothing else runs


def test_the_variables_of_the_environment_count(
    frontend: Frontend, checkout: Path, tmp_path: Path
) -> None:
    def start(into: str, **environ: str) -> subprocess.Popen[str]:
        return frontend.start(checkout, tmp_path / into, environ=environ)

    with held_elsewhere(checkout) as holder:
        process = start("in time", SOURCE_TREE_LOCK_TIMEOUT="0.3")
        output, _ = process.communicate(timeout=LIMIT)
        assert process.returncode != 0
        assert f"(pid {holder.pid})" in output, output
        assert not list(checkout.glob("**/*.egg-info"))
        output_of(start("off", SOURCE_TREE_LOCK_PLUGINS=OFF[frontend.name]))
    assert installed(tmp_path / "off")
    lock_file_of(checkout).unlink()
    output_of(start("elsewhere", SOURCE_TREE_LOCK_DIR=str(tmp_path / "locks")))
    assert (tmp_path / "locks" / lock_file_of(checkout).name).exists()
    assert not lock_file_of(checkout).exists()


def test_an_in_tree_backend_is_locked_for_the_time_of_each_hook(
    frontend: Frontend, checkout: Path, tmp_path: Path
) -> None:
    """tox keeps such a backend running while the environment's own commands run."""
    with_own_backend(checkout, "from setuptools.build_meta import *")
    (checkout / "tox.ini").write_text(
        "[testenv]\npackage = wheel\nallowlist_externals = flock\n"
        f"commands = flock --nonblock {lock_file_of(checkout)} true\n"
    )
    wait_and_build(lambda: frontend.start(checkout, tmp_path / "into"), checkout)
    assert installed(tmp_path / "into")


def test_another_backend_waits_for_nobody(
    frontend: Frontend, checkout: Path, tmp_path: Path
) -> None:
    (checkout / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n'
        '[project]\nname = "sample"\nversion = "1.0"\ndescription = "a sample"\n'
    )
    with held_elsewhere(checkout):
        output_of(frontend.start(checkout, tmp_path / "into"))
    assert installed(tmp_path / "into")


# What a plugin is before anything is built

BUILDS_NOTHING = {"tox": "config -k env_name", "pdm": "config check_update", "poetry": "about"}
#: What the plugin replaces.
REPLACED = {
    "tox": "tox.tox_env.python.virtual_env.package.pyproject LocalSubProcessPep517Executor",
    "pdm": "pdm.builders.base:EnvBuilder subprocess_runner",
    "poetry": "build:ProjectBuilder from_isolated_env",
}
WITHOUT = """
import pkgutil, runpy, sys
_, place, name, *sys.argv = sys.argv
delattr(pkgutil.resolve_name(place), name)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_frontend_that_builds_nothing_imports_the_plugin_and_no_more_of_ours(
    frontend: Frontend, checkout: Path
) -> None:
    name = frontend.name.removesuffix("-uv")
    command = [str(frontend.python), "-v", "-m", name, *BUILDS_NOTHING[name].split()]
    output = output_of(frontend.start(checkout, checkout, command=command))
    plugins = "source_tree_lock.plugins"
    expected = {"source_tree_lock", plugins, f"{plugins}._shared", f"{plugins}.{name}"}
    assert set(re.findall(r"^import '(source_tree_lock\S*)' #", output, re.MULTILINE)) == expected


def test_where_the_name_is_gone_it_says_so_and_the_frontend_goes_on(
    frontend: Frontend, checkout: Path
) -> None:
    name = frontend.name.removesuffix("-uv")
    options = ["-c", WITHOUT, *REPLACED[name].split(), name, *BUILDS_NOTHING[name].split()]
    command = [str(frontend.python), *options]
    output = output_of(frontend.start(checkout, checkout, command=command))
    said = rf"(?m)^source-tree-lock [\w.]+: builds are not locked, because {name} [\w.]+ has no "
    assert re.search(said, output), output


# tox alone


@pytest.fixture(scope="session")
def tox(environments: Path, wheels: Path, index: str) -> Frontend:
    return make_frontend("tox", environments, wheels, index)


#: A Python that has neither tox nor the library.
BARE = Path(sys.base_prefix, "bin", f"python3.{sys.version_info[1]}")


@pytest.mark.skipif(not BARE.exists(), reason="needs the Python that this environment is of")
@pytest.mark.parametrize("variable", ["PYTHONPATH", "PYTHONUSERBASE"])
def test_tox_locks_wherever_python_found_the_library(
    tox: Frontend, checkout: Path, tmp_path: Path, variable: str
) -> None:
    """Spack, EasyBuild and wrapped programs find tox and its plugins so."""
    place = tox.python.parents[1]
    if variable == "PYTHONPATH":
        [place] = place.glob("lib/python*/site-packages")
    into, environ = tmp_path / "into", {variable: str(place)}
    command = [str(BARE), *tox.command(checkout, into)[1:]]
    start = partial(tox.start, checkout, into, command=command, environ=environ)
    wait_and_build(start, checkout)


def test_where_the_library_cannot_be_started_tox_says_that_nothing_is_locked(
    tox: Frontend, checkout: Path, tmp_path: Path
) -> None:
    """A frozen tox, say, whose `sys.executable` is tox itself."""
    code = (
        "import runpy, sys\nsys.executable, sys.argv = '/bin/true', sys.argv[1:]\n"
        "runpy.run_module('tox', run_name='__main__', alter_sys=True)\n"
    )
    # What tox makes its environments with is named, as it would look for it in vain.
    options = ["--discover", str(tox.python)]
    command = [str(tox.python), "-c", code, "tox", *tox.command(checkout, tmp_path)[3:], *options]
    with held_elsewhere(checkout):
        output = output_of(tox.start(checkout, tmp_path, command=command))
    assert "builds are not locked, because /bin/true cannot start source-tree-lock" in output


@pytest.mark.parametrize("package", ["editable-legacy", "skip\ndeps = ."])
def test_what_toxs_own_pip_builds_is_locked_by_its_install_command(
    tox: Frontend, checkout: Path, tmp_path: Path, package: str
) -> None:
    """The plugin does not lock it; this is what the README says to write."""
    pip = "python -I -m pip install {opts} {packages}"
    (checkout / "tox.ini").write_text(
        f"[testenv]\npackage = {package}\nallowlist_externals = source-tree-lock\n"
        f"install_command = source-tree-lock run {{tox_root}} -- {pip}\n"
        "commands = python -c pass\n"
    )
    wait_and_build(lambda: tox.start(checkout, tmp_path / "into"), checkout)
