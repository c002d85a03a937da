"""What the attacks share: a crew of processes that are ready at once. POSIX only."""

from __future__ import annotations

import os
from collections.abc import Iterator

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

    Nothing else may be left behind in this process.
    """
    yield session_crew
    session_crew.end_children()
