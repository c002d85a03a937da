"""Killed builds: none poisons a later one, and no build fails for the cleaning."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from projects import Content, archives, content, make_project
from support import LIMIT, WITHOUT_ROOTS_RIGHTS, write_project

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills builds by SIGKILL")

BACKEND = "source_tree_lock.build_meta"

FINISHED = Path("build", ".source-tree-lock-finished")
BUILD = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
from {backend} import {hook} as hook
hook(*sys.argv[1:])
"""


def run_build(
    tree: Path,
    out: Path | None,
    hook: str = "build_wheel",
    *,
    backend: str = BACKEND,
    prelude: str = "",
    prefix: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A hook in a process, and a process group, of its own."""
    code = prelude + BUILD.format(backend=backend, hook=hook)
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *([str(out)] if out else [])],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, **(environ or {})},
        start_new_session=True,
    )


def build(
    tree: Path, out: Path | None, hook: str = "build_wheel", prelude: str = ""
) -> tuple[int, str]:
    """Exit status, and what the library logged."""
    done = run_build(tree, out, hook, prelude=prelude)
    logged = [line for line in done.stderr.splitlines() if line.startswith("source_tree_lock: ")]
    return done.returncode, "\n".join(logged)


def built(tree: Path, out: Path, hook: str = "build_wheel") -> Content:
    """What the archive of a build that has to succeed holds."""
    shutil.rmtree(out, ignore_errors=True)
    assert build(tree, out, hook)[0] == 0
    [archive] = archives(out)
    return content(archive)


#: A compiler that copies. It fails on what has an error; where it is told to, it cuts an output
#: short and dies, with its whole process group or alone.
FAKE_COMPILER = """#!/bin/sh
work=$(dirname "$0")
sources=
for each; do
  case $last in -c) source=$each;; -o) out=$each;; esac
  case $each in *.o) [ "$last" = -o ] || sources="$sources $each";; esac
  case $each in -l*) sources="$sources $(ls build/temp*/lib${each#-l}.a)";; esac
  last=$each
done
case " $* " in
  *" -c "*)
    echo "$source" >> "$work/compiled"
    grep -q error "$source" && exit 1
    cat "$source" > "$out";;
  *) cat $sources > "$out";;
esac
[ -e "$work/cut" ] && case $out in *$(cat "$work/cut")*)
  : > "$out"
  rm "$work/cut"
  [ -e "$work/alone" ] && kill -9 $$
  kill -9 0;;
esac
exit 0
"""
FAKE_ARCHIVER = """#!/bin/sh
shift
out=$1
shift
cat "$@" > "$out"
"""


class Compiler:
    """A fake one, so that a build can be cut short where a test wants it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        for name, text in (("cc", FAKE_COMPILER), ("ar", FAKE_ARCHIVER)):
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)
        self._directory = directory
        self._environ = {
            "CC": str(directory / "cc"),
            "LDSHARED": str(directory / "cc"),
            "AR": str(directory / "ar"),
        }

    def run(self, tree: Path, backend: str = BACKEND) -> tuple[int, int]:
        """Build a wheel: its exit status, and how many objects were compiled for it."""
        log = self._directory / "compiled"
        log.write_text("")
        shutil.rmtree(self._directory / "out", ignore_errors=True)
        out = self._directory / "out"
        done = run_build(tree, out, backend=backend, environ=self._environ)
        return done.returncode, len(log.read_text().split())

    def build(self, tree: Path) -> Path:
        """The wheel of a build that has to succeed."""
        assert self.run(tree)[0] == 0
        [wheel] = archives(self._directory / "out")
        return wheel

    def die_at(self, output: str, *, alone: bool = False) -> None:
        """Have the next build die while it writes this; or, alone, the compiler in it."""
        (self._directory / "cut").write_text(output)
        if alone:
            (self._directory / "alone").touch()

    def extension(self, wheel: Path, name: str) -> str:
        """What the wheel has for an extension: the text of its sources."""
        with zipfile.ZipFile(wheel) as archive:
            [found] = [each for each in archive.namelist() if each.startswith(f"{name}.")]
            return archive.read(found).decode()


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    return Compiler(tmp_path / "compiler")


