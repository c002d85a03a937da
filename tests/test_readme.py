"""Every code block of the README does what the text around it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT

from source_tree_lock._handover import VARIABLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for each, text in BLOCKS if each == language]


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
    assert {language for language, _ in BLOCKS} == {"sh", "toml", "python", "ini", "text"}


def test_every_test_that_it_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README))
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert not named - set(re.findall(r"^(?:async )?def (test_\w+)\(", sources, re.MULTILINE))


def test_it_opens_with_two_commands_the_second_of_which_is_ci_s() -> None:
    first, second = blocks("sh")[0].splitlines()
    install = "python -m pip install -e '.[test]' && "
    assert first == install + "python benchmarks/concurrent_builds.py"
    assert second == install + "python -m pytest"
    assert second in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_first_command_s_builds_are_all_right_with_the_lock(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "concurrent_builds.py")
    output = run([sys.executable, script, "--builds", "3", "--rounds", "1"], tmp_path)
    assert "with the lock" in output


def test_the_name_to_install_is_the_project_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = blocks("sh")[1].split()
    assert command[:4] == ["python", "-m", "pip", "install"]
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


@pytest.mark.parametrize("block", blocks("python"), ids=lambda text: text.split("\n")[-2][:40])
def test_a_python_block_runs_as_it_stands(block: str, project: Path) -> None:
    run([sys.executable, "-W", "error", "-c", block], project)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_the_command_runs_make_and_tells_the_status(project: Path) -> None:
    output = run(["sh", "-ec", blocks("sh")[2]], project)
    assert "Successfully built sample-1-py3-none-any.whl" in output
    assert f"{project.resolve()}: free" in output


@pytest.mark.once
def test_tox_lets_a_hold_through(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "tox.ini").write_text(f"[testenv]\npackage = wheel\n{blocks('ini')[0]}")
    seen = project / "seen"
    with (project / "setup.py").open("a") as setup:
        setup.write(f"import os\nopen({str(seen)!r}, 'w').write(os.environ['{VARIABLE}'])\n")
    monkeypatch.setenv(VARIABLE, "[]")
    # Our plugin, which a fresh installation has, would take the lock and hand down a hold.
    monkeypatch.setenv("TOX_DISABLED_EXTERNAL_PLUGINS", "source-tree-lock")
    run([sys.executable, "-m", "tox", "run", "--notest", "-e", "py"], project)
    assert seen.read_text() == "[]"
