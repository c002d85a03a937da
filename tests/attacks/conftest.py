"""What the attacks share: a crew of processes that are ready at once. POSIX only."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
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


@pytest.fixture
def count_cases(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Tell how many cases a test ran; the summary gives the sums."""

    def count(number: int) -> None:
        request.node.user_properties.append(("cases", number))

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    cases: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if getattr(report, "when", None) == "call":
            counts = [value for name, value in report.user_properties if name == "cases"]
            cases[Path(report.location[0]).stem] += sum(counts)
    if cases.total():
        terminalreporter.section("cases of the attacks")
    for name, number in sorted(cases.items()):
        if number:
            terminalreporter.line(f"{number:8,} {name}")
