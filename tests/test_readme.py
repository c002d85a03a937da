"""Every code block of the README does what its text says, and all that it names is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, held_elsewhere, wait_until, waiters

import source_tree_lock
from source_tree_lock import adapters
from source_tree_lock._handover import VARIABLE

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in (
        "README.md",
        "benchmarks/README.md",
        "tests/README.md",
        "tests/cluster/README.md",
    )
}
README = PAGES["README.md"]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = _BLOCK.findall(README)
PYTHON = [
    block for page in PAGES.values() for kind, block in _BLOCK.findall(page) if kind == "python"
]

#: Where a page of this checkout is on the web: as a page, as a folder, and as a picture.
_HERE = (
    "https://github.com/source-tree-lock/source-tree-lock/blob/main/",
    "https://github.com/source-tree-lock/source-tree-lock/tree/main/",
    "https://raw.githubusercontent.com/source-tree-lock/source-tree-lock/main/",
)


def blocks(language: str) -> list[str]:
    return [text for each, text in BLOCKS if each == language]


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small setuptools project with a Makefile."""
    directory = tmp_path / "project"
    (directory / "src" / "sample").mkdir(parents=True)
    (directory / "src" / "sample" / "__init__.py").write_text("")
    (directory / "setup.py").write_text(
        "from setuptools import setup\n"
        "setup(name='sample', version='1', package_dir={'': 'src'}, packages=['sample'])\n"
    )
    (directory / "Makefile").write_text("wheel:\n\tpython -m build --wheel --no-isolation\n")
    return directory


def run(command: list[str], cwd: Path) -> str:
    environ = {**os.environ, "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"]}
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_no_kind_of_block_that_no_test_runs() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "toml", "python", "diff", "text"}


