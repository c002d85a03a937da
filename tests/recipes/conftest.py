"""The frontends of the recipes, in one environment, changed by them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from plugins import frontends
from plugins.conftest import environments, index, nothing_runs_on, wheels

from .recipes import HERE, RECIPES

__all__ = ["environments", "index", "nothing_runs_on", "wheels"]


@pytest.fixture(scope="session")
def changed(environments: Path, wheels: Path, index: str) -> frontends.Frontend:
    """What starts commands in that environment."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(HERE.glob("*.py"))))
    directory = environments / f"recipes-{digest.hexdigest()[:8]}"
    is_new = not (directory / "complete").exists()
    python = frontends.make_environment(
        directory, "pip>=26", "build", "hatch", "nox", "pex", "cibuildwheel"
    )
    frontends.install_this(python, wheels)
    if is_new:
        [site_packages] = directory.glob("lib/python*/site-packages")
        for recipe in RECIPES.values():
            recipe.apply(site_packages)
    return frontends.Frontend("changed", python, wheels, index)