def make_extensions(tree: Path, *sources: str, libraries: str = "[]") -> None:
    """A project with an extension for each source, whose text is its path."""
    extensions = ", ".join(f"Extension({Path(each).stem!r}, [{each!r}])" for each in sources)
    (tree / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        f"setup(name='sample', version='1', py_modules=[], libraries={libraries},\n"
        f"      ext_modules=[{extensions}])\n"
    )
    for each in sources:
        path = tree / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(each)


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
    (tree / FINISHED).touch()
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


def state(*directories: Path) -> dict[str, tuple[int, int, int]]:
    """Of all that is below: mode, inode and time of the last change."""
    found = {}
    for directory in directories:
        for path in (directory, *directory.rglob("*")):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns)
    return found


def test_a_projects_own_files_of_the_same_names_stay(tree: Path, tmp_path: Path) -> None:
    """It may build elsewhere, and have sources where setuptools would build."""
    write_project(tree)
    (tree / "setup.cfg").write_text("[build]\nbuild_base = elsewhere\n")
    for name in ("lib", "lib.own", "temp.own"):
        path = tree / "build" / name / "own.py"
        path.parent.mkdir(parents=True)
        path.write_text("own")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    (tree / "build" / "lib" / "link.py").symlink_to(elsewhere)
    before = state(tree / "build", elsewhere)
    assert "sample.py" in built(tree, tmp_path / "out")
    assert state(tree / "build", elsewhere) == before


def test_sources_in_build_lib_are_built_by_their_own_times(tree: Path, compiler: Compiler) -> None:
    """Of a project that builds elsewhere: an edit is in the next wheel, and the file as it was."""
    make_extensions(tree, "build/lib/one.c")
    (tree / "setup.cfg").write_text("[build]\nbuild_base = elsewhere\n")
    compiler.build(tree)
    (tree / "build" / "lib" / "one.c").write_text("edited")
    before = state(tree / "build")
    assert compiler.extension(compiler.build(tree), "one") == "edited"
    assert state(tree / "build") == before


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


# Builds that were cut short in the compiler


def finished(tree: Path) -> bool:
    return (tree / FINISHED).exists()


def test_an_extension_that_was_half_linked_is_linked_again(tree: Path, compiler: Compiler) -> None:
    make_extensions(tree, "one.c", "two.c")
    compiler.die_at("lib.")
    assert compiler.run(tree)[0] == -signal.SIGKILL
    [half] = tree.glob("build/lib.*/one.*")
    assert half.read_text() == ""
    wheel = compiler.build(tree)
    assert compiler.extension(wheel, "one") == "one.c"
    assert finished(tree)
    assert compiler.run(tree) == (0, 0), "the rebuilt is trusted"


#: Where a project may say that setuptools builds in `out`.
ELSEWHERE = {
    "setup.cfg": "[metadata]\nname = sample\n[build]\nbuild_base = out\n",
    "pyproject.toml": (
        '[project]\nname = "sample"\nversion = "1"\n[tool.distutils.build]\nbuild-base = "out"\n'
    ),
    "extra.cfg": "[build]\nbuild_base = ./out/../out\n",
}


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("staged", [False, True], ids=["linked", "staged"])
def test_a_build_that_is_killed_elsewhere_than_in_build_poisons_none_either(
    tree: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, where: str, staged: bool
) -> None:
    make_extensions(tree, "one.c")
    (tree / where).write_text(ELSEWHERE[where])
    if where == "extra.cfg":
        monkeypatch.setenv("DIST_EXTRA_CONFIG", str(tree / where))
    compiler.die_at("lib.")
    assert compiler.run(tree)[0] == -signal.SIGKILL
    [half] = tree.glob("out/lib.*/one.*")
    assert half.read_text() == ""
    if staged:
        left = tree / "out" / "bdist.linux-x86_64" / "wheel" / "two.py"
        left.parent.mkdir(parents=True)
        left.touch()
    wheel = compiler.build(tree)
    assert compiler.extension(wheel, "one") == "one.c"
    assert "two.py" not in content(wheel)
    assert (tree / "out" / FINISHED.name).exists()
    assert compiler.run(tree) == (0, 0), "the rebuilt is trusted"


