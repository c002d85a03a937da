"""The types as users see them: what two type checkers find in right and in wrong uses.

The checkers are as strict as they can be, and know nothing of this project's own settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import LIMIT

import source_tree_lock

HERE = Path(__file__).parent
#: Where the library is that is tested, which need not be the one that is installed.
LIBRARY = Path(source_tree_lock.__file__).parents[1]


def mypy(file: Path, directory: Path) -> set[int]:
    """The lines with errors."""
    options = ["--config-file=", "--strict", "--output=json", f"--cache-dir={directory}"]
    report = check("mypy", *options, str(file))
    errors = [json.loads(line) for line in report.splitlines() if line]
    assert {each["file"] for each in errors} <= {file.name}
    return {each["line"] for each in errors}


def basedpyright(file: Path, directory: Path) -> set[int]:
    """The lines with errors."""
    settings = {
        "include": [os.path.relpath(file, directory)],
        "extraPaths": [str(LIBRARY)],
        "typeCheckingMode": "strict",
    }
    directory.joinpath("pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    options = ["--pythonpath", sys.executable, "--outputjson", "--project", str(directory)]
    report = json.loads(check("basedpyright", *options))
    assert report["summary"]["filesAnalyzed"] == 1
    return {each["range"]["start"]["line"] + 1 for each in report["generalDiagnostics"]}


def check(module: str, *options: str) -> str:
    command = [sys.executable, "-m", module, *options]
    environ = {**os.environ, "MYPYPATH": str(LIBRARY)}
    done = subprocess.run(
        command, cwd=HERE, env=environ, stdout=subprocess.PIPE, text=True, timeout=LIMIT
    )
    assert done.returncode in (0, 1), "the checker itself failed"
    return done.stdout


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_right_uses_have_no_errors_and_each_wrong_one_has(
    checker: Callable[[Path, Path], set[int]], tmp_path: Path
) -> None:
    if find_spec(checker.__name__) is None:
        pytest.skip(f"{checker.__name__} comes with the extra `lint`")
    assert checker(HERE / "right_uses.py", tmp_path) == set()
    file = HERE / "wrong_uses.py"
    marked = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    assert checker(file, tmp_path) == {number for number, line in marked if "  # E: " in line}
