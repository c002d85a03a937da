"""A build that was cut short spoils none after it, and what is built anew is told."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
from support import WITHOUT_ROOTS_RIGHTS, long_after

from source_tree_lock import source_tree_lock

from .building import ANEW, OURS, SETUPTOOLS, Project

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills builds by SIGKILL")

#: Ruins a build when it writes a file {name} for the {moment}th time: that is left empty, and all
#: that it has made so far are cut in half and look newer than their sources, unless any name will
#: do: one write gives such small files all that they have. Then it {ends}.
RUIN = """
import atexit, os, signal, sys
tops = tuple(os.path.abspath(top) + os.sep for top in (".", "../out"))
def files():
    return {{os.path.join(top, name) for each in tops for top, _, names in os.walk(each)
             for name in names}}
before, times = files(), 0
def ruin(event, arguments):
    global times
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path = os.path.abspath(os.fsdecode(arguments[0]))
    # A directory is opened to be written where a temporary file is tried without a name.
    if not (arguments[2] & os.O_ACCMODE and path.startswith(tops)) or os.path.isdir(path):
        return
    times += os.path.basename(path).startswith("{name}")
    if times == {moment}:
        open(path, "w").close()
        for path in files() - before if "{name}" else ():
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

#: How the build directory is named: by which file, or how else, and with which text.
WAYS = {
    "not at all": ("setup.cfg", ""),
    "base outside": ("setup.cfg", "[build]\nbuild_base = ../out"),
    "pyproject.toml": ("pyproject.toml", "[tool.distutils.build]\nbuild_base = 'out'"),
    "a command": ("settings", "build --build-base=../out"),
    "base": ("setup.cfg", "[build]\nbuild_base = out"),
    "lib": ("setup.cfg", "[build]\nbuild_lib = out"),
    "temp": ("setup.cfg", "[build]\nbuild_temp = out"),
    "purelib and platlib": ("setup.cfg", "[build]\nbuild_purelib = o\nbuild_platlib = p"),
    "staging": ("setup.cfg", "[bdist_wheel]\nbdist_dir = ../out/wheel"),
    "staging's base": ("setup.cfg", "[bdist]\nbdist_base = out"),
    "not forced": (
        "setup.cfg",
        "".join(f"[build{which}]\nforce = 0\n" for which in ("", "_py", "_ext", "_clib")),
    ),
    "not forced by pyproject.toml": (
        "pyproject.toml",
        "[tool.distutils.build]\nforce = '0'\n[tool.distutils.build_clib]\nforce = '0'\n",
    ),
    "DIST_EXTRA_CONFIG": ("../extra.cfg", "[build]\nbuild_base = out\nForce = 0\nforce = 0"),
    "~": ("../.pydistutils.cfg", "[build]\nbuild_base = out"),
    "setup()": ("setup", "options={'build': {'build_base': 'out', 'force': '0'}},"),
    "its own distribution": (
        "setup",
        "distclass=type('Own', (Distribution,), {}), options={'bdist_wheel': {'bdist_dir': 'o'}},",
    ),
}


@pytest.mark.parametrize("way", long_after(1, WAYS))
def test_wherever_a_build_is_killed_the_next_one_is_right_and_says_so(
    project: Project, way: str
) -> None:
    settings = name_build_directory(project, *WAYS[way])
    alone, _ = project.build(settings=settings)
    everything = set(project.compiled())
    for name in ("out", "o", "p", "../out"):
        shutil.rmtree(project.tree / name, ignore_errors=True)
    assert ruin(project, settings=settings) == -signal.SIGKILL
    assert project.build(settings=settings) == (alone, True)
    assert set(project.compiled()) == everything
    assert project.build(settings=settings) == (alone, False)
    assert project.compiled() == [], "what was built anew is trusted"


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


@pytest.mark.long
def test_plain_setuptools_ships_what_the_ruined_build_left(project: Project) -> None:
    """So the test above tests something."""
    alone, _ = project.build()
    ruin(project, backend=SETUPTOOLS)
    assert project.build(backend=SETUPTOOLS)[0] != alone


HOOKS = ("build_wheel", "build_sdist", "build_editable")


@pytest.mark.long
def test_what_a_killed_build_of_each_hook_left_spoils_no_archive_and_is_all_in_the_tree(
    project: Project,
) -> None:
    project.write_setup("import os\nprint(*os.walk('.'), file=open('../seen', 'a'))")
    (project.tree / "MANIFEST.in").write_text("include *.txt\n")
    alone = {hook: project.build(hook)[0] for hook in HOOKS}
    [extension] = project.tree.glob("one.*.so")
    for hook in HOOKS:
        (project.tree / "removed.txt").touch()
        assert ruin(project, hook) == -signal.SIGKILL
        (project.tree / "removed.txt").unlink()
        if hook == "build_editable":
            assert extension.read_text() == ""
            os.utime(extension, (2e9, 2e9))
        for each in dict.fromkeys((hook, *HOOKS)):
            assert project.build(each) == (alone[each], each == hook), (hook, each)
        assert list(project.tree.glob("sample-1*")) == []
    assert extension.read_text() == "onethreetwo"
    assert "source-tree-lock" not in (project.tree.parent / "seen").read_text(), "a mark"


