"""setuptools' own backend under the lock: the same hooks, and no trace of builds that died."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyproject_api
import pytest
from projects import Content, Witness, archives, content, make_project
from pyproject_hooks import BuildBackendHookCaller
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    wait_until_blocked,
    write_project,
)

from source_tree_lock import build_meta, source_tree_lock
from source_tree_lock.adapters.hooks import HOOK_NAMES

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="what a hook sees is told by flock(2)"),
    pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning"),
]

BACKEND = "source_tree_lock.build_meta"
SETUPTOOLS = importlib.import_module("setuptools.build_meta")  # which has no types


# The same hooks


@pytest.mark.parametrize("kind", ["module", "legacy"])
def test_it_offers_exactly_setuptools_hooks_with_their_parameters(kind: str) -> None:
    ours, theirs = (
        getattr(module, "__legacy__") if kind == "legacy" else module  # noqa: B009
        for module in (build_meta, SETUPTOOLS)
    )
    offered = {name for name in HOOK_NAMES if hasattr(theirs, name)}
    assert "build_wheel" in offered
    assert {name for name in HOOK_NAMES if hasattr(ours, name)} == offered
    for name in offered:
        assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(theirs, name))
        assert getattr(ours, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_hook"):
        _ = ours.no_such_hook


def test_it_follows_a_setuptools_that_offers_fewer_hooks() -> None:
    script = """
    import setuptools.build_meta
    from source_tree_lock import build_meta
    del setuptools.build_meta.build_editable
    tell(hasattr(build_meta, "build_editable"), hasattr(build_meta, "build_wheel"))
    tell("build_editable" in build_meta.__all__, "build_wheel" in build_meta.__all__)
    """
    with Child(script) as child:
        child.expect("False True")
        child.expect("False True")


def test_everything_that_it_offers_can_be_imported_at_once() -> None:
    namespace: dict[str, object] = {}
    exec("from source_tree_lock.build_meta import *", namespace)
    offered = {name for name in HOOK_NAMES if hasattr(SETUPTOOLS, name)}
    assert set(namespace) - {"__builtins__"} == offered


def test_setuptools_is_imported_when_a_hook_is_looked_up() -> None:
    script = """
    import sys
    from source_tree_lock import build_meta
    legacy = build_meta.__legacy__
    tell(hasattr(build_meta, "no_such_hook"), hasattr(legacy, "no_such_hook"))
    tell("setuptools" in sys.modules)
    build_meta.build_wheel
    tell("setuptools" in sys.modules)
    """
    with Child(script) as child:
        child.expect("False False")
        child.expect("False")
        child.expect("True")


@pytest.mark.parametrize("name", [BACKEND, f"{BACKEND}:__legacy__"])
def test_every_hook_runs_under_the_lock(tree: Path, tmp_path: Path, name: str) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    if name.endswith("__legacy__"):
        (tree / "beside.py").touch()  # which only the legacy backend finds
        write_project(tree, f"import beside\n{witness.setup}")
    hooks = BuildBackendHookCaller(str(tree), name)
    hooks.get_requires_for_build_wheel()
    hooks.prepare_metadata_for_build_wheel(str(tmp_path))
    hooks.build_wheel(str(tmp_path))
    hooks.get_requires_for_build_sdist()
    hooks.build_sdist(str(tmp_path))
    hooks.get_requires_for_build_editable()
    hooks.prepare_metadata_for_build_editable(str(tmp_path))
    hooks.build_editable(str(tmp_path))
    commands = ("egg_info", "dist_info", "bdist_wheel", "sdist", "editable_wheel")
    assert witness.report() == {f"{command} locked" for command in commands}
    assert is_free(source_tree_lock(tree).lock_file)


def test_a_hook_that_waits_says_whom_for(tree: Path) -> None:
    write_project(tree)
    hook = f"import {BACKEND} as backend; print(backend.get_requires_for_build_wheel())"
    with held_elsewhere(tree) as holder:
        process = subprocess.Popen(
            [sys.executable, "-c", hook],
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        line = process.stderr.readline()
    assert line.startswith(f"source-tree-lock: waiting for '{tree}', held by ")
    assert f"(pid {holder.pid})" in line
    assert process.communicate(timeout=LIMIT)[0].endswith("[]\n")
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/locks")
@pytest.mark.parametrize("way", ["no descriptor", "a closed file"])
def test_a_hook_that_waits_needs_nobody_who_listens(tree: Path, tmp_path: Path, way: str) -> None:
    write_project(tree)
    hook = f"import sys, {BACKEND} as backend; {{}}backend.get_requires_for_build_wheel()"
    close = "sys.stderr.close(); " if way == "a closed file" else ""
    shell = 'exec "$0" "$@" 2>&-' if way == "no descriptor" else 'exec "$0" "$@"'
    with held_elsewhere(tree), open(tmp_path / "stdout", "wb") as stdout:
        process = subprocess.Popen(
            ["sh", "-c", shell, sys.executable, "-c", hook.format(close)], cwd=tree, stdout=stdout
        )
        wait_until_blocked(process.pid)
    assert process.wait(LIMIT) == 0
    assert "waiting" not in (tmp_path / "stdout").read_text(), "it goes where nobody expects it"


def test_toxs_persistent_backend_holds_the_tree_for_a_hook_not_for_its_life(
    tree: Path, tmp_path: Path
) -> None:
    """pyproject_api's own backend process, which tox keeps, and which calls by keyword."""
    witness = Witness(tree)
    write_project(tree, witness.setup)
    lock_file = source_tree_lock(tree).lock_file
    backend = Path(pyproject_api.__file__).with_name("_backend.py")
    calls: list[tuple[str, dict[str, object]]] = [
        ("get_requires_for_build_wheel", {"config_settings": None}),
        (
            "prepare_metadata_for_build_wheel",
            {"metadata_directory": str(tmp_path / "m"), "config_settings": None},
        ),
        (
            "build_wheel",
            {
                "wheel_directory": str(tmp_path / "w"),
                "config_settings": None,
                "metadata_directory": str(tmp_path / "m"),
            },
        ),
        ("build_sdist", {"sdist_directory": str(tmp_path / "s"), "config_settings": None}),
    ]
    (tmp_path / "m").mkdir()  # as the frontend does
    with subprocess.Popen(
        [sys.executable, str(backend), "True", BACKEND],
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, (command, keywords) in enumerate(calls):
            result = tmp_path / f"{number}.json"
            message = {"cmd": command, "kwargs": keywords, "result": str(result)}
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            while not process.stdout.readline().startswith("Backend: Wrote response"):
                assert process.poll() is None
            assert "return" in json.loads(result.read_text()), result.read_text()
            assert is_free(lock_file)
            assert {line.split()[1] for line in witness.report()} == {"locked"}
        process.kill()
    assert [path.suffix for path in archives(tmp_path / "w")] == [".whl"]


# Builds that died

FINISHED = Path("build", ".source-tree-lock-finished")
BUILD = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
from source_tree_lock import build_meta
getattr(build_meta, sys.argv[1])(*sys.argv[2:])
"""


def build(
    tree: Path, out: Path | None, hook: str = "build_wheel", prelude: str = ""
) -> tuple[int, str]:
    """Exit status, and what the library logged."""
    done = subprocess.run(
        [sys.executable, "-c", prelude + BUILD, hook, *([str(out)] if out else [])],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    logged = [line for line in done.stderr.splitlines() if line.startswith("source_tree_lock: ")]
    return done.returncode, "\n".join(logged)


def built(tree: Path, out: Path, hook: str = "build_wheel") -> Content:
    """What the archive of a build that has to succeed holds."""
    shutil.rmtree(out, ignore_errors=True)
    assert build(tree, out, hook)[0] == 0
    [archive] = archives(out)
    return content(archive)


def test_what_a_dead_build_staged_is_removed_and_told_of(tree: Path, tmp_path: Path) -> None:
    write_project(tree)
    alone = built(tree, tmp_path / "alone")
    staged = tree / "build" / "bdist.linux-x86_64" / "wheel" / "left_behind.py"
    staged.parent.mkdir(parents=True)
    staged.write_text("")
    status, logged = build(tree, tmp_path / "out")
    assert status == 0
    assert "Removing 'build/bdist.linux-x86_64/wheel'" in logged
    assert not staged.parent.exists()
    [wheel] = archives(tmp_path / "out")
    assert content(wheel) == alone


def test_a_build_that_finds_nothing_left_behind_says_nothing(tree: Path, tmp_path: Path) -> None:
    write_project(tree)
    for number in range(2):
        assert build(tree, tmp_path / str(number)) == (0, "")


def test_what_a_dead_build_left_half_done_is_done_again(tree: Path, tmp_path: Path) -> None:
    """To setuptools it is done: it looks newer than its source."""
    write_project(tree)
    alone = built(tree, tmp_path / "out")
    (tree / "build" / "lib" / "sample.py").write_text("")
    assert built(tree, tmp_path / "out") != alone, "it is no danger"
    (tree / FINISHED).unlink()
    status, logged = build(tree, tmp_path / "again")
    assert (status, "may not have finished" in logged) == (0, True)
    [wheel] = archives(tmp_path / "again")
    assert content(wheel) == alone
    assert (tree / FINISHED).exists()


def test_what_a_build_left_that_was_not_ours_is_not_trusted(tree: Path, tmp_path: Path) -> None:
    write_project(tree)
    hook = "import setuptools.build_meta as b; b.build_wheel('../out')"
    subprocess.run([sys.executable, "-c", hook], cwd=tree, check=True, timeout=LIMIT)
    [wheel] = archives(tmp_path / "out")
    alone = content(wheel)
    (tree / "build" / "lib" / "sample.py").write_text("")
    assert built(tree, tmp_path / "out") == alone


def test_a_source_that_stands_where_setuptools_builds_is_not_taken_for_its_own_copy(
    tree: Path, tmp_path: Path
) -> None:
    source = tree / "build" / "lib" / "__init__.py"
    source.parent.mkdir(parents=True)
    (tree / "build" / "__init__.py").touch()
    source.write_text("ANSWER = 41\n")
    (tree / "setup.py").write_text(
        "from setuptools import setup\n"
        "setup(name='sample', version='1', packages=['build', 'build.lib'])\n"
    )
    built(tree, tmp_path / "out")
    source.write_text("ANSWER = 42\n")
    (tree / FINISHED).unlink()
    os.utime(source, (2e9, 2e9))
    right = hashlib.sha256(source.read_bytes()).hexdigest()
    assert built(tree, tmp_path / "out")["build/lib/__init__.py"] == right
    assert source.stat().st_mtime == 2e9


@pytest.mark.parametrize("directory", [".", "src"])
def test_a_temporary_file_in_an_egg_info_is_removed(
    tree: Path, tmp_path: Path, directory: str
) -> None:
    """setuptools would pack it into every wheel and sdist from now on."""
    if directory == "src":
        make_project(tree, BACKEND, modules=1)
    else:
        write_project(tree)
    alone = built(tree, tmp_path / "out")
    egg_info = tree / directory / "sample.egg-info"
    (egg_info / "tmpx_y2abcd").touch()
    (egg_info / "own.txt").touch()
    status, logged = build(tree, None, "get_requires_for_build_wheel")
    assert (status, "sample.egg-info/tmpx_y2abcd'" in logged) == (0, True)
    again = built(tree, tmp_path / "out")
    assert [name.rpartition("/")[2] for name in set(again) - set(alone)] == ["own.txt"]


def test_of_an_unfinished_sdist_only_its_own_directory_is_removed(
    tree: Path, tmp_path: Path
) -> None:
    write_project(tree)
    alone = built(tree, tmp_path / "out", "build_sdist")
    staged = tree / "sample-1"
    staged.mkdir()
    os.link(tree / "sample.py", staged / "sample.py")
    (staged / "PKG-INFO").touch()
    names = ("sample-2", "other-1", "sample", "-", "1", "x-sample-1", "Sample-1")
    others = [tree / name for name in names]
    for path in others:
        path.mkdir()
        (path / "file").touch()
    (tree / "SAMPLE-1").symlink_to(staged)
    status, logged = build(tree, tmp_path / "again", "build_sdist")
    assert (status, "Removing 'sample-1'" in logged) == (0, True)
    [sdist] = archives(tmp_path / "again")
    assert content(sdist) == alone
    assert all((path / "file").exists() for path in others)
    shutil.rmtree(tree / "sample.egg-info")
    (tree / "sample.egg-info").mkdir()
    assert build(tree, tmp_path / "again", "build_sdist")[0] == 0
    assert all((path / "file").exists() for path in others)


def test_an_unpacked_sdist_of_another_project_stays(tree: Path, tmp_path: Path) -> None:
    """It has an egg-info, and is called as what setuptools stages for the project named there."""
    write_project(tree)
    vendored = tree / "libfoo-1.2"
    for name, text in {
        "PKG-INFO": "Name: libfoo\nVersion: 1.2\n",
        "libfoo.egg-info/PKG-INFO": "Name: libfoo\nVersion: 1.2\n",
        "sample.py": "precious",
    }.items():
        (vendored / name).parent.mkdir(parents=True, exist_ok=True)
        (vendored / name).write_text(text)
    assert build(tree, tmp_path / "out", "build_sdist") == (0, "")
    assert (vendored / "sample.py").read_text() == "precious"
    assert len(list(vendored.iterdir())) == 3


@pytest.mark.parametrize("what", ["a link", "a pipe", "another spelling"])
def test_a_directory_that_setuptools_would_not_stage_stays(
    tree: Path, tmp_path: Path, what: str
) -> None:
    write_project(tree)
    built(tree, tmp_path / "out", "build_sdist")
    kept = tree / ("SAMPLE-1" if what == "another spelling" else "sample-1")
    kept.mkdir()
    (kept / "setup.cfg").write_text("[by]\nhand = 1\n")
    if what == "a link":
        (kept / "link").symlink_to(tmp_path)
    elif what == "a pipe":
        os.mkfifo(kept / "pipe")
    # The hook itself may remove it, as setuptools alone does: what comes before must not.
    status, logged = build(tree, tmp_path / "again", "build_sdist")
    assert (status, "Removing" in logged) == (0, False)


def test_the_temporary_files_of_a_project_below_are_its_own(tree: Path, tmp_path: Path) -> None:
    """Its builds have a lock of their own, and one may be under way."""
    write_project(tree)
    temporary = tree / "below" / "below.egg-info" / "tmpx_y2abcd"
    temporary.parent.mkdir(parents=True)
    temporary.touch()
    (tree / "below" / "setup.py").touch()
    assert build(tree, tmp_path / "out") == (0, "")
    assert temporary.exists()


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable", "build_sdist"])
def test_a_first_build_finds_the_packages_that_setuptools_finds(tmp_path: Path, hook: str) -> None:
    """A directory that is made for the mark would be a package where namespaces are looked for."""
    tree, made = tmp_path / "tree", []
    for backend in ("setuptools.build_meta", "source_tree_lock.build_meta"):
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "mine").mkdir(parents=True)
        (tree / "mine" / "__init__.py").touch()
        (tree / "setup.py").write_text(
            "from setuptools import find_namespace_packages, setup\n"
            "setup(name='mine', version='1', packages=find_namespace_packages())\n"
        )
        code = f"import sys, {backend} as b; getattr(b, sys.argv[1])(sys.argv[2])"
        out = tmp_path / backend
        subprocess.run([sys.executable, "-c", code, hook, out], cwd=tree, check=True, timeout=LIMIT)
        [archive] = archives(out)
        made.append(content(archive))
    assert made[1] == made[0]


def test_a_projects_own_files_of_the_same_names_stay(tree: Path, tmp_path: Path) -> None:
    """It may build elsewhere, and have sources where setuptools would build."""
    write_project(tree)
    (tree / "setup.cfg").write_text("[build]\nbuild_base = elsewhere\n")
    own = [tree / "build" / name / "own.py" for name in ("lib", "lib.own", "temp.own")]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("own")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    os.utime(elsewhere, (1e9, 1e9))
    (tree / "build" / "lib" / "link.py").symlink_to(elsewhere)
    assert "sample.py" in built(tree, tmp_path / "out")
    assert not (tree / FINISHED).exists(), "setuptools builds elsewhere"
    assert [path.read_text() for path in own] == ["own"] * 3
    assert [path.stat().st_mtime for path in (*own, elsewhere)] == [0, 0, 0, 1e9]


def test_a_build_in_a_tree_whose_name_looks_like_a_pattern_is_finished_too(tmp_path: Path) -> None:
    tree = tmp_path / "a[b]*"
    tree.mkdir()
    write_project(tree)
    built(tree, tmp_path / "out")
    assert (tree / FINISHED).exists()


#: A setup.py that tells what stands in the tree while it runs.
LOOKS = """
import os
with open("../seen", "a") as seen:
    for parent, _, names in os.walk("."):
        seen.writelines(f"{os.path.join(parent, name)}\\n" for name in names)
"""


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_no_build_sees_a_file_of_ours(tree: Path, tmp_path: Path, hook: str) -> None:
    """It may look for all files, pack them, or take the tree for dirty by them."""
    write_project(tree, LOOKS)
    for _ in range(2):
        built(tree, tmp_path / "out", hook)
        assert (tree / FINISHED).exists() == (hook == "build_wheel")
    seen = (tmp_path / "seen").read_text()
    assert "./sample.py" in seen
    assert "source-tree-lock" not in seen


@pytest.mark.parametrize(
    "setup", ["raise SystemExit(1)", "import os\nos.mkdir('sub')\nos.chdir('sub')\n"]
)
def test_a_build_that_fails_or_goes_elsewhere_leaves_no_file_of_ours(
    tree: Path, tmp_path: Path, setup: str
) -> None:
    (tree / "setup.py").write_text(f"{setup}\nfrom setuptools import setup\nsetup(name='x')\n")
    status, _ = build(tree, tmp_path / "out")
    assert (status == 0) == ("sub" in setup)
    assert list(tree.rglob(".source-tree-lock*")) == []


def test_no_archive_has_a_file_of_ours(tree: Path, tmp_path: Path) -> None:
    write_project(tree)
    (tree / "MANIFEST.in").write_text("graft .\nglobal-include *\n")
    built(tree, tmp_path / "out")
    assert (tree / FINISHED).exists()
    for hook in ("build_sdist", "build_wheel"):
        archive = built(tree, tmp_path / "out", hook)
        assert [name for name in archive if "source-tree-lock" in name] == []
    sources = (tree / "sample.egg-info" / "SOURCES.txt").read_text()
    assert "source-tree-lock" not in sources


#: Counts the files of the tree that are opened to be written, and, when it comes to the one that
#: it is told, leaves that empty and dies.
DIES = """
import atexit, os, signal, sys
tree, fatal, written = os.getcwd() + os.sep, {fatal}, 0
def die(event, arguments):
    global written
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path, _, flags = arguments
    path = os.path.abspath(os.fsdecode(path))
    # A directory is opened to be written where a temporary file is tried without a name.
    if flags & (os.O_WRONLY | os.O_RDWR) and path.startswith(tree) and not os.path.isdir(path):
        written += 1
        if written == fatal:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
atexit.register(lambda: print("source_tree_lock: written:", written, file=sys.stderr))
"""


def start_over(tree: Path) -> None:
    for path in (tree / "build", tree / "src" / "sample.egg-info"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.once
@pytest.mark.parametrize(("hook", "moments"), [("build_wheel", 10), ("build_sdist", 3)])
def test_a_build_that_is_killed_poisons_no_later_one(
    tree: Path, tmp_path: Path, hook: str, moments: int, long_run: bool
) -> None:
    make_project(tree, BACKEND, modules=6)
    right_wheel = built(tree, tmp_path / "out")
    right_sdist = built(tree, tmp_path / "out", "build_sdist")
    start_over(tree)
    status, logged = build(tree, tmp_path / "out", hook, DIES.format(fatal=0))
    written = int(logged.rpartition(" ")[2])
    assert status == 0
    assert written >= moments
    if long_run:
        moments = written
    for moment in range(moments):
        start_over(tree)
        fatal = 1 + moment * written // moments
        status, _ = build(tree, tmp_path / "out", hook, DIES.format(fatal=fatal))
        assert status == -signal.SIGKILL
        assert built(tree, tmp_path / "out") == right_wheel, f"killed at file {fatal} of {written}"
        if hook == "build_sdist":
            assert built(tree, tmp_path / "out", "build_sdist") == right_sdist
