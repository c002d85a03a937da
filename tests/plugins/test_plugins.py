"""tox, tox-uv, PDM and Poetry with the plugins, on projects that know nothing of the lock."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
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
    seconds_after_ctrl_c,
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not os.path.exists("/proc/locks"), reason="asks the kernel who waits for a lock"
    ),
]
AT_ONCE = 5


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


def output_of(process: subprocess.Popen[str]) -> str:
    """What it says, once it has ended well."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()  # does nothing to one that has ended
    assert process.returncode == 0, output
    return output


@dataclass
class Tally:
    """What became of some installations."""

    failed: int = 0
    wrong: int = 0
    right: int = 0


def five_at_once(frontend: Frontend, directory: Path, rounds: int, *, locked: bool = True) -> Tally:
    """Five installations of one checkout at once, compared with one that had it for itself."""
    output_of(frontend.start(make_checkout(directory / "alone"), directory / "into"))
    expected = installed(directory / "into")
    assert len(expected) > 30
    tally = Tally()
    for round_ in range(rounds):
        tree = make_checkout(directory / f"checkout-{round_}")
        before = {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()}
        into = [directory / f"into-{round_}-{number}" for number in range(AT_ONCE)]
        commands = [frontend.command(tree, each) for each in into]
        with source_tree_lock(tree):
            processes = [
                frontend.start(tree, each, command=command, off=not locked)
                for each, command in zip(into, commands, strict=True)
            ]
            if locked:
                wait_until(lambda tree=tree: is_awaited(tree, AT_ONCE))  # type: ignore[misc]
        for process, each in zip(processes, into, strict=True):
            process.communicate(timeout=LIMIT)
            if process.returncode:
                tally.failed += 1
            elif installed(each) != expected:
                tally.wrong += 1
            else:
                tally.right += 1
        assert {file: file.read_bytes() for file in before} == before
    return tally


def test_five_at_once_install_what_one_alone_installs(
    frontend: Frontend, tmp_path: Path, long_run: bool
) -> None:
    rounds = 4 if long_run else 1
    tally = five_at_once(frontend, tmp_path / "locked", rounds)
    print(f"{frontend.name}, with the plugin: {tally}")
    if long_run:
        without = five_at_once(frontend, tmp_path / "not locked", rounds, locked=False)
        print(f"{frontend.name}, without it: {without}")
    assert tally == Tally(right=rounds * AT_ONCE)


def test_it_says_whom_it_waits_for(frontend: Frontend, checkout: Path, tmp_path: Path) -> None:
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
        output_of(process)


@pytest.mark.parametrize("to", ["the frontend", "all of the terminal"])
def test_ctrl_c_ends_the_wait_and_leaves_the_holder_alone(
    frontend: Frontend, checkout: Path, tmp_path: Path, to: str
) -> None:
    send = os.kill if to == "the frontend" else os.killpg
    took = seconds_after_ctrl_c(lambda: frontend.start(checkout, tmp_path / "into"), checkout, send)
    print(f"{frontend.name}: gone {took:.2f} s after Ctrl-C to {to}")
    # A frontend that does not hear it waits on. On a machine with nothing else to do it is 0.3 s.
    assert took < 10


def test_the_timeout_of_the_environment_ends_the_wait(
    frontend: Frontend, checkout: Path, tmp_path: Path
) -> None:
    with held_elsewhere(checkout) as holder:
        process = frontend.start(
            checkout, tmp_path / "into", environ={"SOURCE_TREE_LOCK_TIMEOUT": "0.3"}
        )
        output, _ = process.communicate(timeout=LIMIT)
        assert process.returncode != 0
        assert f"(pid {holder.pid})" in output, output
    assert not list(checkout.glob("**/*.egg-info"))


def test_the_lock_directory_of_the_environment_is_used(
    frontend: Frontend, checkout: Path, tmp_path: Path, temp_dir: Path
) -> None:
    locks = tmp_path / "locks"
    output_of(
        frontend.start(checkout, tmp_path / "into", environ={"SOURCE_TREE_LOCK_DIR": str(locks)})
    )
    assert (locks / lock_file_of(checkout).name).exists()
    assert not lock_file_of(checkout).exists()


def test_one_variable_turns_it_off(frontend: Frontend, checkout: Path, tmp_path: Path) -> None:
    with held_elsewhere(checkout):
        output_of(frontend.start(checkout, tmp_path / "into", off=True))
    assert installed(tmp_path / "into")


IN_TREE = """
import pathlib
from setuptools.build_meta import *
pathlib.Path("seen").write_text("")
"""


def test_an_in_tree_backend_is_locked_for_the_time_of_each_hook(
    frontend: Frontend, checkout: Path, tmp_path: Path
) -> None:
    """tox keeps such a backend running while the environment's own commands run."""
    (checkout / "backend").mkdir()
    (checkout / "backend" / "own_backend.py").write_text(IN_TREE)
    project = checkout / "pyproject.toml"
    project.write_text(
        project.read_text().replace(
            '"setuptools.build_meta"', '"own_backend"\nbackend-path = ["backend"]'
        )
    )
    lock_file = lock_file_of(checkout)
    (checkout / "tox.ini").write_text(
        "[testenv]\npackage = wheel\nallowlist_externals = flock\n"
        f"commands = flock --nonblock {lock_file} true\n"
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


RECORDER = """
import atexit, json, os, runpy, sys
def record():
    ours = ("source_tree_lock", "portalocker")
    names = [name for name in sys.modules if name.partition(".")[0] in ours]
    print("MODULES", json.dumps(names))
atexit.register(record)
sys.argv[0] = sys.argv[1]; del sys.argv[1]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
BUILDS_NOTHING = {
    "tox": ["tox", "config", "-k", "env_name"],
    "tox-uv": ["tox", "config", "-k", "env_name"],
    "pdm": ["pdm", "config", "check_update"],
    "poetry": ["poetry", "about"],
}


def test_a_frontend_that_builds_nothing_imports_the_plugin_and_no_more_of_ours(
    frontend: Frontend, checkout: Path
) -> None:
    plugin = f"source_tree_lock.plugins.{frontend.name.removesuffix('-uv')}"
    command = [str(frontend.python), "-c", RECORDER, *BUILDS_NOTHING[frontend.name]]
    output = output_of(frontend.start(checkout, checkout, command=command))
    [line] = [line for line in output.splitlines() if line.startswith("MODULES ")]
    found = set(json.loads(line.removeprefix("MODULES ")))
    package = "source_tree_lock"
    assert found == {package, f"{package}.plugins", f"{package}.plugins._shared", plugin}


GONE = {
    "tox": (
        "from tox.tox_env.python.virtual_env.package import pyproject as there\n"
        "del there.LocalSubProcessPep517Executor\n"
    ),
    "pdm": "from pdm.builders.base import EnvBuilder as there\ndel there.subprocess_runner\n",
    "poetry": "from build import ProjectBuilder as there\ndel there.from_isolated_env\n",
}


def test_where_the_name_is_gone_it_says_so_and_the_frontend_goes_on(
    frontend: Frontend, checkout: Path
) -> None:
    name = frontend.name.removesuffix("-uv")
    command = [str(frontend.python), "-c", GONE[name] + RECORDER, *BUILDS_NOTHING[frontend.name]]
    output = output_of(frontend.start(checkout, checkout, command=command))
    said = rf"^source-tree-lock [\w.]+: builds are not locked, because {name} [\w.]+ has no "
    assert re.search(said, output, re.MULTILINE), output
