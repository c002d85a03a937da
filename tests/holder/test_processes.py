"""What is known of processes, and what is not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from support import LIMIT

from source_tree_lock._holder import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def test_of_a_process_that_is_not_there_nothing_is_known() -> None:
    pid = 2**30  # above pid_max(5): one that has just ended may be another's already
    assert processes.program_of(pid) is None
    assert processes.working_directory_of(pid) is None
    assert not processes.is_alive(pid)
    assert not processes.has_run_since(pid, 0.0)


def test_a_process_that_was_started_later_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not processes.has_run_since(os.getpid(), 0.0)
    real = open

    def without_boot_time(path: str, mode: str) -> object:
        return io.BytesIO(b"cpu 1 2 3\n") if path == "/proc/stat" else real(path, mode)

    # Without the boot time it cannot be told, and a living process is believed.
    monkeypatch.setattr(processes, "open", without_boot_time, raising=False)
    assert processes.has_run_since(os.getpid(), 0.0)


@pytest.mark.skipif(os.name != "posix", reason="the command is a link")
@pytest.mark.parametrize(
    "way", ["script", "private", "private below", "module", "package", "hook", "code", "bare"]
)
def test_a_program_is_called_what_people_call_it(way: str, tree: Path, tmp_path: Path) -> None:
    code = f"""
from source_tree_lock import source_tree_lock
with source_tree_lock({str(tree)!r}) as lock:
    print(lock.lock_file.read_text())
"""
    (tmp_path / "builder").mkdir()
    (tmp_path / "builder" / "__main__.py").write_text(code)
    (tmp_path / "one_module.py").write_text(code)
    hooks = tmp_path / "frontend" / "vendored"
    hooks.mkdir(parents=True)
    for directory in (hooks.parent, hooks):
        directory.joinpath("__init__.py").touch()
    hooks.joinpath("_in_process.py").write_text(code)
    (tmp_path / "a script").write_text(code)
    (tmp_path / "_private").write_text(code)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "_private").write_text(code)
    if "private" in way:
        (tmp_path / "__init__.py").touch()  # a relative path ends here, and goes no further up
    arguments, expected = {
        "script": (["./a script", "secret"], "a_script"),
        "private": (["_private", "secret"], "_private"),
        "private below": (["below/_private", "secret"], "_private"),
        "module": (["-m", "one_module", "secret"], "one_module.py"),
        "package": (["-m", "builder", "secret"], "builder"),
        "hook": (["frontend/vendored/_in_process.py", "secret"], "frontend"),
        "code": (["-c", code, "secret"], os.path.basename(sys.executable)),
        "bare": (["-"], os.path.basename(sys.executable)),
    }[way]
    told = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        input=code.encode(),
        stdout=PIPE,
        check=True,
        timeout=LIMIT,
    ).stdout
    assert json.loads(told)["program"] == expected
    assert b"secret" not in told
