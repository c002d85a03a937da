"""A build that was cut short spoils none after it, and what is built anew is told."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from support import WITHOUT_ROOTS_RIGHTS

from source_tree_lock import source_tree_lock

from .building import ANEW, SETUPTOOLS, Project

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills builds by SIGKILL")

#: Ruins a build when it opens a file {name}... to write it for the {moment}th time: that file is
#: left empty, and all that it has made so far are cut in half and look newer than their sources.
#: Where {name} is empty, any file in the tree counts, and the others are left as they are. Then it
#: {ends}. At its end it prints how often it was.
RUIN = """
import atexit, os, signal, sys
def files():
    for top in (".", "../out"):
        for parent, _, names in os.walk(top):
            for name in names:
                yield os.path.join(parent, name)
before, times, tree = set(files()), 0, os.getcwd() + os.sep
def ruin(event, arguments):
    global times
    path = os.path.abspath(arguments[0]) if event == "open" and type(arguments[0]) is str else ""
    is_meant = os.path.basename(path).startswith("{name}") if "{name}" else path.startswith(tree)
    # A directory is opened to be written where a temporary file is tried without a name.
    if is_meant and arguments[2] & os.O_ACCMODE and not os.path.isdir(path):
        times += 1
        if times == {moment}:
            open(path, "w").close()
            for path in set(files()) - before if "{name}" else ():
                os.truncate(path, os.path.getsize(path) // 2)
            {ends}
sys.addaudithook(ruin)
atexit.register(lambda: print(times))
"""
KILLED = "os.kill(0, signal.SIGKILL)"


def ruin(project: Project, hook: str = "build_wheel", ends: str = KILLED, **options: object) -> int:
    """Have a first build ruined when it has the most half-finished files; its status."""
    shutil.rmtree(project.tree / "build", ignore_errors=True)
    name, moment = {
        "build_wheel": ("sample.py", 2),  # into the directory in which the wheel is composed
        "build_sdist": ("sample.py", 1),
        "build_editable": ("one.", 1),  # into the sources
    }[hook]
    prelude = RUIN.format(name=name, moment=moment, ends=ends)
    return project.run(hook, prelude=prelude, **options).returncode  # type: ignore[arg-type]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# Where it builds


COMMANDS = ("build", "build_py", "build_ext", "build_clib")
OWN_DISTRIBUTION = "distclass=type('Own', (Distribution,), {}),"
#: How the build directory is named: in which file, or how else, and with which text.
WAYS = [
    ("setup.cfg", "[build]\nbuild_base = ../out"),
    ("pyproject.toml", "[tool.distutils.build]\nbuild_base = 'out'"),
    # Only in the long run:
    ("setup.cfg", ""),
    ("setup.cfg", "[build]\nbuild_base = out"),
    ("setup.cfg", "[build]\nbuild_lib = out"),
    ("setup.cfg", "[build]\nbuild_temp = out"),
    ("setup.cfg", "[build]\nbuild_purelib = o\nbuild_platlib = p"),
    ("setup.cfg", "[bdist_wheel]\nbdist_dir = ../out/wheel"),
    ("setup.cfg", "[bdist]\nbdist_base = out"),
    ("setup.cfg", "".join(f"[{command}]\nforce = 0\n" for command in COMMANDS)),
    ("pyproject.toml", "".join(f"[tool.distutils.{each}]\nforce = '0'\n" for each in COMMANDS)),
    ("../extra.cfg", "[build]\nbuild_base = out\nForce = 0\nforce = 0"),
    ("../.pydistutils.cfg", "[build]\nbuild_base = out"),
    ("setup", "options={'build': {'build_base': 'out', 'force': '0'}},"),
    ("setup", f"{OWN_DISTRIBUTION} options={{'bdist_wheel': {{'bdist_dir': 'o'}}}},"),
    ("settings", "build --build-base=../out"),
]


def test_wherever_a_build_is_killed_the_next_one_is_right_and_says_so(
    tmp_path: Path, long_run: bool
) -> None:
    for number, way in enumerate(WAYS if long_run else WAYS[:2]):
        project = Project(tmp_path / str(number))
        settings = name_build_directory(project, *way)
        alone, _ = project.build(settings=settings)
        everything = set(project.compiled())
        for name in ("out", "o", "p", "../out"):
            shutil.rmtree(project.tree / name, ignore_errors=True)
        assert ruin(project, settings=settings) == -signal.SIGKILL, way
        assert not list(tmp_path.rglob("*source-tree-lock*")), "nothing of ours lies in the tree"
        assert project.build(settings=settings) == (alone, True), way
        assert set(project.compiled()) == everything, way
        assert project.build(settings=settings) == (alone, False), way
        assert project.compiled() == [], f"{way}: what was built anew is trusted"


def name_build_directory(project: Project, place: str, text: str) -> object:
    """Name it in one of the ways; the config settings with which to build."""
    if place == "settings":
        return {"--global-option": text}
    if place == "setup":
        project.write_setup(more=text)
        return None
    if place == "pyproject.toml":
        text = f"[project]\nname = 'sample'\nversion = '1'\n{text}"
    (project.tree / place).write_text(text)
    if place == "../extra.cfg":
        project.environ["DIST_EXTRA_CONFIG"] = str(project.tree / place)
    return None


def test_plain_setuptools_ships_what_the_ruined_build_left(project: Project) -> None:
    """So the test above tests something."""
    alone, _ = project.build()
    ruin(project, backend=SETUPTOOLS)
    assert project.build(backend=SETUPTOOLS)[0] != alone


def test_what_a_killed_build_of_each_hook_left_spoils_no_archive(
    project: Project, long_run: bool
) -> None:
    (project.tree / "MANIFEST.in").write_text("include *.txt\n")
    hooks = ("build_sdist", "build_wheel", "build_editable")
    alone = {hook: project.build(hook)[0] for hook in hooks}
    for hook in hooks[: 2 if long_run else 1]:
        (project.tree / "removed.txt").touch()
        assert ruin(project, hook) == -signal.SIGKILL
        (project.tree / "removed.txt").unlink()
        for each in hooks:
            found, said = project.build(each)
            assert found == alone[each], (hook, each)
            assert said == (each == hook), "only the builds that share its files are made anew"
        assert list(project.tree.glob("sample-1*")) == []


def test_a_killed_editable_build_is_made_anew(project: Project) -> None:
    project.build("build_editable")
    [extension] = project.tree.glob("one.*.so")
    assert ruin(project, "build_editable") == -signal.SIGKILL
    assert extension.read_text() == ""
    os.utime(extension, (2e9, 2e9))
    assert project.build("build_editable")[1]
    assert extension.read_text() == "onethreetwo"


@pytest.mark.timeout(600)
def test_a_build_that_is_killed_at_any_file_spoils_none(project: Project, long_run: bool) -> None:
    def run(hook: str, fatal: int) -> subprocess.CompletedProcess[str]:
        for name in ("build", "sample.egg-info"):
            shutil.rmtree(project.tree / name, ignore_errors=True)
        return project.run(hook, prelude=RUIN.format(name="", moment=fatal, ends=KILLED))

    right = [project.build(each) for each in ("build_sdist", "build_wheel")]
    hooks = ["build_wheel", "build_sdist", "get_requires_for_build_wheel"]
    for hook in hooks if long_run else hooks[:1]:
        count = int(run(hook, -1).stdout.splitlines()[-1])
        for fatal in range(1, count + 1) if long_run else [count // 2]:
            assert run(hook, fatal).returncode == -signal.SIGKILL
            after = [project.build(each) for each in ("build_sdist", "build_wheel")]
            assert [built for built, _ in after] == [built for built, _ in right], (hook, fatal)


OTHER_PYTHON = "import sys\nsys.implementation.cache_tag = 'other-99'\n"


def test_each_python_builds_anew_what_it_was_killed_in(project: Project) -> None:
    """Each builds extensions in directories of its own."""
    alone, _ = project.build()
    ruin(project)
    for is_anew in (True, False):
        assert project.build(prelude=OTHER_PYTHON)[1] == is_anew, "they share a part"
        assert project.build() == (alone, is_anew)


# How it ends

ENDS = (
    "raise KeyboardInterrupt",
    f"raise OSError({errno.ENOSPC}, 'no space')",
    "signal.signal(15, lambda *_: sys.exit(143)); signal.raise_signal(15)",
    # Only in the long run:
    *(f"raise OSError({number}, '')" for number in (errno.EDQUOT, errno.EIO)),
    "raise MemoryError",
    "os.kill(os.getpid(), signal.SIGINT)",
    "os.kill(os.getpid(), signal.SIGTERM)",
    "os._exit(0)",
)


@pytest.mark.timeout(300)
def test_what_may_leave_half_a_file_is_remembered(project: Project, long_run: bool) -> None:
    alone, _ = project.build()
    for ends in ENDS if long_run else ENDS[:3]:
        ruin(project, ends=ends)
        assert project.build() == (alone, True), ends
        assert project.build() == (alone, False), ends


def test_a_linker_or_compiler_that_is_killed_is_remembered(project: Project) -> None:
    alone, _ = project.build()
    # The last is a linker that is killed below a compiler, which survives it.
    deaths = [("one.cpython", "kill -9 $$"), ("two.o", "kill -9 $$"), ("one.cpython", "exit 1")]
    for fatal in deaths:
        shutil.rmtree(project.tree / "build")
        project.die_at(*fatal)
        assert project.run().returncode == 1
        project.live()
        assert project.build() == (alone, True), fatal


def test_what_was_not_built_anew_to_the_end_is_still_not_trusted(project: Project) -> None:
    alone, _ = project.build()
    ruin(project)
    (project.tree / "one.c").write_text("error")
    assert project.run().returncode == 1
    (project.tree / "one.c").write_text("one")
    assert project.build() == (alone, True)


def test_an_ordinary_failure_costs_no_rebuild(project: Project, long_run: bool) -> None:
    project.build()
    setup = (project.tree / "setup.py").read_text()
    mistakes = ["1 / 0", "raise SystemExit('a mistake')", "open('no such file')"]
    for mistake in mistakes if long_run else mistakes[:1]:
        (project.tree / "setup.py").write_text(mistake)
        assert project.run().returncode == 1
        (project.tree / "setup.py").write_text(setup)
        assert not project.build()[1]
        assert project.compiled() == []


# Told to build anew


#: Prints at the end what has become another in the environment, but for what setuptools sets.
CHANGED = """
import atexit, os
before = set(os.environ.items())
atexit.register(lambda: print({name for name, _ in before ^ set(os.environ.items())} - {"PLAT"}))
"""


@pytest.mark.parametrize("own", [None, "broken.cfg"])
def test_a_rebuild_leaves_environment_and_temporary_directory_as_they_were(
    project: Project, temp_dir: Path, own: str | None
) -> None:
    (project.tree / "broken.cfg").write_text("no section\n")
    ruin(project)
    before = sorted(temp_dir.iterdir())
    environ = {} if own is None else {"DIST_EXTRA_CONFIG": own}
    done = project.run(prelude=CHANGED, environ=environ)
    assert ANEW in done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    assert sorted(temp_dir.iterdir()) == before
    theirs = project.run(backend=SETUPTOOLS, environ=environ)
    assert done.returncode == theirs.returncode
    assert done.returncode == 0 or done.stderr.splitlines()[-1] == theirs.stderr.splitlines()[-1]


def test_a_users_own_extra_configuration_stays_in_force(project: Project, tmp_path: Path) -> None:
    own = tmp_path / "own.cfg"
    text = "[build]\nparallel = 1\n[bdist_wheel]\nbuild_number = 7\n[aliases]\nodd = é 50%%\n"
    own.write_text(text, encoding="utf-8")
    ruin(project)
    assert project.build(environ={"DIST_EXTRA_CONFIG": str(own)})[1]
    [wheel] = project.out.iterdir()
    assert wheel.name.startswith("sample-1-7-")
    assert own.read_text(encoding="utf-8") == text


def test_read_only_files_are_built_anew_and_nothing_else_there_is_touched(
    project: Project, tmp_path: Path
) -> None:
    alone, _ = project.build()
    ruin(project)
    build = project.tree / "build"
    for path in filter(Path.is_file, build.rglob("*")):
        path.chmod(0o444)
    [temp] = build.glob("temp*")
    own = [temp / "CMakeCache.txt", temp / "own.o", build / "bdist.own" / "file"]
    own += [build / "lib" / "own.py", tmp_path / "precious" / "file"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("own")
    staging = next(build.glob("bdist*/wheel"))
    shutil.rmtree(staging)
    staging.symlink_to(tmp_path / "precious")
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in own]
    assert project.build(prefix=WITHOUT_ROOTS_RIGHTS) == (alone, True)
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in own] == before


# The marks


#: Another user, who may read what root may: the interpreter may be in root's home.
AS_OTHER = (
    *("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    *("--bounding-set=-all,+dac_read_search,+setpcap", "sh", "-c", 'umask 0; exec "$0" "$@"'),
)


@pytest.mark.skipif(not WITHOUT_ROOTS_RIGHTS, reason="only root can be two users (setpriv(1))")
def test_the_mark_of_one_user_is_cleared_by_another(
    project: Project, tmp_path: Path, temp_dir: Path
) -> None:
    alone, _ = project.build()
    ruin(project)
    temp_dir.chmod(0o1777)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o011)
    for path in (tmp_path, *tmp_path.rglob("*")):
        if temp_dir not in (path, *path.parents):
            path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
    assert project.build(prefix=AS_OTHER) == (alone, True)
    assert project.build() == (alone, False)


def test_where_no_mark_can_be_written_builds_go_on(project: Project, temp_dir: Path) -> None:
    right = project.build()[0], False
    lock_file = source_tree_lock(project.tree).lock_file
    lock_file.chmod(0o444)
    assert project.build(prefix=WITHOUT_ROOTS_RIGHTS) == right
    lock_file.chmod(0o666)
    os.link(lock_file, temp_dir / "other")
    assert project.build() == right
    shutil.rmtree(temp_dir)
    assert project.build() == right
