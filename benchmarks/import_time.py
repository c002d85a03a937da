"""What it costs to import the library, and what the first acquisition and the first wait add.

Each time is taken in a new interpreter, which has imported something else before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from statistics import median

from measure import interleaved, ratio
from peers import FASTENERS, FILELOCK, KINDS, OURS, PORTALOCKER
from plots import bars
from progress import Progress
from report import Goal, Section

#: Prints the milliseconds of the import, and of the first entry; in a directory of its own.
_SCRIPT = """
import sys, time
{before}
started = time.perf_counter()
import {module}
imported = time.perf_counter()
with {entry}:
    pass
entered = time.perf_counter()
print([(imported - started) * 1000, (entered - imported) * 1000])
"""

_NO_REDIS = "sys.modules['redis'] = None"

WITH_REDIS = "with redis installed"
#: What the interpreter has imported before: as the title says, and, in all but one, no redis.
BEFORE = {
    "bare interpreter": _NO_REDIS,
    "beside build": f"{_NO_REDIS}; import build",
    "beside setuptools": f"{_NO_REDIS}; import setuptools.build_meta",
    WITH_REDIS: "",
}

#: The module, and a first entry.
MODULES = {
    OURS: ("source_tree_lock", "source_tree_lock.source_tree_lock('.')"),
    PORTALOCKER: ("portalocker", "portalocker.Lock('lock')"),
    FILELOCK: ("filelock", "filelock.FileLock('lock')"),
    FASTENERS: ("fasteners", "fasteners.InterProcessLock('lock')"),
}

_INTRO = """\
Milliseconds in a new interpreter: to import, and what the first entry into a free tree adds.
`source_tree_lock` imports portalocker at the first entry, and portalocker imports redis where that
is installed."""


def _times(environ: dict[str, str], name: str, before: str) -> tuple[float, float]:
    module, entry = MODULES[name]
    script = _SCRIPT.format(before=BEFORE[before], module=module, entry=entry)
    with tempfile.TemporaryDirectory() as directory:
        answer = subprocess.run(
            [sys.executable, "-c", script],
            cwd=directory,
            env=environ,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    imported, entered = json.loads(answer)
    return imported, entered


def _install_redis(directory: str) -> str:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--root-user-action", "ignore", "--target", directory, "redis"], check=True
    )
    return directory


def run(*, quick: bool) -> Section:
    rounds = 1 if quick else 15
    with tempfile.TemporaryDirectory() as directory:
        # Compiled code for all of them, whatever their installers left behind.
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": f"{directory}/compiled"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        # Beside the environment, not in it: there, each build would import it.
        environ["PYTHONPATH"] = _install_redis(f"{directory}/redis")
        cases = {
            (name, before): partial(_times, environ, name, before)
            for name in MODULES
            for before in BEFORE
        }
        for case in cases.values():
            case()
        with Progress("import", rounds * len(cases)) as progress:
            found = interleaved(cases, rounds, progress)
    section = Section("import-time", "Import, and the first entry", _INTRO)
    for caption, which in (
        ("To import, in ms:", 0),
        ("What the first entry adds, in ms:", 1),
    ):
        rows = [
            [
                name,
                *(
                    f"{median(each[which] for each in found[name, before]):.2f}"
                    for before in BEFORE
                ),
            ]
            for name in MODULES
        ]
        section.tables.append((caption, ["", *BEFORE], rows))
    bare = {name: [each[0] for each in found[name, "bare interpreter"]] for name in MODULES}
    section.plots["import-time.svg"] = bars(
        "Milliseconds to import, in a bare interpreter",
        "ms",
        [(KINDS[name], median(bare[name])) for name in MODULES],
    )
    section.goals.append(Goal("import, by `filelock`'s", ratio(bare[OURS], bare[FILELOCK]), 0.33))
    return section