def test_every_test_that_a_page_names_is_there() -> None:
    named = {test for page in PAGES.values() for test in re.findall(r"`(test_\w+)`", page)}
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 40
    assert not named - set(re.findall(r"^(?:async )?def (test_\w+)\(", sources, re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        prefix = next((each for each in _HERE if link.startswith(each)), None)
        if prefix is None and "://" in link:
            continue  # elsewhere
        # PyPI has the first page alone, and headings without names: only addresses lead somewhere.
        assert prefix or name != "README.md", link
        path, _, anchor = link.removeprefix(prefix or "").partition("#")
        target = name if not path else os.path.normpath(path)
        if path and prefix is None:
            target = os.path.normpath(os.path.join(os.path.dirname(name), path))
        file = ROOT / target
        is_there = file.exists() and (not anchor or anchor in anchors(file.read_text("utf-8")))
        if not is_there:
            missing.append(link)
    assert not missing


def test_every_public_name_is_in_the_reference() -> None:
    reference = README[README.index("## Reference") :]
    names = [*source_tree_lock.__all__, *adapters.__all__]
    assert not [name for name in names if not re.search(rf"`{name}\b", reference)]


def test_it_opens_with_two_commands_the_second_of_which_is_ci_s() -> None:
    first, second = blocks("sh")[0].splitlines()
    install = "python3 -m venv .venv && .venv/bin/python -m pip install -e '.[test]' && "
    assert first == install + ".venv/bin/python benchmarks/concurrent_builds.py"
    assert second == install + ".venv/bin/python -m pytest -n 4"
    assert f"  {second}\n" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert _BLOCK.search(README)[0].startswith("```sh\npython3 -m venv")  # type: ignore[index]


def test_the_first_command_s_builds_are_all_right_with_the_lock(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "concurrent_builds.py")
    output = run([sys.executable, script, "--builds", "2", "--rounds", "1"], tmp_path)
    assert "with the lock" in output


def test_the_name_to_install_is_the_project_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, command = (shlex.split(line, comments=True) for line in blocks("sh")[1].splitlines())
    assert here == ["python", "-m", "pip", "install", "."]
    assert command[:4] == here[:4]
    shutil.copytree(
        ROOT / "src", tmp_path / "copy" / "src", ignore=shutil.ignore_patterns("*.egg-info")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "copy"]
    run(build, tmp_path)
    offline = ["--dry-run", "--no-deps", "--no-index", "--find-links", "dist", "--ignore-installed"]
    monkeypatch.delenv("PIP_QUIET", raising=False)  # what it says is what is looked at
    output = run([*command, *offline], tmp_path)
    assert "Would install source-tree-lock-" in output


def test_the_one_line_for_maintainers_builds_a_wheel(project: Path) -> None:
    (project / "pyproject.toml").write_text(blocks("toml")[0])
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation"], project)
    assert [path.name for path in (project / "dist").iterdir()] == ["sample-1-py3-none-any.whl"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda text: text.split("\n")[-2][:40])
def test_a_python_block_runs_as_it_stands(block: str, project: Path) -> None:
    run([sys.executable, "-W", "error", "-c", block], project)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_the_command_runs_make_and_tells_the_status(project: Path) -> None:
    output = run(["sh", "-ec", blocks("sh")[2]], project)
    assert "Successfully built sample-1-py3-none-any.whl" in output
    assert f"{project.resolve()}: free" in output


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="asks the kernel who waits")
def test_the_transcript_of_a_hang_is_what_status_prints(project: Path) -> None:
    [transcript] = [each for each in blocks("text") if each.startswith("$ ")]
    words, *expected = transcript.removeprefix("$ ").splitlines()
    with held_elsewhere(project, cwd=project) as holder:  # a checkout's path may have spaces
        lock_file = source_tree_lock.source_tree_lock(project).lock_file
        wait = [sys.executable, "-m", "source_tree_lock", "run", "--quiet", ".", "--", "true"]
        with subprocess.Popen(wait, cwd=project) as waiter:
            wait_until(lambda: bool(waiters(lock_file)))
            command = [sys.executable, "-m", *words.replace("-", "_", 2).split()]
            done = subprocess.run(
                command, cwd=project, capture_output=True, text=True, timeout=LIMIT
            )
            holder.say()
            assert waiter.wait(LIMIT) == 0
    assert done.returncode == 1
    assert [_shape(line) for line in done.stdout.splitlines()] == list(map(_shape, expected))


def _shape(line: str) -> str:
    """A line of a status, without what differs from one wait to the next."""
    line = re.sub(r"\S+ \(pid \d+\)", "PROGRAM (pid 0)", line)
    line = re.sub(r"for (\d+ min )?\d+ s$", "for TIME", line)
    return re.sub(r"\d[\d:-]*|/\S+(?<!:)|[0-9a-f]{16}", "_", line)


@pytest.mark.parametrize("side", ["-", "+"], ids=["filelock", "ours"])
def test_both_sides_of_the_move_from_filelock_run(side: str, project: Path) -> None:
    if side == "-":
        pytest.importorskip("filelock")
    lines = blocks("diff")[0].splitlines()
    assert sum(line[0] == "+" for line in lines) <= 6
    program = "\n".join(line[1:] for line in lines if line[0] in (side, " "))
    assert run([sys.executable, "-W", "error", "-c", program], project) == "building\n"


@pytest.mark.once
def test_tox_lets_a_hold_through(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "[testenv:.pkg]\npass_env = SOURCE_TREE_LOCK_*\n"
    assert all(f"`{line}`" in README for line in settings.splitlines())
    (project / "tox.ini").write_text(f"[testenv]\npackage = wheel\n{settings}")
    seen = project / "seen"
    with (project / "setup.py").open("a") as setup:
        setup.write(f"import os\nopen({str(seen)!r}, 'w').write(os.environ['{VARIABLE}'])\n")
    monkeypatch.setenv(VARIABLE, "[]")
    # Our plugin, which a fresh installation has, would take the lock and hand down a hold.
    monkeypatch.setenv("TOX_DISABLED_EXTERNAL_PLUGINS", "source-tree-lock")
    run([sys.executable, "-m", "tox", "run", "--notest", "-e", "py"], project)
    assert seen.read_text() == "[]"
