"""tox, tox-uv, PDM and Poetry from PyPI, each with this distribution, and nothing else, beside it.

They build offline: what a build needs is downloaded once, and served on loopback.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from projects import make_project
from support import LIMIT, held_elsewhere, is_free, wait_until, waiters

from source_tree_lock import source_tree_lock

#: What pip installs for each frontend. PDM's own pins: its ranges admit versions that do not fit.
REQUIREMENTS = {
    "tox": ("tox",),
    "tox-uv": ("tox-uv",),
    "pdm": ("pdm[locked]>=2.29",),
    "poetry": ("poetry>=2",),
}
#: What builds need: pex asks for this wheel, and Poetry for all that our backend needs anywhere.
BUILD_REQUIREMENTS = ("setuptools", "flit_core", "wheel==0.37.1", "typing_extensions", "tomli")
STARTED: list[subprocess.Popen[str]] = []


def pip(python: Path | str, *arguments: object) -> None:
    command = [python, *"-m pip --disable-pip-version-check -q".split(), *arguments]
    # A package index may take five minutes.
    subprocess.run(list(map(str, command)), check=True, timeout=300)


def make_environment(directory: Path, *requirements: str) -> Path:
    """A virtual environment with these packages, unless it is there; its Python."""
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = directory / "complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        pip(python, "install", *requirements)
        done.touch()
    return python


def install_this(python: Path, wheels: Path) -> None:
    """Install this distribution, as it is now."""
    [own] = (wheels / "own").glob("source_tree_lock-*.whl")
    pip(python, "install", "--force-reinstall", "--no-deps", own)
    pip(python, "install", own)  # what it depends on


def own_wheels(directory: Path) -> Path:
    """This directory, with a wheel of this distribution, alone in `own` too."""
    directory.mkdir(exist_ok=True)
    # What it needs on Windows alone: Poetry asks for it, and installs it nowhere.
    with zipfile.ZipFile(directory / "portalocker-99-py3-none-any.whl", "w") as wheel:
        metadata = "Metadata-Version: 2.1\nName: portalocker\nVersion: 99\n"
        wheel.writestr("portalocker-99.dist-info/METADATA", metadata)
    root, options = Path(__file__).parents[2], ("--no-deps", "--no-build-isolation")
    pip(sys.executable, "wheel", *options, "-w", directory / "own", root)
    shutil.copytree(directory / "own", directory, dirs_exist_ok=True)
    return directory


@contextmanager
def served(wheels: Path) -> Iterator[str]:
    """The address of a package index on loopback that has these wheels."""
    for wheel in wheels.glob("*.whl"):
        project = wheels / "simple" / wheel.name.partition("-")[0].replace("_", "-").lower()
        project.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, project)
        links = "".join(f'<a href="{each.name}">{each.name}</a>' for each in project.glob("*.whl"))
        (project / "index.html").write_text(links)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(wheels))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple/"
        server.shutdown()


@dataclass(frozen=True)
class Frontend:
    """One frontend that can install the project of a source tree somewhere."""

    name: str
    python: Path
    wheels: Path
    index: str

    def environ(self, directory: Path) -> dict[str, str]:
        """What keeps it offline and away from the caches and settings of the user."""
        environ = {
            **os.environ,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            **dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(directory / "home")),
            **dict.fromkeys(("PIP_NO_INDEX", "UV_NO_INDEX", "UV_OFFLINE"), "1"),
            **dict.fromkeys(("PIP_FIND_LINKS", "UV_FIND_LINKS"), str(self.wheels)),
            **dict.fromkeys(("PDM_NON_INTERACTIVE", "POETRY_VIRTUALENVS_IN_PROJECT"), "true"),
            "PDM_CHECK_UPDATE": "0",
            "NO_COLOR": "1",
        }
        # In an active environment PDM and Poetry make none: they install there.
        return {k: v for k, v in environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}

    def command(self, tree: Path, directory: Path) -> list[str]:
        """What installs the project of `tree` in an environment below `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.name.startswith("tox"):
            options = ["-c", f"{tree}/tox.ini", "--workdir", f"{directory}/tox", "-e", "py"]
            return [str(self.python), "-m", "tox", "run", *options]
        consumer = directory / "consumer"
        consumer.mkdir(exist_ok=True)
        tables = {
            "pdm": "[tool.pdm]\ndistribution = false\n[[tool.pdm.source]]\nname = 'pypi'",
            "poetry": "[tool.poetry]\npackage-mode = false\n[[tool.poetry.source]]\nname = 'here'",
        }
        (consumer / "pyproject.toml").write_text(
            "[project]\nname = 'consumer'\nversion = '1'\nrequires-python = '>=3.10'\n"
            f"dependencies = ['sample @ {tree.as_uri()}']\n"
            f"{tables[self.name]}\nurl = '{self.index}'\n"
        )
        options = ["-p"] if self.name == "pdm" else ["-n", "-P"]
        return [str(self.python), "-m", self.name, "install", *options, str(consumer)]

    def start(
        self,
        tree: Path,
        directory: Path,
        *,
        command: list[str] | None = None,
        cwd: Path | None = None,
        environ: Mapping[str, str] = {},
    ) -> subprocess.Popen[str]:
        """Start it, in a process group of its own, which ends with the test."""
        process = subprocess.Popen(
            command or self.command(tree, directory),
            cwd=cwd or directory,
            env={**self.environ(directory), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        STARTED.append(process)
        return process


@functools.cache
def make_frontend(name: str, directory: Path, wheels: Path, index: str) -> Frontend:
    """A frontend in an environment below this directory, with this distribution as it is now."""
    python = make_environment(directory / name, *REQUIREMENTS[name])
    install_this(python, wheels)
    return Frontend(name, python, wheels, index)


def output_of(process: subprocess.Popen[str]) -> str:
    """What it says, once it has ended well."""
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    return output


def installed(directory: Path) -> dict[str, str]:
    """The files of the package that are installed below a directory, by content."""
    found = {}
    for package in directory.glob("**/site-packages/sample*"):
        for file in package.rglob("*"):
            if file.suffix in (".py", ".txt") or file.name == "METADATA":
                name = str(file.relative_to(package.parent))
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def make_checkout(directory: Path, backend: str = "setuptools.build_meta") -> Path:
    """A project as its maintainer has it, who knows nothing of locks."""
    tree = make_project(directory, backend)
    (tree / "tox.ini").write_text("[testenv]\npackage = wheel\ncommands = python -c pass\n")
    return tree


def lock_file_of(tree: Path) -> Path:
    return Path(source_tree_lock(tree).lock_file)


def is_awaited(tree: Path, by: int = 1) -> bool:
    """Whether so many processes wait for a tree."""
    return lock_file_of(tree).exists() and len(waiters(lock_file_of(tree))) >= by


def seconds_after_ctrl_c(
    start: Callable[[], subprocess.Popen[str]],
    tree: Path,
    send: Callable[[int, int], None] = os.killpg,
) -> float:
    """How long what waits for `tree` lives on after Ctrl-C; the holder goes on undisturbed."""
    with held_elsewhere(tree) as holder:
        process = start()
        wait_until(lambda: is_awaited(tree))
        pressed = time.monotonic()
        send(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=LIMIT)
        took = time.monotonic() - pressed
        assert process.returncode != 0, output
        wait_until(lambda: not is_awaited(tree))
        assert not is_free(lock_file_of(tree))
        holder.say()
        holder.expect("released")
    assert not list(tree.glob("**/*.egg-info"))
    return took
