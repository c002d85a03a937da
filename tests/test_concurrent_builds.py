"""That the main job counts what it says: a lock that does not hold makes it fail."""

from __future__ import annotations

import importlib
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the main job."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with patch.dict(sys.modules):  # nothing of the benchmarks is left there
        yield importlib.import_module("concurrent_builds")


def wheel(directory: Path, members: dict[str, str]) -> Path:
    directory.mkdir()
    with zipfile.ZipFile(directory / "sample-1.0-py3-none-any.whl", "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return directory


RIGHT = {"sample/a.py": "1", "sample/b.py": "2", "sample-1.0.dist-info/RECORD": "a\nb\n"}
BUILT = {
    "the record is in another order": {**RIGHT, "sample-1.0.dist-info/RECORD": "b\na\n"},
    # These are wrong:
    "a module is missing": {name: text for name, text in RIGHT.items() if name != "sample/b.py"},
    "a module is empty": {**RIGHT, "sample/b.py": ""},
    "a module is there twice": {**RIGHT, "build/lib/sample/a.py": "1"},
    "the record is another": {**RIGHT, "sample-1.0.dist-info/RECORD": "a\n"},
    "no wheel": RIGHT,
    "two wheels": RIGHT,
    "cut short": RIGHT,
}


@pytest.mark.parametrize("what", BUILT)
def test_a_build_is_right_only_if_it_left_one_wheel_with_the_expected_content(
    job: Any, tmp_path: Path, what: str
) -> None:
    expected = job.wheel_content(wheel(tmp_path / "expected", RIGHT))
    [built] = wheel(tmp_path / "built", BUILT[what]).iterdir()
    if what == "no wheel":
        built.unlink()
    elif what == "two wheels":
        built.with_name("sample-2.0-py3-none-any.whl").write_bytes(built.read_bytes())
    elif what == "cut short":
        built.write_bytes(built.read_bytes()[:-10])
    tally = job.Tally("some builds")
    tally.count(built.parent, 0, "", expected)
    is_right = what == "the record is in another order"
    assert (tally.failed, tally.wrong, tally.right) == (0, not is_right, is_right)
    assert tally.is_perfect() is is_right


@pytest.mark.long
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
