"""What the attacks share: a crew of processes that are ready at once. POSIX only."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if os.name == "posix":
    from .crew import Crew
else:
    collect_ignore_glob = ["*.py"]


@pytest.fixture(scope="session")
def session_crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


@pytest.fixture
def crew(session_crew: Crew, no_leaks: object) -> Iterator[Crew]:
    """Starts children by the hundred; those that a test leaves behind are ended.

    Nothing else is to be left behind, in this process.
    """
    yield session_crew
    session_crew.end_children()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sticky directory that everybody may write, on the way to which nobody is kept out."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("needs root on Linux, to be another user as well")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        directory = Path(name, "tmp")
        directory.mkdir()
        directory.chmod(0o1777)
        monkeypatch.setenv("TMPDIR", str(directory))
        yield directory