@pytest.mark.long
@pytest.mark.parametrize("hook", ["build_wheel", "build_sdist", "get_requires_for_build_wheel"])
def test_a_build_that_is_killed_at_any_file_spoils_none(project: Project, hook: str) -> None:
    def start_over() -> None:
        for path in (project.tree / "build", project.tree / "sample.egg-info"):
            shutil.rmtree(path, ignore_errors=True)

    right = [project.build(each)[0] for each in ("build_sdist", "build_wheel")]
    start_over()
    counted = project.run(hook, prelude=RUIN.format(name="", moment=-1, ends=""))
    count = int(counted.stdout.split()[-1])
    for fatal in range(1, count + 1):
        start_over()
        prelude = RUIN.format(name="", moment=fatal, ends=KILLED)
        assert project.run(hook, prelude=prelude).returncode == -signal.SIGKILL
        after = [project.build(each)[0] for each in ("build_sdist", "build_wheel")]
        assert after == right, f"killed at file {fatal} of {count}"


OTHER_PYTHON = "import sys\nsys.implementation.cache_tag = 'other-99'\n"


@pytest.mark.long
def test_each_python_builds_anew_what_it_was_killed_in(project: Project) -> None:
    """Each builds extensions in directories of its own."""
    alone, _ = project.build()
    ruin(project)
    project.build("build_sdist")
    assert project.build(prelude=OTHER_PYTHON)[1], "they share a part"
    assert not project.build(prelude=OTHER_PYTHON)[1]
    assert project.build() == (alone, True)
    assert not project.build()[1]
    assert not project.build(prelude=OTHER_PYTHON)[1]


# How it ends

ENDS = (
    "raise KeyboardInterrupt",
    f"raise OSError({errno.ENOSPC}, 'no space')",
    "signal.signal(15, lambda *_: sys.exit(143)); signal.raise_signal(15)",
    f"raise OSError({errno.EFBIG}, 'no space')",
    "raise MemoryError",
    f"raise OSError({errno.EDQUOT}, 'no space')",
    f"raise OSError({errno.EIO}, 'broken')",
    "os.kill(os.getpid(), signal.SIGINT)",
    "os.kill(os.getpid(), signal.SIGTERM)",
    "os._exit(0)",
)


@pytest.mark.parametrize("ends", long_after(2, ENDS))
def test_what_may_leave_half_a_file_is_remembered(project: Project, ends: str) -> None:
    alone, _ = project.build()
    ruin(project, ends=ends)
    assert project.build() == (alone, True)
    assert project.build() == (alone, False)


@pytest.mark.long
def test_a_linker_or_compiler_that_is_killed_is_remembered(project: Project) -> None:
    alone, _ = project.build()
    # The last is a linker that is killed below a compiler, which survives it.
    for at, by in ("one.cpython", "kill -9 $$"), ("two.o", "kill -9 $$"), ("one.cpython", "exit 1"):
        shutil.rmtree(project.tree / "build")
        assert project.run(environ={"DIE_AT": at, "DIE_BY": by}).returncode == 1
        assert project.build() == (alone, True), (at, by)


@pytest.mark.long
def test_what_was_not_built_anew_to_the_end_is_still_not_trusted(project: Project) -> None:
    alone, _ = project.build()
    ruin(project)
    (project.tree / "one.c").write_text("error")
    assert project.run().returncode == 1
    (project.tree / "one.c").write_text("one")
    assert project.build() == (alone, True)


@pytest.mark.once
@pytest.mark.parametrize(
    "mistake", long_after(1, ["raise SystemExit('a mistake')", "1 / 0", "open('no such file')"])
)
def test_an_ordinary_failure_costs_no_rebuild(project: Project, mistake: str) -> None:
    project.build()
    project.write_setup(mistake)
    assert project.run().returncode == 1
    project.write_setup()
    assert not project.build()[1]
    assert project.compiled() == []


# Told to build anew

CHANGED = """
import atexit, os
before = {**os.environ, "PLAT": ""}  # which setuptools sets
atexit.register(lambda: print(dict({**os.environ, "PLAT": ""}.items() ^ before.items())))
"""


