"""What `run` runs, forwards, hands over and returns."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from projects import content, make_project
from support import LIMIT, held_elsewhere, is_free, wait_until, wait_until_blocked, write_project

from source_tree_lock import source_tree_lock

from .driver import (
    COMMAND,
    NOTE,
    both_free,
    complaint,
    linux_only,
    noted,
    python,
    run,
    started,
    wait_for_the_pids,
)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 2", 2),
        ("exit 75", 75),
        ("exit 127", 127),
        ("exit 255", 255),
        ("kill -HUP $$", 129),
        ("kill -INT $$", 130),
        ("kill -QUIT $$", 131),
        ("kill -ABRT $$", 134),
        ("kill -KILL $$", 137),
        ("kill -USR1 $$", 138),
        ("kill -SEGV $$", 139),
        ("kill -PIPE $$", 141),
        ("kill -TERM $$", 143),
        ("kill -XFSZ $$", 128 + signal.SIGXFSZ),
    ],
)
def test_the_status_is_the_commands_own_or_128_and_its_signal(
    script: str, status: int, tree: Path
) -> None:
    ended = run("run", tree, "--", "sh", "-c", f"ulimit -c 0; {script}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, b"", b"")
    assert both_free(tree)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("no-such-command-anywhere", 127, "not found"),
        ("./missing", 127, "not found"),
        ("./interpreter-is-missing", 127, "not found"),
        ("./plain", 126, "Permission denied"),
        (".", 126, "Permission denied"),
        ("./plain/inside", 126, "Not a directory"),
        ("./no-format", 126, "Exec format error"),
    ],
)
def test_what_cannot_be_run_is_127_or_126(
    name: str, status: int, words: str, tree: Path, tmp_path: Path
) -> None:
    for path, mode, text in (
        ("plain", 0o644, "text"),
        ("no-format", 0o755, "\1\2\3"),
        ("interpreter-is-missing", 0o755, "#!/no/such/interpreter\n"),
    ):
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(mode)
    ended = run("run", tree, "--", name, cwd=tmp_path)
    assert ended.returncode == status
    assert words in complaint(ended)
    assert repr(name) in complaint(ended)
    assert both_free(tree)


@pytest.mark.parametrize(
    "command",
    [
        ["uv", "build"],
        ["uvx", "--from", "build", "pyproject-build"],
        ["/opt/bin/uv", "pip", "install", "."],
        ["uv.exe", "build"],
        ["python", "-m", "uv", "build"],
        ["/usr/bin/python3.12", "-m", "uv", "sync"],
    ],
    ids=" ".join,
)
def test_uv_is_refused_with_the_reason(command: list[str], tree: Path) -> None:
    ended = run("run", tree, "--", *command)
    assert ended.returncode == 2
    assert "uv takes this lock by itself, and would wait for its own wrapper" in complaint(ended)
    assert not source_tree_lock(tree).lock_file.exists()


@pytest.mark.parametrize("command", [["uvicorn"], ["echo", "uv"], ["sh", "-c", "uv"]], ids=" ".join)
def test_what_is_only_called_like_uv_is_not_refused(
    command: list[str], tree: Path, tmp_path: Path
) -> None:
    for name in ("uvicorn", "uv"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run("run", tree, "--", *command, environ=environ).returncode == 0


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (["--timeout", "0"], {}),
        (["--timeout", "0.1"], {}),
        ([], {"SOURCE_TREE_LOCK_TIMEOUT": "0.1"}),
        (["--timeout", "0.1"], {"SOURCE_TREE_LOCK_TIMEOUT": "1000"}),
    ],
    ids=["none", "short", "from the environment", "option before environment"],
)
def test_a_timeout_is_75_and_names_the_holder(
    options: list[str], environ: dict[str, str], tree: Path
) -> None:
    with held_elsewhere(tree) as child:
        ended = run("run", *options, tree, "--", "echo", "inside", environ=environ)
        *_, last = ended.stderr.decode().splitlines()
        assert (ended.returncode, ended.stdout) == (75, b"")
        words = rf"source-tree-lock: timed out( after \d+ s)?: '{tree}' is held by "
        assert re.match(words, last)  # it may take longer on a busy machine
        assert f"(pid {child.pid})" in last


@pytest.mark.parametrize("action", [["run", "--timeout", "0"], ["status"]], ids=["run", "status"])
def test_a_timeout_in_the_environment_that_makes_no_sense_is_named(
    action: list[str], tree: Path
) -> None:
    # Also where nobody is to be waited for; an option makes it irrelevant, and so does a look.
    environ = {"SOURCE_TREE_LOCK_TIMEOUT": "soon"}
    command = [] if action == ["status"] else ["--", "true"]
    assert run(*action, tree, *command, environ=environ).returncode == 0
    ended = run("run", tree, "--", "true", environ=environ)
    assert ended.returncode == 2
    assert "SOURCE_TREE_LOCK_TIMEOUT" in complaint(ended)
    assert "soon" in complaint(ended)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_lock_that_cannot_be_had_is_69(way: str, tree: Path, tmp_path: Path) -> None:
    bad = tmp_path / "a file"
    bad.touch()
    options = ["--lock-dir", bad] if way == "option" else []
    environ = {"SOURCE_TREE_LOCK_DIR": str(bad)} if way == "environment" else {}
    ended = run("run", *options, tree, "--", "echo", "inside", environ=environ)
    assert (ended.returncode, ended.stdout) == (69, b"")
    assert str(bad) in complaint(ended)


def test_the_lock_directory_is_the_one_that_is_named(tree: Path, tmp_path: Path) -> None:
    lock_dir = tmp_path / "made when missing"
    script = f"ls '{lock_dir}' && ! flock -n '{lock_dir}'/* true"
    ended = run("run", "--lock-dir", lock_dir, tree, "--", "sh", "-c", script)
    assert ended.returncode == 0
    assert ended.stdout.decode().strip() == source_tree_lock(tree).lock_file.name


def test_the_command_runs_while_the_tree_is_held(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    script = f"! flock -n '{lock_file}' true && ! flock -n '{tree}' true && echo kept out"
    assert run("run", tree, "--", "sh", "-c", script).stdout == b"kept out\n"
    assert both_free(tree)


def test_standard_input_and_output_are_the_commands_own(tree: Path) -> None:
    data = bytes(range(256)) * 4000
    ended = run("run", tree, "--", "cat", stdin=data)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, data, b"")


def test_inherited_descriptors_reach_the_command(tree: Path) -> None:
    # make's jobserver, for one, hands two of them down.
    reader, writer = os.pipe()
    try:
        script = "import os; os.write(int(sys.argv[1]), b'hello\\n')"
        with started("run", tree, "--", *python(script, writer), pass_fds=[writer]) as process:
            assert process.wait(LIMIT) == 0
        assert os.read(reader, 100) == b"hello\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_the_environment_and_the_directory_are_the_commands_own(tree: Path, tmp_path: Path) -> None:
    script = 'printf "%s %s" "$SOME_VARIABLE" "$PWD"'
    ended = run(
        "run", tree, "--", "sh", "-c", script, environ={"SOME_VARIABLE": "it"}, cwd=tmp_path
    )
    assert ended.stdout.decode() == f"it {tmp_path}"


@linux_only
@pytest.mark.parametrize("ignored", ["", "HUP", "INT QUIT"])
def test_the_command_has_the_signals_as_it_would_have_without_the_wrapper(
    ignored: str, tree: Path
) -> None:
    # Python ignores SIGPIPE and SIGXFSZ, and the wrapper blocks what it forwards.
    look = ["grep", "^Sig[BIC]", "/proc/self/status"]
    trap = ["sh", "-c", f'trap "" {ignored}; exec "$0" "$@"' if ignored else 'exec "$0" "$@"']
    bare, wrapped = (
        subprocess.run([*trap, *command, *look], stdout=PIPE, check=True).stdout
        for command in ([], [*COMMAND, "run", str(tree), "--"])
    )
    masks = [[int(word, 16) for word in each.split()[1::2]] for each in (bare, wrapped)]
    assert len(masks[0]) == 3
    # Two signals behind these are the C library's own: its posix_spawn(3) ignores them, and whoever
    # started this process may have used it.
    bare_masks, wrapped_masks = ([mask % 2**31 for mask in each] for each in masks)
    assert wrapped_masks == bare_masks


def test_a_command_that_writes_to_nobody_ends_by_sigpipe(tree: Path) -> None:
    with started("run", tree, "--", "yes", stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_are_closed_for_the_command(
    closed: str, tree: Path, tmp_path: Path
) -> None:
    # Were the lock file opened in their place, the command would write to it.
    look = """
        import os
        opened = []
        for number in range(3):
            try:
                os.fstat(number)
                opened.append(str(number))
            except OSError:
                pass
        with open(sys.argv[1], "w") as file:
            file.write(" ".join(opened))
        os._exit(7)
    """
    seen = tmp_path / "seen"
    close = ["sh", "-c", f'exec "$0" "$@" {closed}', *COMMAND]
    ended = run("run", tree, "--", *python(look, seen), command=close)
    assert ended.returncode == 7
    numbers = {"<&-": "0", ">&-": "1", "2>&-": "2"}
    expected = {"0", "1", "2"} - {numbers[each] for each in closed.split()}
    assert set(seen.read_text().split()) == expected


SIGNALS = [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_forwarded_once(number: signal.Signals, tree: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    other = SIGNALS[SIGNALS.index(number) - 1]
    with started("run", tree, "--", *python(NOTE, log)) as process:
        pid, _ = wait_for_the_pids(log)
        process.send_signal(number)
        wait_until(lambda: noted(log) == [number.name])
        # Were the first one forwarded twice, the second copy would come before this one.
        process.send_signal(other)
        wait_until(lambda: len(noted(log)) >= 2)
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5
    assert noted(log) == [number.name, other.name]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_ends_the_command_is_in_the_status(
    number: signal.Signals, tree: Path
) -> None:
    script = "ulimit -c 0; echo ready; exec cat"
    with started(
        *("run", tree, "--", "sh", "-c", script), stdin=PIPE, stdout=PIPE, stderr=PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(LIMIT) == 128 + number
        assert process.stderr.read() == b""
    assert both_free(tree)


def test_a_signal_from_the_whole_group_does_not_end_the_wrapper_before_the_command(
    tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started("run", tree, "--", *python(NOTE, log)) as process:
        pid, _ = wait_for_the_pids(log)
        os.killpg(process.pid, signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in noted(log))
        assert not is_free(source_tree_lock(tree).lock_file)
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_what_a_terminal_sends_to_both_does_not_end_the_wrapper(
    number: signal.Signals, tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started("run", tree, "--", *python(NOTE, log)) as process:
        pid, _ = wait_for_the_pids(log)
        os.killpg(process.pid, number)
        wait_until(lambda: noted(log) == [number.name])
        assert not is_free(source_tree_lock(tree).lock_file)
        process.send_signal(signal.SIGTERM)  # which would come behind a second copy
        wait_until(lambda: noted(log) == [number.name, "SIGTERM"])
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_what_a_terminal_sends_is_not_passed_on_when_it_comes_to_the_wrapper_alone(
    number: signal.Signals, tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started("run", tree, "--", *python(NOTE, log)) as process:
        pid, _ = wait_for_the_pids(log)
        process.send_signal(number)
        process.send_signal(signal.SIGTERM)  # which comes behind it
        wait_until(lambda: "SIGTERM" in noted(log))
        assert noted(log) == ["SIGTERM"]
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5


@pytest.mark.parametrize("option", [[], ["--quiet"]], ids=["telling", "quiet"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_wait_ends_it_with_its_status(
    number: signal.Signals, option: list[str], tree: Path
) -> None:
    with held_elsewhere(tree) as child:
        command = ["run", *option, tree, "--", "echo", "inside"]
        with started(*command, stdout=PIPE, stderr=PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            if option:
                wait_until_blocked(process.pid)
            else:
                assert b"waiting" in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(LIMIT) == 128 + number
            assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
        child.say()
        child.expect("released")
    assert both_free(tree)


def test_below_nohup_a_wait_goes_on_when_the_terminal_hangs_up(tree: Path) -> None:
    trap = ["sh", "-c", 'trap "" HUP; exec "$0" "$@"', *COMMAND]
    with (
        held_elsewhere(tree) as child,
        started(
            *("run", tree, "--", "echo", "inside"), command=trap, stdout=PIPE, stderr=PIPE
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"waiting" in process.stderr.readline()
        process.send_signal(signal.SIGHUP)
        child.say()
        assert process.stdout.read() == b"inside\n"
        assert process.wait(LIMIT) == 0


@linux_only
def test_a_daemon_that_the_command_leaves_behind_keeps_nothing_locked(tree: Path) -> None:
    script = "sleep 1000 >&- 2>&- <&- & echo $!"
    with started("run", tree, "--", "sh", "-c", script, stdout=PIPE) as process:
        assert process.stdout is not None
        daemon = int(process.stdout.readline())
        assert process.wait(LIMIT) == 0
        inherited = {_inode(each) for each in Path(f"/proc/{daemon}/fd").iterdir()}
        assert {_inode(source_tree_lock(tree).lock_file), _inode(tree)} <= inherited
        assert both_free(tree)


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def test_a_killed_wrapper_leaves_the_tree_locked_until_the_command_is_done(tree: Path) -> None:
    # The command of the command has it as well.
    script = "echo ready; cat; true"
    with started("run", tree, "--", "sh", "-c", script, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait(LIMIT)
        lock_file = source_tree_lock(tree).lock_file
        assert not is_free(lock_file)
        assert not is_free(tree)
        process.stdin.close()
        assert process.stdout.read() == b""  # until all that wrote to it have ended
        wait_until(lambda: both_free(tree))


@contextmanager
def running_cat(tree: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The wrapper of a cat(1) that is known to run."""
    with started("run", tree, "--", "cat", stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        yield process


def test_the_holder_is_called_by_the_command_s_name(tree: Path) -> None:
    with running_cat(tree) as process:
        holder = source_tree_lock(tree).holder()
        assert holder is not None
        assert (holder.pid, holder.program) == (process.pid, "cat")


# The hold is handed over


NESTED = {
    "a command": [*COMMAND, "run", "--timeout", "5", "{tree}", "--", "echo", "inside"],
    "through a shell": ["sh", "-c", f"{' '.join(COMMAND)} run --timeout 5 {{tree}} -- echo inside"],
    # Python closes the descriptors of its children, where it is not told otherwise.
    "through Python": [
        *(sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"),
        *(*COMMAND, "run", "--timeout", "5", "{tree}", "--", "echo", "inside"),
    ],
    "twice": [
        *(*COMMAND, "run", "--timeout", "5", "{tree}", "--"),
        *(*COMMAND, "run", "--timeout", "5", "{tree}", "--", "echo", "inside"),
    ],
    "the library": [
        *(sys.executable, "-c"),
        (
            "import sys; from source_tree_lock import source_tree_lock\n"
            "with source_tree_lock(sys.argv[1], timeout=5): print('inside')"
        ),
        "{tree}",
    ],
}


@pytest.mark.parametrize("command", NESTED.values(), ids=NESTED)
def test_what_locks_the_tree_inside_of_the_command_does_not_wait_for_its_wrapper(
    command: list[str], tree: Path
) -> None:
    ended = run("run", tree, "--", *(each.format(tree=tree) for each in command))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"inside\n", b"")
    assert both_free(tree)


def test_the_hold_lasts_when_what_is_inside_has_left_it(tree: Path) -> None:
    inner = f"{' '.join(COMMAND)} run --timeout 5 '{tree}' -- true"
    lock_file = source_tree_lock(tree).lock_file
    script = f"{inner} && ! flock -n '{lock_file}' true && ! flock -n '{tree}' true"
    assert run("run", tree, "--", "sh", "-c", script).returncode == 0


def test_a_build_that_locks_its_tree_builds_in_the_command(tree: Path, tmp_path: Path) -> None:
    write_project(
        tree,
        """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(timeout=5):
            pass
        """,
    )
    ended = run("run", tree, "--", *pip_wheel(tmp_path / "out"), cwd=tree)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "out").glob("*.whl"))) == 1