@pytest.mark.parametrize("base", [".", "..", "../beside", "{tmp_path}/beside"])
def test_where_other_trees_may_build_nothing_is_cleaned(
    tree: Path, tmp_path: Path, base: str
) -> None:
    write_project(tree)
    base = base.format(tmp_path=tmp_path)
    (tree / "setup.cfg").write_text(f"[build]\nbuild_base = {base}\n")
    theirs = tree / base / "bdist.linux-x86_64" / "wheel of another" / "theirs.py"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert "sample.py" in built(tree, tmp_path / "out")
    assert theirs.exists()


def test_plain_setuptools_that_is_killed_after_a_build_of_ours_poisons_none(
    tree: Path, compiler: Compiler
) -> None:
    make_extensions(tree, "one.c")
    compiler.build(tree)
    assert finished(tree)
    (tree / "one.c").write_text("newer")
    compiler.die_at("lib.")
    assert compiler.run(tree, "setuptools.build_meta")[0] == -signal.SIGKILL
    assert finished(tree), "the mark stands"
    assert compiler.extension(compiler.build(tree), "one") == "newer"


def test_a_static_library_that_was_half_made_is_made_again(tree: Path, compiler: Compiler) -> None:
    """setuptools keeps its objects even where it is told to build all anew."""
    make_extensions(tree, "one.c", libraries="[('both', {'sources': ['three.c', 'two.c']})]")
    for name in ("three.c", "two.c"):
        (tree / name).write_text(name)
    compiler.die_at("two.o")
    assert compiler.run(tree)[0] == -signal.SIGKILL
    assert compiler.extension(compiler.build(tree), "one") == "one.cthree.ctwo.c"


def test_a_linker_that_is_killed_poisons_no_later_build(tree: Path, compiler: Compiler) -> None:
    """The build itself goes on to fail: a machine short of memory kills the largest process."""
    make_extensions(tree, "one.c")
    compiler.die_at("lib.", alone=True)
    assert compiler.run(tree)[0] == 1
    [half] = tree.glob("build/lib.*/one.*")
    assert half.read_text() == ""
    assert compiler.extension(compiler.build(tree), "one") == "one.c"


@pytest.mark.parametrize(
    "error", ["KeyboardInterrupt()", "MemoryError()", f"OSError({errno.ENOSPC}, 'disk full')"]
)
def test_a_copy_that_was_cut_short_by_an_error_poisons_no_later_build(
    tree: Path, tmp_path: Path, error: str
) -> None:
    write_project(tree)
    alone = built(tree, tmp_path / "out")
    shutil.rmtree(tree / "build")
    cut = f"""
import os
from distutils import file_util
def cut(source, target, *rest, **more):
    open(target, "w").close()
    raise {error}
if os.path.exists("../cut"):
    file_util._copy_file_contents = cut
"""
    write_project(tree, cut)
    (tmp_path / "cut").touch()
    assert build(tree, tmp_path / "out")[0] != 0
    assert (tree / "build" / "lib" / "sample.py").read_text() == ""
    (tmp_path / "cut").unlink()
    assert built(tree, tmp_path / "out") == alone


