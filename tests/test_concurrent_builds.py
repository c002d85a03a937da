"""That the main job counts what it says: a lock that does not hold makes it fail."""

from __future__ import annotations

import importlib
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RECORD = "sample-1.0.dist-info/RECORD"
RIGHT = {"sample/a.py": "1", "sample/b.py": "2", RECORD: "a\nb\n"}
WHEELS = {
    "right": [RIGHT],
    "a record in another order": [{**RIGHT, RECORD: "b\na\n"}],
    "a module is missing": [{name: RIGHT[name] for name in ("sample/a.py", RECORD)}],
    "a module is empty": [{**RIGHT, "sample/b.py": ""}],
    "a module is there twice": [{**RIGHT, "build/lib/sample/a.py": "1"}],
    "the record is another": [{**RIGHT, RECORD: "a\n"}],
    "no wheel": [],
    "two wheels": [RIGHT, RIGHT],
    "cut short": [RIGHT],
}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the main job."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("concurrent_builds")
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None)
        if path and Path(path).parent == BENCHMARKS:
            del sys.modules[name]


def wheels_in(directory: Path, wheels: list[dict[str, str]]) -> Path:
    directory.mkdir()
    for number, members in enumerate(wheels):
        with zipfile.ZipFile(directory / f"sample-{number}-py3-none-any.whl", "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
    return directory


@pytest.mark.parametrize("name", WHEELS)
def test_a_build_that_says_it_succeeded_is_right_only_with_the_content_of_the_one_built_alone(
    job: Any, tmp_path: Path, name: str
) -> None:
    expected = job.wheel_content(wheels_in(tmp_path / "expected", [RIGHT]))
    built = wheels_in(tmp_path / "built", WHEELS[name])
    if name == "cut short":
        [wheel] = built.iterdir()
        wheel.write_bytes(wheel.read_bytes()[:-10])
    tally = job.Tally("some builds")
    tally.count(built, 0, "", expected)
    is_right = name in ("right", "a record in another order")
    assert (tally.failed, tally.wrong, tally.right) == (0, not is_right, is_right)
    assert tally.is_perfect() == is_right


def test_a_build_that_fails_under_the_lock_makes_the_main_job_fail_and_say_so(
    job: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command: Callable[..., list[str]] = job.command

    def one_that_fails(tree: Path, wheels: Path, *, locked: bool) -> list[str]:
        if locked:
            return [sys.executable, "-c", "raise SystemExit('broken')"]
        return command(tree, wheels, locked=locked)

    monkeypatch.setattr(job, "command", one_that_fails)
    monkeypatch.setattr(sys, "argv", ["concurrent_builds.py", "--builds", "2", "--rounds", "1"])
    for name in ("TMPDIR", "TMP"):
        monkeypatch.setenv(name, tempfile.gettempdir())
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert job.main() == 1
    told = capsys.readouterr().out
    assert "every wheel should have been right" in told
    assert "broken" in told
