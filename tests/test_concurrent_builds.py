"""That the main job counts what it says: a lock that does not hold makes it fail."""

from __future__ import annotations

import importlib
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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


def wheel(directory: Path, members: dict[str, str]) -> Path:
    directory.mkdir()
    with zipfile.ZipFile(directory / "sample-1.0-py3-none-any.whl", "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return directory


RIGHT = {"sample/a.py": "1", "sample/b.py": "2", "sample-1.0.dist-info/RECORD": "a\nb\n"}
WRONG = {
    "a module is missing": {name: text for name, text in RIGHT.items() if name != "sample/b.py"},
    "a module is empty": {**RIGHT, "sample/b.py": ""},
    "a module is there twice": {**RIGHT, "build/lib/sample/a.py": "1"},
    "the record is another": {**RIGHT, "sample-1.0.dist-info/RECORD": "a\n"},
}


@pytest.mark.parametrize("members", WRONG.values(), ids=WRONG)
def test_a_wheel_with_other_content_is_counted_as_wrong(
    job: Any, tmp_path: Path, members: dict[str, str]
) -> None:
    tally = job.Tally("some builds")
    expected = job.wheel_content(wheel(tmp_path / "expected", RIGHT))
    tally.count(wheel(tmp_path / "built", members), 0, "", expected)
    assert (tally.failed, tally.wrong, tally.right) == (0, 1, 0)
    assert not tally.is_perfect()


def test_a_wheel_whose_record_is_in_another_order_is_right(job: Any, tmp_path: Path) -> None:
    tally = job.Tally("some builds")
    expected = job.wheel_content(wheel(tmp_path / "expected", RIGHT))
    built = wheel(tmp_path / "built", {**RIGHT, "sample-1.0.dist-info/RECORD": "b\na\n"})
    tally.count(built, 0, "", expected)
    assert tally.is_perfect()


@pytest.mark.parametrize("damage", ["no wheel", "two wheels", "cut short"])
def test_a_build_that_says_it_succeeded_and_left_no_readable_wheel_is_wrong(
    job: Any, tmp_path: Path, damage: str
) -> None:
    expected = job.wheel_content(wheel(tmp_path / "expected", RIGHT))
    (built,) = wheel(tmp_path / "built", RIGHT).iterdir()
    if damage == "no wheel":
        built.unlink()
    elif damage == "two wheels":
        built.with_name("sample-2.0-py3-none-any.whl").write_bytes(built.read_bytes())
    else:
        built.write_bytes(built.read_bytes()[:-10])
    tally = job.Tally("some builds")
    tally.count(built.parent, 0, "", expected)
    assert (tally.failed, tally.wrong, tally.right) == (0, 1, 0)


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
