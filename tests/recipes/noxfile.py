"""nox: a session that installs the project under the lock. nox itself stays as it is."""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import sys

import nox

LOCKED = (sys.executable, "-m", "source_tree_lock", "run", ".", "--")


@nox.session(venv_backend="venv")
def install(session: nox.Session) -> None:
    """Instead of ``session.install(".")``. uv needs none of this: it takes the lock itself."""
    session.run(*LOCKED, "python", "-m", "pip", "install", "--no-deps", ".", external=True)
