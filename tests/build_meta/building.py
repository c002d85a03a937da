"""A project that needs a compiler, a compiler that copies, and builds in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from projects import Content, archives, content
from support import LIMIT

OURS = "source_tree_lock.build_meta"
SETUPTOOLS = "setuptools.build_meta"
#: What stderr says when a build does not trust what the last one left.
ANEW = "was cut short"

#: It writes down what it compiles, and refuses a source with an error. At the output that DIE_AT is
#: part of, it leaves half of that and does as DIE_BY says.
_COMPILER = """#!/bin/sh
work=$(dirname "$0")
sources=
library=
for each; do
  case $last in -c) source=$each;; -o) out=$each;; esac
  case $each in *.o) [ "$last" = -o ] || sources="$sources $each";; esac
  case $each in -L*) library=$(ls ${each#-L}/lib*.a 2> /dev/null || echo "$library");; esac
  last=$each
done
[ -z "$DIE_AT" ] || case $out in *$DIE_AT*) : > "$out"; eval "$DIE_BY";; esac
case " $* " in *" -c "*) echo "$source" >> "$work/compiled"; sources=$source library=;; esac
rm -f "$out"
grep -q error $sources && exit 1
grep -q refuse $sources && case $out in *.so) exit 1;; esac
cat $sources $library > "$out"
"""
_ARCHIVER = '#!/bin/sh\nshift\nout=$1\nshift\ncat "$@" > "$out"\n'

_SETUP = """\
from setuptools import Distribution, Extension, setup
setup(
    name="sample", version="1", py_modules=["sample"], {more}
    libraries=[("both", {{"sources": ["three.c", "two.c"]}})],
    ext_modules=[Extension(name, [name + ".c"]) for name in {extensions}],
)
"""

_BUILD = """
import sys
from {backend} import {hook} as hook
hook(*sys.argv[1:], {settings})
"""


class Project:
    """Its tree, and where its wheels go; its sources are their own names."""

    def __init__(self, directory: Path, extensions: tuple[str, ...] = ("one",)) -> None:
        self.tree = directory / "tree"
        self.out = directory / "archives"
        self._tools = directory / "tools"
        self._extensions = extensions
        for path in (self.tree, self._tools):
            path.mkdir(parents=True, exist_ok=True)
        for name, text in (("cc", _COMPILER), ("ar", _ARCHIVER)):
            (self._tools / name).write_text(text)
            (self._tools / name).chmod(0o755)
        (self.tree / "sample.py").write_text("ANSWER = 42\n")
        for name in (*extensions, "two", "three"):
            (self.tree / f"{name}.c").write_text(name)
        self.write_setup()
        self.environ = {
            **dict.fromkeys(("CC", "LDSHARED"), str(self._tools / "cc")),
            "AR": str(self._tools / "ar"),
            "HOME": str(directory),
            "SOURCE_DATE_EPOCH": "1700000000",
        }

    def write_setup(self, before: str = "", more: str = "") -> None:
        text = _SETUP.format(more=more, extensions=self._extensions)
        (self.tree / "setup.py").write_text(f"{before}\n{text}")

    def run(
        self,
        hook: str = "build_wheel",
        *,
        backend: str = OURS,
        prelude: str = "",
        prefix: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        settings: object = None,
    ) -> subprocess.CompletedProcess[str]:
        """A hook in a process, and a process group, of its own."""
        (self._tools / "compiled").write_text("")
        shutil.rmtree(self.out, ignore_errors=True)
        arguments = [] if "_for_" in hook else [str(self.out)]
        code = prelude + _BUILD.format(backend=backend, hook=hook, settings=settings)
        return subprocess.run(
            [*prefix, sys.executable, "-c", code, *arguments],
            cwd=self.tree,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={**os.environ, **self.environ, **(environ or {})},
            start_new_session=True,
        )

    def build(self, hook: str = "build_wheel", **options: object) -> tuple[Content, bool]:
        """What a build that has to succeed gives, and whether it said that it builds anew."""
        done = self.run(hook, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        [archive] = archives(self.out)
        return content(archive), ANEW in done.stderr

    def compiled(self) -> list[str]:
        """What the last build has compiled."""
        return sorted((self._tools / "compiled").read_text().split())
