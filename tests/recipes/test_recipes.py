"""Each recipe, in the frontend from the package index that it is for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugins.frontends import (
    Frontend,
    installed,
    is_awaited,
    lock_file_of,
    make_checkout,
    output_of,
    seconds_after_ctrl_c,
)
from projects import archives, content
from support import LIMIT, held_elsewhere, wait_until, waiters

from source_tree_lock import source_tree_lock

from .recipes import HERE

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not os.path.exists("/proc/locks"), reason="asks the kernel who waits for a lock"
    ),
]
BUILDERS = ["build", "pip", "hatch"]
ALL = [*BUILDERS, "nox", "pex", "cibuildwheel"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


def start(
    changed: Frontend, name: str, tree: Path, out: Path, **environ: str
) -> subprocess.Popen[str]:
    """The frontend, which builds or installs the project of a tree into `out`."""
    out.mkdir(exist_ok=True)
    whole = ["-m", "source_tree_lock", "run", tree, "--", changed.python]
    commands: dict[str, list[object]] = {
        "build": [*"-m build --wheel -o".split(), out, tree],
        "pip": [*"-m pip wheel --no-deps -w".split(), out, tree],
        "hatch": [*"-m hatch build -t wheel".split(), out],
        "nox": [*"-m nox --envdir".split(), out, "-f", tree / "noxfile.py"],
        "pex": [*whole, "-m", "pex", tree, "--no-pypi", "-f", changed.wheels, "-o", out / "a.pex"],
        # It builds in a container, where there is one; a copy of the tree goes there.
        "cibuildwheel": [*whole, *"-m cibuildwheel --print-build-identifiers".split(), tree],
    }
    if name == "nox":
        shutil.copy(HERE / "noxfile.py", tree)
    command = [str(changed.python), *map(str, commands[name])]
    cwd, environ = tree if tree.is_dir() else out, {**environ, "PEX_ROOT": str(out / "root")}
    return changed.start(tree, out, command=command, cwd=cwd, environ=environ)


@pytest.mark.parametrize("name", ALL)
def test_it_waits_for_the_tree_says_so_and_builds(
    changed: Frontend, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("PIP_QUIET", raising=False)  # what it says is what is looked at
    with held_elsewhere(checkout) as holder:
        timed_out = start(changed, name, checkout, tmp_path / "out", SOURCE_TREE_LOCK_TIMEOUT="0.3")
        output, _ = timed_out.communicate(timeout=LIMIT)
        assert timed_out.returncode != 0
        assert f"(pid {holder.pid})" in output, output
        assert "Traceback" not in output
        process = start(changed, name, checkout, tmp_path / "out")
        wait_until(lambda: is_awaited(checkout))
        assert not list(checkout.glob("**/*.egg-info"))
        holder.say()
        output = output_of(process)
    assert f"(pid {holder.pid})" in output, output
    if name in BUILDERS:
        [wheel] = archives(tmp_path / "out")
        assert "sample/module_29.py" in content(wheel)
    elif name == "nox":
        assert "sample/module_29.py" in installed(tmp_path / "out")
    elif name == "pex":
        command = [changed.python, tmp_path / "out" / "a.pex", "-c", "import sample.module_29"]
        subprocess.run(list(map(str, command)), check=True, timeout=LIMIT)


@pytest.mark.parametrize("name", ALL)
def test_ctrl_c_ends_the_wait_and_leaves_the_holder_alone(
    changed: Frontend, checkout: Path, tmp_path: Path, name: str
) -> None:
    seconds_after_ctrl_c(lambda: start(changed, name, checkout, tmp_path / "out"), checkout)


def test_a_tree_that_pip_has_unpacked_itself_is_not_locked(
    changed: Frontend, checkout: Path, tmp_path: Path, temp_dir: Path
) -> None:
    out = tmp_path / "out"
    build = [sys.executable, *"-m build -q -n --sdist -o".split(), str(out), str(checkout)]
    subprocess.run(build, check=True, timeout=LIMIT)
    [sdist] = archives(out)
    output_of(start(changed, "pip", sdist, out))
    assert len(archives(out)) == 2
    assert not list(temp_dir.glob("*.lock"))


def test_they_build_one_checkout_at_once_with_uv_among_them(
    changed: Frontend, checkout: Path, tmp_path: Path
) -> None:
    outs = {name: tmp_path / name for name in (*BUILDERS, "uv")}
    uv = [sys.executable, *"-m uv build -q --wheel --no-config --python".split(), sys.executable]
    uv += ["-o", str(outs["uv"]), str(checkout)]
    outs["uv"].mkdir()
    with source_tree_lock(checkout):
        processes = [start(changed, name, checkout, outs[name]) for name in BUILDERS]
        processes.append(changed.start(checkout, outs["uv"], command=uv))
        wait_until(lambda: len(waiters(lock_file_of(checkout))) == len(processes))
    for process in processes:
        output_of(process)
    built = [content(archives(out)[0]) for out in outs.values()]
    assert built == [built[0]] * len(built)
    assert len(built[0]) > 30
