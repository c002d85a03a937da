"""The frontends of the recipes, in one environment, changed by them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugins import frontends
from plugins.conftest import index, wheels

from .recipes import HERE, RECIPES

__all__ = ["index", "wheels"]


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    yield
    frontends.end_all()


@pytest.fixture(scope="session")
def changed(request: pytest.FixtureRequest, wheels: Path, index: str) -> frontends.Frontend:
    """What starts commands in that environment."""
    assert request.config.cache is not None
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(HERE.glob("*.py"))))
    directory = request.config.cache.mkdir("frontends") / f"recipes-{digest.hexdigest()[:8]}"
    is_new = not (directory / "complete").exists()
    try:
        python = frontends.make_environment(
            directory, "pip>=26", "build", "hatch", "nox", "pex", "cibuildwheel"
        )
    except (RuntimeError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs a package index: {error}")
    frontends.install_this(python, wheels)
    if is_new:
        [site_packages] = directory.glob("lib/python*/site-packages")
        for recipe in RECIPES.values():
            recipe.apply(site_packages)
    return frontends.Frontend("changed", python, wheels, index)