def test_a_failing_rebuild_does_not_count_as_finished(tree: Path, compiler: Compiler) -> None:
    make_extensions(tree, "one.c", "two.c")
    compiler.die_at("two.cpython")
    assert compiler.run(tree)[0] == -signal.SIGKILL
    (tree / "one.c").write_text("error")
    assert compiler.run(tree)[0] == 1
    assert not finished(tree)
    (tree / "one.c").write_text("corrected")
    wheel = compiler.build(tree)
    assert compiler.extension(wheel, "one") == "corrected"
    assert compiler.extension(wheel, "two") == "two.c"


# What a build costs that failed


def test_a_failed_build_costs_what_it_costs_setuptools(tree: Path, compiler: Compiler) -> None:
    """It is no killed one: after the correction, what was compiled before is kept."""
    sources = [f"m{number}.c" for number in range(4)]
    costs = []
    for backend in ("setuptools.build_meta", BACKEND):
        shutil.rmtree(tree / "build", ignore_errors=True)
        make_extensions(tree, *sources)
        runs = []
        for text in ("error", "right", "right", "error", "right!"):
            (tree / "m3.c").write_text(text)
            os.utime(tree / "m3.c", (0, 1e9 if text == "right" else 2e9))  # by time, not by luck
            runs.append(compiler.run(tree, backend))
        costs.append(runs)
    assert costs[1] == costs[0]
    assert costs[0][:3] == [(1, 4), (0, 1), (0, 0)]


def test_a_setup_py_that_fails_costs_no_rebuild(tree: Path, compiler: Compiler) -> None:
    make_extensions(tree, "one.c")
    compiler.build(tree)
    setup = (tree / "setup.py").read_text()
    (tree / "setup.py").write_text("raise SystemExit('a mistake')")
    assert compiler.run(tree) == (1, 0)
    (tree / "setup.py").write_text(setup)
    assert compiler.run(tree) == (0, 0)


# The way that setuptools is told


@pytest.fixture
def cut_short(tree: Path) -> Path:
    """A project whose last build left half a module."""
    write_project(tree)
    (tree / "build" / "lib").mkdir(parents=True)
    (tree / "build" / "lib" / "sample.py").touch()
    return tree


def packed(tree: Path, out: Path) -> bool:
    """Whether the module in the wheel is the whole one."""
    [wheel] = archives(out)
    return content(wheel)["sample.py"] == content_of(tree / "sample.py")


