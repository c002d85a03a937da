"""The changes themselves: what stands in a file of the frontend, and what is to stand there.

Frontends that are not here need no change. nox has `noxfile.py`; pex and cibuildwheel run as a
whole under ``source-tree-lock run TREE -- pex ...``, which says who holds the tree, and ends with
status 75 when the time is up. uv takes the lock by itself, so it must not be what they run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, NamedTuple

HERE = Path(__file__).parent


class Recipe(NamedTuple):
    """One frontend's change: a file below ``site-packages``, and a module beside it."""

    file: str
    module: str
    edits: tuple[tuple[str, str], ...]

    def apply(self, site_packages: Path) -> None:
        """Change the frontend that is installed there."""
        file = site_packages / self.file
        text = file.read_text()
        for old, new in self.edits:
            if old not in text:
                raise LookupError(f"{self.file} has no {old!r}")
            text = text.replace(old, new)
        file.write_text(text)
        shutil.copy(HERE / self.module, file.parent)


RECIPES: Final = {
    "build": Recipe(
        "build/__main__.py",
        "build_locks.py",
        (
            (
                "import pyproject_hooks",
                "import pyproject_hooks\nfrom build.build_locks import locked",
            ),
            ("runner or pyproject_hooks.default_subprocess_runner\n", "locked(runner, _error)\n"),
        ),
    ),
    "pip": Recipe(
        "pip/_internal/utils/misc.py",
        "pip_locks.py",
        (
            ("\nlogger = ", "\nfrom .pip_locks import LockedHooks\n\nlogger = "),
            (
                "HookCaller(BuildBackendHookCaller)",
                "HookCaller(LockedHooks, BuildBackendHookCaller)",
            ),
        ),
    ),
    "hatch": Recipe(
        "hatch/project/frontend/core.py",
        "run_locked.py",
        (
            ("\nclass BuildFrontend", "\nfrom .run_locked import locked\n\n\nclass BuildFrontend"),
            ('shell_command(["python"', 'shell_command([*locked(self.__env.root), "python"'),
        ),
    ),
}
