"""tox, tox-uv, PDM and Poetry with the plugins, on projects that know nothing of the lock."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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
    pytest.mark.skipif(
        not os.path.exists("/proc/locks"), reason="asks the kernel who waits for a lock"
    ),
]
#: How each of them is told to leave its plugin off.
OFF = {"tox": "0", "tox-uv": "False", "pdm": "no", "poetry": "OFF"}
#: What [build-system] says, besides setuptools' own, and a module that is put into the tree.
IN_TREE = 'requires = ["setuptools"]\nbuild-backend = "own_backend"\nbackend-path = ["backend"]'
OURS_IN_TREE = IN_TREE.replace('["setuptools"]', '["setuptools", "source-tree-lock"]')


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


def with_own_backend(tree: Path, table: str, module: str) -> Path:
    """Give a checkout an in-tree backend."""
    (tree / "backend").mkdir()
    (tree / "backend" / "own_backend.py").write_text(module)
    project = tree / "pyproject.toml"
    _, rest = project.read_text().split("[project]")
    project.write_text(f"[build-system]\n{table}\n[project]{rest}")
    return tree


@pytest.mark.parametrize(
    ("at_once", "module"),
    [(5, None), (3, "from source_tree_lock.build_meta import *")],
    ids=["setuptools", "our backend in the tree"],
)
def test_builds_at_once_install_what_one_alone_installs(
    frontend: Frontend, tmp_path: Path, long_run: bool, at_once: int, module: str | None
) -> None:
    """In the second case the plugin holds the tree, and the backend takes a lock inside."""

    def checkout(name: str) -> Path:
        tree = make_checkout(tmp_path / name)
        return tree if module is None else with_own_backend(tree, OURS_IN_TREE, module)

    output_of(frontend.start(checkout("alone"), tmp_path / "into"))
    expected = installed(tmp_path / "into")
    assert len(expected) > 30
    for round_ in range(4 if long_run else 1):
        tree = checkout(f"checkout-{round_}")
        before = {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()}
        into = [tmp_path / f"into-{round_}-{number}" for number in range(at_once)]
        commands = [frontend.command(tree, each) for each in into]
        with source_tree_lock(tree):
            processes = [
                frontend.start(tree, each, command=command)
                for each, command in zip(into, commands, strict=True)
            ]
            wait_until(lambda tree=tree: is_awaited(tree, at_once))  # type: ignore[misc]
        for process, each in zip(processes, into, strict=True):
            output_of(process)
            assert installed(each) == expected
        assert {file: file.read_bytes() for file in before} == before


def test_it_says_what_it_waits_for_and_when_the_wait_is_over(
    frontend: Frontend, checkout: Path, tmp_path: Path
) -> None:
    with held_elsewhere(checkout) as holder:
        process = frontend.start(checkout, tmp_path / "into")
        wait_until(lambda: is_awaited(checkout))
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "waiting" in line:
                break
        assert re.search(rf"waiting.*\(pid {holder.pid}\)", said), said
        assert not list(checkout.glob("**/*.egg-info"))
        holder.say()
        said = output_of(process)
    assert re.search(rf"acquired .*{checkout.name} after", said), said


@pytest.mark.parametrize("to", ["the frontend", "all of the terminal"])
def test_ctrl_c_ends_the_wait_and_leaves_the_holder_alone(
    frontend: Frontend, checkout: Path, tmp_path: Path, to: str
) -> None:
    send = os.kill if to == "the frontend" else os.killpg
    took = seconds_after_ctrl_c(lambda: frontend.start(checkout, tmp_path / "into"), checkout, send)
    print(f"{frontend.name}: gone {took:.2f} s after Ctrl-C to {to}")
    # A frontend that does not hear it waits on. On a machine with nothing else to do it is 0.3 s.
    assert took < 10


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
    module = "import pathlib\nfrom setuptools.build_meta import *\npathlib.Path('seen').touch()\n"
    with_own_backend(checkout, IN_TREE, module)
    (checkout / "tox.ini").write_text(
        "[testenv]\npackage = wheel\nallowlist_externals = flock\n"
        f"commands = flock --nonblock {lock_file_of(checkout)} true\n"
    )
    with held_elsewhere(checkout) as holder:
        process = frontend.start(checkout, tmp_path / "into")
        wait_until(lambda: is_awaited(checkout))
        assert not (checkout / "seen").exists()
        holder.say()
        output_of(process)
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

RECORDER = """
import atexit, json, os, runpy, sys
def record():
    names = [name for name in sys.modules if name.partition(".")[0] == "source_tree_lock"]
    print("MODULES", json.dumps(names))
atexit.register(record)
sys.argv[0] = sys.argv[1]; del sys.argv[1]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
BUILDS_NOTHING = {
    "tox": ["tox", "config", "-k", "env_name"],
    "pdm": ["pdm", "config", "check_update"],
    "poetry": ["poetry", "about"],
}
GONE = {
    "tox": (
        "from tox.tox_env.python.virtual_env.package import pyproject as there\n"
        "del there.LocalSubProcessPep517Executor\n"
    ),
    "pdm": "from pdm.builders.base import EnvBuilder as there\ndel there.subprocess_runner\n",
    "poetry": "from build import ProjectBuilder as there\ndel there.from_isolated_env\n",
}


def run_and_build_nothing(frontend: Frontend, directory: Path, before: str = "") -> str:
    command = BUILDS_NOTHING[frontend.name.removesuffix("-uv")]
    code = [str(frontend.python), "-c", before + RECORDER, *command]
    return output_of(frontend.start(directory, directory, command=code))


def test_a_frontend_that_builds_nothing_imports_the_plugin_and_no_more_of_ours(
    frontend: Frontend, checkout: Path
) -> None:
    output = run_and_build_nothing(frontend, checkout)
    [line] = [line for line in output.splitlines() if line.startswith("MODULES ")]
    found = set(json.loads(line.removeprefix("MODULES ")))
    package, plugin = "source_tree_lock", frontend.name.removesuffix("-uv")
    plugins = f"{package}.plugins"
    assert found == {package, plugins, f"{plugins}._shared", f"{plugins}.{plugin}"}


def test_where_the_name_is_gone_it_says_so_and_the_frontend_goes_on(
    frontend: Frontend, checkout: Path
) -> None:
    name = frontend.name.removesuffix("-uv")
    output = run_and_build_nothing(frontend, checkout, GONE[name])
    said = rf"^source-tree-lock [\w.]+: builds are not locked, because {name} [\w.]+ has no "
    assert re.search(said, output, re.MULTILINE), output


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
    environment = tox.python.parents[1]
    [site_packages] = environment.glob("lib/python*/site-packages")
    place = site_packages if variable == "PYTHONPATH" else environment
    command = [str(BARE), *tox.command(checkout, tmp_path / "into")[1:]]
    with held_elsewhere(checkout) as holder:
        process = tox.start(
            checkout, tmp_path / "into", command=command, environ={variable: str(place)}
        )
        wait_until(lambda: is_awaited(checkout))
        holder.say()
        output_of(process)
    assert installed(tmp_path / "into")


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
    with held_elsewhere(checkout) as holder:
        process = tox.start(checkout, tmp_path / "into")
        wait_until(lambda: is_awaited(checkout))
        holder.say()
        output_of(process)