def content_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("section", ["", "[build]\nForce = 0\nforce = 0\nparallel = 1\n"])
def test_a_users_own_extra_configuration_stays_in_force(
    cut_short: Path, tmp_path: Path, temp_dir: Path, section: str
) -> None:
    own = tmp_path / "own.cfg"
    text = f"{section}[bdist_wheel]\nbuild-number = 7\n[aliases]\nodd = é 50%%\n  more\n"
    own.write_text(text, encoding="utf-8")
    tell = "import atexit, os; atexit.register(lambda: print(os.environ['DIST_EXTRA_CONFIG']))\n"
    done = run_build(
        cut_short, tmp_path / "out", prelude=tell, environ={"DIST_EXTRA_CONFIG": str(own)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(own)
    [wheel] = archives(tmp_path / "out")
    assert wheel.name.startswith("sample-1-7-")
    assert packed(cut_short, tmp_path / "out")
    assert own.read_text(encoding="utf-8") == text
    assert not list(temp_dir.glob("*.cfg"))


@pytest.mark.parametrize("own", [None, "", "/no/such/file", "/dev/null"])
@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_a_rebuild_leaves_the_environment_and_the_temp_directory_as_they_were(
    cut_short: Path, tmp_path: Path, temp_dir: Path, own: str | None, ends: str
) -> None:
    if ends == "in an error":
        write_project(cut_short, "raise SystemExit(3)")
    tell = "import atexit, os; atexit.register(lambda: print(os.environ.get('DIST_EXTRA_CONFIG')))"
    environ = {} if own is None else {"DIST_EXTRA_CONFIG": own}
    done = run_build(cut_short, tmp_path / "out", prelude=tell, environ=environ)
    assert (done.returncode == 0) == (ends == "well")
    assert done.stdout.splitlines()[-1] == str(own)
    assert not list(temp_dir.glob("*.cfg"))
    if ends == "well":
        assert packed(cut_short, tmp_path / "out")


def test_a_users_configuration_that_cannot_be_read_is_setuptools_affair(
    cut_short: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.cfg"
    own.write_text("no section\n")
    ours, theirs = (
        run_build(
            cut_short, tmp_path / "out", backend=backend, environ={"DIST_EXTRA_CONFIG": str(own)}
        )
        for backend in (BACKEND, "setuptools.build_meta")
    )
    assert ours.returncode == theirs.returncode == 1
    assert ours.stderr.splitlines()[-1] == theirs.stderr.splitlines()[-1]


def test_a_build_that_cannot_be_forced_goes_on_as_setuptools_would(
    cut_short: Path, tmp_path: Path
) -> None:
    """There may be no temp directory, or a full one."""
    prelude = """
import tempfile
def full(*args, **kwargs):
    raise OSError(28, "disk full")
tempfile.mkstemp = full
"""
    status, logged = build(cut_short, tmp_path / "out", prelude=prelude)
    assert (status, "disk full" in logged) == (0, True)
    assert not finished(cut_short), "the next build may be able to"
    assert built(cut_short, tmp_path / "out")["sample.py"] == content_of(cut_short / "sample.py")


# What is not ours to write


def same_as_setuptools(
    tree: Path, tmp_path: Path, *, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Build with setuptools and with ours, each in a copy of the tree; the build of ours."""
    done, wheels = {}, {}
    for backend in ("setuptools.build_meta", BACKEND):
        copy, out = tmp_path / f"tree of {backend}", tmp_path / f"out of {backend}"
        subprocess.run(["cp", "-a", tree, copy], check=True)
        out.mkdir()
        out.chmod(0o777)
        done[backend] = run_build(copy, out, backend=backend, prefix=prefix)
        wheels[backend] = [content(wheel) for wheel in archives(out)]
    ours, theirs = done[BACKEND], done["setuptools.build_meta"]
    if theirs.returncode == 0:
        assert ours.returncode == 0, ours.stderr
        assert wheels[BACKEND] == wheels["setuptools.build_meta"]
    else:
        assert ours.stderr.splitlines()[-1] == theirs.stderr.splitlines()[-1]
    return ours


@pytest.mark.parametrize("where", ["build/lib", "build/lib/sample.py", "build", "."])
def test_what_may_not_be_written_is_left_to_setuptools(
    cut_short: Path, tmp_path: Path, where: str
) -> None:
    os.utime(cut_short / "sample.py", (0, 0))
    for path in (cut_short / where).rglob("*") if where == "." else ():
        path.chmod(path.stat().st_mode & ~0o222)
    (cut_short / where).chmod((cut_short / where).stat().st_mode & ~0o222)
    ours = same_as_setuptools(cut_short, tmp_path, prefix=WITHOUT_ROOTS_RIGHTS)
    assert not finished(tmp_path / f"tree of {BACKEND}")
    assert (ours.returncode == 0) == (where in ("build/lib", "build/lib/sample.py"))


needs_two_users = pytest.mark.skipif(
    not WITHOUT_ROOTS_RIGHTS or shutil.which("setpriv") is None,
    reason="only root can be two users, by Linux' setpriv(1)",
)
OWNER, OTHER, GROUP = 54321, 54322, 54320
#: Another user of the group. He may read what root may: the interpreter may be in root's home.
AS_OTHER = (
    *("setpriv", f"--reuid={OTHER}", f"--regid={GROUP}", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    *("--bounding-set=-all,+dac_read_search,+setpcap", "sh", "-c", 'umask 002; exec "$0" "$@"'),
)
IN_USER_NAMESPACE = ("unshare", "--user", "--map-root-user")


@pytest.fixture
def open_to_all(tmp_path: Path, temp_dir: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o011)
    for path in (tmp_path, temp_dir):
        path.chmod(0o1777)


@needs_two_users
@pytest.mark.usefixtures("open_to_all")
@pytest.mark.parametrize("how", ["a shared group", "an ACL"])
@pytest.mark.parametrize("last", ["finished", "killed"])
def test_a_tree_that_two_users_share_is_built_by_either(
    tree: Path, tmp_path: Path, how: str, last: str
) -> None:
    if how == "an ACL" and shutil.which("setfacl") is None:
        pytest.skip("needs setfacl(1)")
    write_project(tree)
    right = built(tree, tmp_path / "first")
    (tree / FINISHED).unlink()
    if last == "killed":
        (tree / "build" / "lib" / "sample.py").write_text("")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, OWNER, 0 if how == "an ACL" else GROUP)
        path.chmod((0o755, 0o644, 0o2775, 0o664)[2 * (how != "an ACL") + path.is_file()])
    if how == "an ACL":
        subprocess.run(["setfacl", "-R", "-m", f"u:{OTHER}:rwX", tree], check=True)
        subprocess.run(["setfacl", "-R", "-d", "-m", f"u:{OTHER}:rwX", tree], check=True)
    if last == "finished":
        same_as_setuptools(tree, tmp_path, prefix=AS_OTHER)
    out = tmp_path / "out"
    done = run_build(tree, out, prefix=AS_OTHER)
    assert done.returncode == 0, done.stderr
    [wheel] = archives(out)
    assert content(wheel) == right
    assert finished(tree)


@needs_two_users
@pytest.mark.usefixtures("open_to_all")
@pytest.mark.parametrize("who", ["another user", "root of a user namespace"])
def test_what_root_has_built_in_a_users_tree_is_left_to_setuptools(
    tree: Path, tmp_path: Path, who: str
) -> None:
    """As after ``sudo pip install .``, or in a container whose users are others."""
    prefix: tuple[str, ...] = AS_OTHER
    owner, builder = 0, OTHER
    if who != "another user":
        prefix, owner, builder = IN_USER_NAMESPACE, OWNER, 0
        tried = subprocess.run([*prefix, "true"], capture_output=True, timeout=LIMIT)
        if tried.returncode:
            pytest.skip(f"no user namespaces here: {tried.stderr.decode().strip()}")
    write_project(tree)
    run_build(tree, tmp_path / "first", backend="setuptools.build_meta")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, builder, builder)
    lib = tree / "build" / "lib"
    for path in (lib, *lib.rglob("*")):
        os.chown(path, owner, owner)
    ours = same_as_setuptools(tree, tmp_path, prefix=prefix)
    assert ours.returncode == 0, ours.stderr
    assert "is not ours to write" in ours.stderr


@pytest.mark.parametrize("what", ["a file", "a link to a directory", "a pipe in it", "a loop"])
def test_a_strange_build_directory_is_left_to_setuptools(
    tree: Path, tmp_path: Path, what: str
) -> None:
    write_project(tree)
    if what == "a file":
        (tree / "build").write_text("#!/bin/sh\n")
    elif what == "a loop":
        (tree / "build").symlink_to("build")
    elif what == "a link to a directory":
        (tmp_path / "scratch" / "lib").mkdir(parents=True)
        (tree / "build").symlink_to(tmp_path / "scratch")
    else:
        (tree / "build" / "lib").mkdir(parents=True)
        os.mkfifo(tree / "build" / "lib" / "pipe.py")
        os.mkfifo(tree / "build" / "lib" / "tmp")
    same_as_setuptools(tree, tmp_path)


def test_a_link_in_the_staging_is_removed_and_not_followed(tree: Path, tmp_path: Path) -> None:
    write_project(tree)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").touch()
    staging = tree / "build" / "bdist.linux-x86_64"
    staging.mkdir(parents=True)
    (staging / "wheel").symlink_to(mine)
    assert "precious" not in built(tree, tmp_path / "out")
    assert (mine / "precious").exists()
