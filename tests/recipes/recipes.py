"""The changes themselves: what stands in a file of the frontend, and what is to stand there.

Frontends that are not here need no change. nox has `noxfile.py`; pex and cibuildwheel run as a
whole under ``source-tree-lock run TREE -- pex ...``, which says who holds the tree, and ends with
status 75 when the time is up. uv takes the lock by itself, so it must not be what they run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """One frontend's change.

    Attributes:
        file: the file that is changed, below ``site-packages``.
        edits: what stands in it, and what is to stand there.
        module: a module that is put beside the file, if any.
    """

    file: str
    edits: tuple[tuple[str, str], ...]
    module: str | None = None

    def apply(self, site_packages: Path) -> None:
        """Change the frontend that is installed there."""
        file = site_packages / self.file
        text = file.read_text()
        for old, new in self.edits:
            if old not in text:
                raise LookupError(f"{self.file} has no {old!r}")
            text = text.replace(old, new)
        file.write_text(text)
        if self.module is not None:
            shutil.copy(HERE / self.module, file.parent)


RECIPES: Final = {
    "build": Recipe(
        "build/__main__.py",
        (
            (
                "import pyproject_hooks\n",
                "import pyproject_hooks\nfrom build.build_locks import locked\n",
            ),
            ("runner or pyproject_hooks.default_subprocess_runner\n", "locked(runner, _error)\n"),
        ),
        module="build_locks.py",
    ),
    "pip": Recipe(
        "pip/_internal/utils/misc.py",
        (
            ("\nlogger = ", "\nfrom .pip_locks import LockedHooks\n\nlogger = "),
            (
                "HookCaller(BuildBackendHookCaller):",
                "HookCaller(LockedHooks, BuildBackendHookCaller):",
            ),
        ),
        module="pip_locks.py",
    ),
    "hatch": Recipe(
        "hatch/project/frontend/core.py",
        (
            (
                "from hatch.utils.fs import Path\n",
                "from hatch.utils.fs import Path\nfrom .run_locked import locked\n",
            ),
            (
                '.add_shell_command(["python"',
                '.add_shell_command([*locked(self.__env.root), "python"',
            ),
        ),
        module="run_locked.py",
    ),
}
