"""tox, tox-uv, PDM and Poetry from PyPI, each with this distribution, and nothing else, beside it.

They build offline: what a build needs is downloaded once, and Poetry is served it on loopback.
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
from types import MappingProxyType

from projects import make_project
from support import LIMIT, held_elsewhere, is_free, wait_until, waiters

from source_tree_lock import source_tree_lock

ROOT = Path(__file__).parents[2]
#: What pip installs for each frontend. PDM's own pins: its ranges admit versions that do not fit.
REQUIREMENTS = {
    "tox": ("tox",),
    "tox-uv": ("tox-uv",),
    "pdm": ("pdm[locked]>=2.29",),
    "poetry": ("poetry>=2",),
}
#: What builds need: pex asks for this wheel, and Poetry for all that our backend needs anywhere.
BUILD_REQUIREMENTS = ("setuptools", "flit_core", "wheel==0.37.1", "typing_extensions", "tomli")
#: How long a package index may take, in seconds.
DOWNLOAD_LIMIT = 300
#: What PDM finds in the environment that it is to install into.
MAKES_WHEELS = ("setuptools", "flit_core", "source-tree-lock")
STARTED: list[subprocess.Popen[str]] = []


def pip(python: Path | str, *arguments: object) -> None:
    """Run pip, and show what it says when it fails."""
    done = subprocess.run(
        [str(python), *"-m pip --disable-pip-version-check -q".split(), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DOWNLOAD_LIMIT,
    )
    if done.returncode:
        raise RuntimeError(f"pip failed:\n{done.stdout}")


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
    options = ("--no-deps", "--no-build-isolation", "-w", directory / "own")
    pip(sys.executable, "wheel", *options, ROOT)
    shutil.copytree(directory / "own", directory, dirs_exist_ok=True)
    return directory


@contextmanager
def served(wheels: Path) -> Iterator[str]:
    """The address of a package index on loopback that has these wheels."""
    index = wheels / "simple"
    for wheel in wheels.glob("*.whl"):
        project = index / wheel.name.partition("-")[0].replace("_", "-").lower()
        project.mkdir(parents=True, exist_ok=True)
        (project / wheel.name).write_bytes(wheel.read_bytes())
        links = "".join(f'<a href="{each.name}">{each.name}</a>' for each in project.glob("*.whl"))
        (project / "index.html").write_text(links)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    handler = functools.partial(Quiet, directory=str(wheels))
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
        """What keeps it offline and away from the caches and settings of whoever runs it."""
        home = directory / "home"
        # In an active environment PDM and Poetry make none: they install there.
        inherited = {
            name: os.environ[name] for name in {*os.environ} - {"VIRTUAL_ENV", "CONDA_PREFIX"}
        }
        return {
            **inherited,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            **{name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")},
            **dict.fromkeys(("PIP_NO_INDEX", "UV_NO_INDEX", "UV_OFFLINE"), "1"),
            **dict.fromkeys(("PIP_FIND_LINKS", "UV_FIND_LINKS"), str(self.wheels)),
            "PDM_CHECK_UPDATE": "0",
            "PDM_NON_INTERACTIVE": "1",
            "POETRY_VIRTUALENVS_IN_PROJECT": "true",
            "NO_COLOR": "1",
        }

    def command(self, tree: Path, directory: Path) -> list[str]:
        """What installs the project of `tree` in an environment below `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.name.startswith("tox"):
            options = ("run", "-c", tree / "tox.ini", "--workdir", directory / "tox", "-e", "py")
            return [str(self.python), "-m", "tox", *map(str, options)]
        consumer = directory / "consumer"
        consumer.mkdir(exist_ok=True)
        text = (
            '[project]\nname = "consumer"\nversion = "1"\nrequires-python = ">=3.10"\n'
            f'dependencies = ["sample @ {tree.as_uri()}"]\n'
        )
        if self.name == "pdm":
            text += "[tool.pdm]\ndistribution = false\n"
            self._uv("venv", "-q", "--python", sys.executable, consumer / ".venv")
            into = ("--python", consumer / ".venv", "--no-index", "--find-links", self.wheels)
            self._uv("pip", "install", "-q", *into, *MAKES_WHEELS)
            action = "install --no-isolation -p".split()
        else:
            text += '[tool.poetry]\npackage-mode = false\n[[tool.poetry.source]]\nname = "here"\n'
            text += f'url = "{self.index}"\npriority = "primary"\n'
            action = "install -n -P".split()
        (consumer / "pyproject.toml").write_text(text)
        return [str(self.python), "-m", self.name, *action, str(consumer)]

    def start(
        self,
        tree: Path,
        directory: Path,
        *,
        command: list[str] | None = None,
        cwd: Path | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen[str]:
        """Start it, in a process group of its own, which `end_all` ends."""
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

    @staticmethod
    def _uv(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "uv", *map(str, arguments)], check=True)


@functools.cache
def make_frontend(name: str, directory: Path, wheels: Path, index: str) -> Frontend:
    """A frontend in an environment below this directory, with this distribution as it is now."""
    python = make_environment(directory / name, *REQUIREMENTS[name])
    install_this(python, wheels)
    return Frontend(name, python, wheels, index)


def end_all() -> None:
    """End what a test has started and not waited for, with all of its children."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def output_of(process: subprocess.Popen[str]) -> str:
    """What it says, once it has ended well."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()  # does nothing to one that has ended
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