def pip_wheel(out: Path) -> list[str]:
    options = "wheel --quiet --no-build-isolation --no-deps --no-index --no-cache-dir".split()
    return [sys.executable, "-m", "pip", *options, "--wheel-dir", str(out), "."]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_with_four_jobs_builds_one_tree_four_times(tree: Path, tmp_path: Path) -> None:
    make_project(tree, modules=12)
    out = tmp_path / "out"
    wrapper = " ".join(COMMAND)
    targets = [f"wheel{number}" for number in range(4)]
    (tree / "Makefile").write_text(
        f"all: {' '.join(targets)}\n{' '.join(targets)}:\n"
        f"\t{wrapper} run . -- {' '.join(pip_wheel(out / '$@'))}\n"
    )
    made = subprocess.run(
        ["make", "-j4", "--keep-going"], cwd=tree, capture_output=True, timeout=LIMIT
    )
    assert made.returncode == 0, made.stderr.decode()
    wheels = [wheel for target in targets for wheel in (out / target).glob("*.whl")]
    assert len(wheels) == 4
    alone = subprocess.run(pip_wheel(out / "alone"), cwd=tree, timeout=LIMIT)
    assert alone.returncode == 0
    (right,) = (out / "alone").glob("*.whl")
    assert [content(wheel) for wheel in wheels] == [content(right)] * 4
