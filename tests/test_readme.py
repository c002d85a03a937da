"""Every code block of the README does what its text says, and all that it names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, finish, held_elsewhere, start, wait_until, waiters

import source_tree_lock
from source_tree_lock import adapters

pytestmark = pytest.mark.timeout(600)  # builds on a busy machine; only what hangs takes that long

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("README.md", "benchmarks/README.md", "tests/README.md", "tests/cluster/README.md")
}
README = PAGES["README.md"]
_BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

#: Where a page of this checkout is on the web: as a page, as a folder, and as a picture.
_HERE = re.compile(
    r"https://(github\.com/source-tree-lock/source-tree-lock/(blob|tree)"
    r"|raw\.githubusercontent\.com/source-tree-lock/source-tree-lock)/main/"
)


def blocks(language: str, *pages: str) -> list[str]:
    found = [block for page in pages or (README,) for block in _BLOCK.findall(page)]
    return [text for each, text in found if each == language]


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small setuptools project."""
    directory = tmp_path / "project"
    (directory / "src" / "sample").mkdir(parents=True)
    (directory / "src" / "sample" / "__init__.py").touch()
    options = "name='sample', version='1', package_dir={'': 'src'}, packages=['sample']"
    (directory / "setup.py").write_text(f"from setuptools import setup\nsetup({options})\n")
    return directory


def run(cwd: Path, *command: str) -> None:
    path = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
    finish(start(*command, cwd=cwd, PATH=path))


def test_every_test_that_a_page_names_is_there() -> None:
    named = {test for page in PAGES.values() for test in re.findall(r"`(test_\w+)`", page)}
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 40
    assert not named - set(re.findall(r"^(?:async )?def (test_\w+)\(", sources, re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        here = _HERE.match(link)
        if here is None and "://" in link:
            continue  # elsewhere
        # PyPI has the first page alone, and headings without names: only addresses lead somewhere.
        assert here or name != "README.md", link
        path, _, anchor = link[here.end() if here else 0 :].partition("#")
        target = ROOT / name if not path else (ROOT if here else (ROOT / name).parent) / path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            missing.append(link)
    assert not missing


def test_every_public_name_is_in_the_reference() -> None:
    names = {*source_tree_lock.__all__, *adapters.__all__} - {"FromEnvironment"}
    assert not [name for name in names if not re.search(rf"`{name}\b", README)]


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    [command] = [line for text in blocks("sh") for line in text.splitlines() if "pytest" in line]
    assert f"  {command}\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_lines_for_a_project_build_a_wheel(project: Path) -> None:
    (project / "pyproject.toml").write_text(blocks("toml")[0])
    run(project, sys.executable, *"-m build --wheel -n --skip-dependency-check".split())
    assert [path.name for path in (project / "dist").iterdir()] == ["sample-1-py3-none-any.whl"]


@pytest.mark.parametrize(
    "block", blocks("python", *PAGES.values()), ids=lambda text: text.split("\n")[-2][:40]
)
def test_a_python_block_runs_as_it_stands(block: str, project: Path) -> None:
    run(project, sys.executable, "-W", "error", "-c", block)


@pytest.mark.parametrize("side", ["-", "+"])
def test_both_sides_of_a_difference_run(side: str, project: Path) -> None:
    for text in blocks("diff"):
        pytest.importorskip("filelock")
        program = "\n".join(line[1:] for line in text.splitlines() if line[:1] in (side, " "))
        run(project, sys.executable, "-W", "error", "-c", program)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="asks the kernel who waits")
def test_the_transcript_of_a_hang_is_what_status_prints(project: Path) -> None:
    [transcript] = [each for each in blocks("text") if each.startswith("$ source-tree-lock status")]
    command, *expected = transcript.removeprefix("$ source-tree-lock").splitlines()
    ours = [sys.executable, "-m", "source_tree_lock"]
    with held_elsewhere(project, cwd=project) as holder:  # a checkout's path may have spaces
        lock_file = source_tree_lock.source_tree_lock(project).lock_file
        with subprocess.Popen([*ours, "run", "--quiet", ".", "--", "true"], cwd=project) as waiter:
            wait_until(lambda: bool(waiters(lock_file)))
            done = start(*ours, *command.split(), cwd=project)
            output, _ = done.communicate(timeout=LIMIT)
            holder.say()
            assert waiter.wait() == 0
    assert done.returncode == 1
    assert [_shape(line) for line in output.splitlines()] == list(map(_shape, expected))


def _shape(line: str) -> str:
    """A line of a status, without what differs from one wait to the next."""
    line = re.sub(r"\S+ \(pid \d+\)", "PROGRAM (pid 0)", line)
    line = re.sub(r"for (\d+ min )?\d+ s$", "for TIME", line)
    return re.sub(r"\d[\d:-]*|/\S+(?<!:)|[0-9a-f]{16}", "_", line)
