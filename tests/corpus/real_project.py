"""A real project in a git checkout, and builds of it in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from projects import Content, archives, content

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETUPTOOLS = "setuptools.build_meta"
OURS = "source_tree_lock.build_meta"
FROM = "from {} import build_meta"

#: No optimisation, no directories in the objects, and the same times in each archive and commit.
_ENVIRON = {
    **os.environ,
    "CFLAGS": "-O0 -g0",
    "SOURCE_DATE_EPOCH": "1700000000",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}
#: Arguments: tree, backend, hook, the directory for the archive, and the path of the backend.
_HOOK = """
import sys
from pyproject_hooks import BuildBackendHookCaller, default_subprocess_runner
tree, backend, hook, out, *path = sys.argv[1:]
hooks = BuildBackendHookCaller(tree, backend, path or None, default_subprocess_runner)
getattr(hooks, hook)(out)
"""
_COMPILED = re.compile(r"^\S*(?:cc|g\+\+)\b.* -c ", re.MULTILINE)


class Built(NamedTuple):
    """An archive, and how many files were compiled for it."""

    name: str
    content: Content
    compiled: int


class RealProject:
    """The tree of an sdist, as a commit of its own that has the version as its tag."""

    def __init__(self, sdist: Path, tree: Path, version: str) -> None:
        self.tree = tree
        self._sdist = sdist
        self._version = version
        self._out = tree.with_name(f"{tree.name} out")

    def start_over(self, backend: str = OURS) -> None:
        """Unpack it anew, and have it built by this backend from now on."""
        shutil.rmtree(self.tree, ignore_errors=True)
        unpacked = self.tree.with_name(f"{self.tree.name} unpacked")
        with tarfile.open(self._sdist) as archive:
            archive.extractall(unpacked, filter="data")  # as files of our own
        [top] = unpacked.iterdir()
        top.rename(self.tree)
        for path in [*self.tree.glob("*.egg-info"), *self.tree.glob("*/*.egg-info")]:
            shutil.rmtree(path)
        # The author of an in-tree backend writes the one name in place of the other.
        package = backend.rpartition(".")[0]
        for directory in self._build_system().get("backend-path", []):
            for path in (self.tree / directory).rglob("*.py"):
                text = path.read_text().replace(SETUPTOOLS, backend)
                path.write_text(text.replace(FROM.format("setuptools"), FROM.format(package)))
        # What an sdist adds would have a version tool believe it instead of git.
        (self.tree / "PKG-INFO").unlink(missing_ok=True)
        self.git("init", "-q")
        self.git("add", "-A", "-f")
        self.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "all")
        self.git("tag", self._version)

    def _build_system(self) -> dict[str, Any]:
        path = self.tree / "pyproject.toml"
        return dict(
            tomllib.loads(path.read_text() if path.exists() else "").get("build-system", {})
        )

    def git(self, *arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.check_output(command, cwd=self.tree, env=_ENVIRON, text=True)

    def start(self, backend: str = OURS, hook: str = "build_wheel") -> subprocess.Popen[str]:
        """A build in a process group of its own."""
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        system = self._build_system()
        name = system.get("build-backend", f"{SETUPTOOLS}:__legacy__").replace(SETUPTOOLS, backend)
        arguments = [str(self.tree), name, hook, str(self._out), *system.get("backend-path", [])]
        return subprocess.Popen(
            [sys.executable, "-c", _HOOK, *arguments],
            env=_ENVIRON,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def build(self, backend: str = OURS, hook: str = "build_wheel") -> Built:
        """What a build gives that has to succeed."""
        process = self.start(backend, hook)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-4000:]
        [archive] = archives(self._out)
        return Built(archive.name, content(archive), len(_COMPILED.findall(output)))
