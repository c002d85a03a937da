"""What all tests share: a tree of their own, a lock directory of their own, and the long run."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import open_descriptors, wait_until

HERE = Path(__file__).parent
#: What runs on Windows. The others need pipes that select(2) takes, flock(1), /proc or fork(2).
ON_WINDOWS = (HERE / "paths" / "test_digest.py", HERE / "system" / "test_windows.py")
#: Folders that need more than the extra `test` has, or take long: the option that asks for them.
#: A folder that the command line names is asked for too.
_ON_REQUEST = {
    "cluster": "--cluster",
    "corpus": "--corpus",
    "own_suites": "--own-suites",
    "plugins": "--frontends",
    "recipes": "--frontends",
}
_OPTIONS = {
    "--long": "run what takes long too, and some tests for longer",
    "--frontends": "run the plugins and the recipes in tox, PDM, ... from the package index too",
    "--corpus": "build real projects from the package index too, and kill their builds",
    "--cluster": "run the tests on a cluster file system too: needs root, FUSE and GlusterFS",
    "--own-suites": "run the frontends' own test suites too: half an hour, and a package index",
}


def pytest_configure(config: pytest.Config) -> None:
    """Have the signals that tests send heard, and with ``-n`` no worker wait for another.

    nohup(1), say, has had this process ignore some of them, and its children.
    """
    if config.getoption("dist", "no") == "load":  # of xdist
        config.option.dist = "worksteal"
    for name in ("SIGINT", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_IGN:
            default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, default)


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, words in _OPTIONS.items():
        parser.addoption(name, action="store_true", help=words)
    words = "with --frontends: install the tools here, and find them here the next time"
    parser.addoption("--environments", metavar="DIR", help=words)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if os.name == "nt" and HERE in collection_path.parents:
        is_wanted = any(collection_path in (path, *path.parents) for path in ON_WINDOWS)
        return None if is_wanted or collection_path.name in ("__init__.py", "conftest.py") else True
    option = _ON_REQUEST.get(collection_path.name)
    if option is None or config.getoption(option):
        return None
    named = [Path(each.partition("::")[0]).absolute() for each in config.args]
    return not any(collection_path in (path, *path.parents) for path in named)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: --long"))


@pytest.fixture
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether to run the longer version."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(autouse=True)
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the lock files, for this process and its children."""
    directory = tmp_path / "temp"
    directory.mkdir()
    for variable in ("TMPDIR", "TMP", "TEMP"):
        monkeypatch.setenv(variable, str(directory))
    for variable in ("SOURCE_TREE_LOCK_DIR", "SOURCE_TREE_LOCK_TIMEOUT", "SOURCE_TREE_LOCK_HELD"):
        monkeypatch.delenv(variable, raising=False)
    return directory


@pytest.fixture
def short_temp_dir(temp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Instead of `temp_dir`, where multiprocessing makes a socket: their paths have to be short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty source tree."""
    directory = tmp_path / "tree"
    directory.mkdir()
    return directory


@pytest.fixture
def no_leaks() -> object:
    """Fails the test when it leaves a descriptor open (where the system lists them)."""
    before = open_descriptors()
    yield
    # The thread of a queue that waited for a caller that gave up may be about to end.
    with suppress(AssertionError):
        wait_until(lambda: open_descriptors() <= before)
    assert open_descriptors() <= before