@pytest.mark.once
@pytest.mark.parametrize("own", long_after(1, [None, "/no/such/file", "broken"]))
def test_a_rebuild_leaves_environment_and_temporary_directory_as_they_were(
    project: Project, tmp_path: Path, temp_dir: Path, own: str | None
) -> None:
    if own == "broken":
        own = str(tmp_path / "own.cfg")
        Path(own).write_text("no section\n")
    ruin(project)
    before = sorted(temp_dir.iterdir())
    environ = {"DIST_EXTRA_CONFIG": own} if own else {}
    done = project.run(prelude=CHANGED, environ=environ)
    assert ANEW in done.stderr
    assert done.stdout.splitlines()[-1] == "{}"
    assert sorted(temp_dir.iterdir()) == before
    theirs = project.run(backend=SETUPTOOLS, environ=environ)
    assert done.returncode == theirs.returncode
    assert done.returncode == 0 or done.stderr.splitlines()[-1] == theirs.stderr.splitlines()[-1]


def test_a_users_own_extra_configuration_stays_in_force(project: Project, tmp_path: Path) -> None:
    own = tmp_path / "own.cfg"
    text = (
        "[build]\nbuild_base = b\n[bdist_wheel]\nbuild_number = 7\n[aliases]\nodd = é 50%%\n more"
    )
    own.write_text(text, encoding="utf-8")
    ruin(project)
    assert project.build(environ={"DIST_EXTRA_CONFIG": str(own)})[1]
    [wheel] = project.out.iterdir()
    assert wheel.name.startswith("sample-1-7-")
    assert (project.tree / "b").is_dir()
    assert own.read_text(encoding="utf-8") == text


@pytest.mark.long
def test_children_of_a_setup_py_build_anew_too(project: Project) -> None:
    child = "subprocess.check_call([sys.executable, 'setup.py', 'build_ext'])"
    again = f"if 'C' not in os.environ:\n    os.environ['C'] = '1'; {child}; del os.environ['C']\n"
    project.write_setup(f"import os, subprocess, sys\n{again}")
    project.build()
    ruin(project, environ={"C": "1"})
    project.build()
    assert project.compiled().count("one.c") == 2


@pytest.mark.long
def test_files_that_may_only_be_read_are_built_anew_and_nothing_else_is_touched(
    project: Project, tmp_path: Path
) -> None:
    alone, _ = project.build()
    ruin(project)
    [temp] = project.tree.glob("build/temp*")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    own = [temp / "CMakeCache.txt", project.tree / "build" / "bdist.own" / "file"]
    own += [project.tree / "build" / "lib" / "own.py", temp / "own.o"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("own")
    for path in (project.tree / "build").rglob("*.*"):
        if path.is_file():
            path.chmod(0o444)
    staging = next(project.tree.glob("build/bdist*/wheel"))
    shutil.rmtree(staging)
    staging.symlink_to(precious)
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in own]
    assert project.build(prefix=WITHOUT_ROOTS_RIGHTS) == (alone, True)
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in own] == before
    assert (precious / "file").exists()


# The marks

OTHER = 54321
#: Another user, who may read what root may: the interpreter may be in root's home.
AS_OTHER = (
    *("setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    *("--bounding-set=-all,+dac_read_search,+setpcap", "sh", "-c", 'umask 0; exec "$0" "$@"'),
)


@pytest.mark.once
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


@pytest.mark.once
@pytest.mark.parametrize("way", long_after(1, ["read-only", "another name", "no directory"]))
def test_where_no_mark_can_be_written_builds_go_on(
    project: Project, temp_dir: Path, way: str
) -> None:
    alone, _ = project.build()
    lock_file = source_tree_lock(project.tree).lock_file
    if way == "read-only":
        lock_file.chmod(0o444)
    elif way == "another name":
        os.link(lock_file, temp_dir / "other")
    else:
        shutil.rmtree(temp_dir)
    for _ in range(2):
        assert project.build(prefix=WITHOUT_ROOTS_RIGHTS) == (alone, False)


@pytest.mark.once
def test_what_a_setup_py_builds_in_its_own_tree_gets_in(project: Project) -> None:
    """And keeps no marks of its own."""
    project.write_setup(
        f"import os, subprocess, sys\ninner = 'import {OURS} as b; b.build_wheel(\"../inner\")'\n"
        "if 'INNER' not in os.environ:\n"
        "    os.environ['INNER'] = '1'\n"
        "    subprocess.run([sys.executable, '-c', inner], check=True)\n"
        "    if 'DIE' in os.environ: os.kill(os.getpid(), 9)\n"
    )
    assert not project.build()[1]
    assert len(list(project.tree.parent.glob("inner/*.whl"))) == 1
    assert project.run(environ={"DIE": "1"}).returncode == -signal.SIGKILL
    assert project.build()[1]
