"""Threads, tasks, processes and forks in any order, against a model that says who may hold."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support import LIMIT

from source_tree_lock import source_tree_lock

from .crew import Crew

_THREADS, _TASKS, _HOSTS = 2, 2, 2

# A process with some threads and some tasks that do what they are told, each on its own.
_HOST = """
    import queue
    tree = sys.argv[1]
    shared = source_tree_lock(tree)
    shared_for_a_while = source_tree_lock(tree, timeout=3600)

    def report(*words):
        # In one piece, and without a lock that a fork could find taken.
        os.write(connection.fileno(), (" ".join(map(str, words)) + "\\n").encode())

    def lock_for(kind):
        if kind == "shared":
            return shared
        if kind == "shared for a while":
            return shared_for_a_while
        return source_tree_lock(tree, timeout=eval(kind))

    def outcome(error):
        return "timed out" if isinstance(error, LockTimeout) else repr(error)

    def thread(name, commands):
        entered = []
        while True:
            verb, kind = commands.get()
            try:
                if verb == "enter":
                    lock = lock_for(kind)
                    lock.__enter__()
                    entered.append(lock)
                    report(name, "entered")
                else:
                    entered.pop().__exit__(None, None, None)
                    report(name, "left")
            except BaseException as error:
                report(name, outcome(error))

    async def task(name, commands):
        entered = []
        while True:
            verb, kind = await commands.get()
            try:
                if verb == "enter":
                    lock = lock_for(kind)
                    entering.add(name)
                    try:
                        await lock.__aenter__()
                    finally:
                        entering.discard(name)
                    entered.append(lock)
                    report(name, "entered")
                else:
                    await entered.pop().__aexit__(None, None, None)
                    report(name, "left")
            except asyncio.CancelledError:
                report(name, "cancelled")
            except BaseException as error:
                report(name, outcome(error))

    def cancel(name):
        if name in entering:
            tasks[name][1].cancel()
        else:
            loop.call_soon(cancel, name)  # it has not begun yet

    def fork():
        parent = os.getpid()
        child = os.fork()
        if not child:
            lock = source_tree_lock(tree, timeout=0)
            owns = shared.locked()
            got = lock.acquire()
            if got:
                lock.release()
            report("fork", owns, got)
            # It lives on, as long as the parent does, to show what it keeps: nothing.
            while os.getppid() == parent:
                time.sleep(0.1)
            os._exit(0)

    entering = set()
    threads = {}
    for number in range(THREADS):
        name = f"thread{number}"
        threads[name] = queue.SimpleQueue()
        threading.Thread(target=thread, args=(name, threads[name]), daemon=True).start()
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    tasks = {}
    async def start_tasks():
        for number in range(TASKS):
            name = f"task{number}"
            commands = asyncio.Queue()
            tasks[name] = commands, asyncio.create_task(task(name, commands))
    asyncio.run_coroutine_threadsafe(start_tasks(), loop).result()
    report("ready")
    while True:
        name, verb, kind = heard().split(" ", 2)
        if verb == "fork":
            fork()
        elif verb == "cancel":
            loop.call_soon_threadsafe(cancel, name)
        elif name in threads:
            threads[name].put((verb, kind))
        else:
            loop.call_soon_threadsafe(tasks[name][0].put_nowait, (verb, kind))
"""


class _Host:
    def __init__(self, crew: Crew, tree: Path) -> None:
        script = _HOST.replace("THREADS", str(_THREADS)).replace("TASKS", str(_TASKS))
        self.member = crew.start(script, tree)
        self.member.expect("ready")


Actor = tuple[int, str]
_ACTORS: list[Actor] = [
    (host, f"{kind}{number}")
    for host in range(_HOSTS)
    for kind, count in (("thread", _THREADS), ("task", _TASKS))
    for number in range(count)
]
_KINDS = ["shared", "shared for a while", "None", "3600"]


def _machine(
    crew: Crew, tree: Path, count: Callable[[int], None], failures: list[str]
) -> type[RuleBasedStateMachine]:
    hosts = [_Host(crew, tree) for _ in range(_HOSTS)]
    lock_file = source_tree_lock(tree).lock_file

    class Machine(RuleBasedStateMachine):
        """The model: who holds the tree, how often it entered, and who waits."""

        def __init__(self) -> None:
            super().__init__()
            self.holder: Actor | None = None
            self.entries = 0
            self.waiting: set[Actor] = set()
            # Who waits on behalf of somebody that gave up has what it is granted for a moment, in
            # which a single attempt fails.
            self.gave_up = False
            self.story: list[str] = []
            for number in range(_HOSTS if failures else 0):
                hosts[number].member.close()
                hosts[number] = _Host(crew, tree)

        # What is done

        @rule(actor=st.sampled_from(_ACTORS), kind=st.sampled_from(_KINDS))
        def enter(self, actor: Actor, kind: str) -> None:
            """In at once, or in line."""
            if actor in self.waiting:
                return
            self.tell(actor, f"enter {kind}")
            if self.holder in (None, actor):
                self.expect(actor, "entered")
                self.holder = actor
                self.entries += 1
            else:
                self.waiting.add(actor)

        @rule(actor=st.sampled_from(_ACTORS), seconds=st.sampled_from(["0", "0.003"]))
        def enter_for_a_moment(self, actor: Actor, seconds: str) -> None:
            if actor in self.waiting:
                return
            self.tell(actor, f"enter {seconds}")
            report = self.report_of(actor)
            if self.holder not in (None, actor):
                self.check(report == "timed out", f"{actor} reports {report}")
                self.gave_up = True
            elif report == "entered" or not (self.holder is None and self.gave_up):
                self.check(report == "entered", f"{actor} reports {report}")
                self.holder = actor
                self.entries += 1

        # No preconditions: who is granted the lock is the kernel's choice, whereas what Hypothesis
        # draws must not depend on it.

        @rule()
        def leave(self) -> None:
            if self.holder is None:
                return
            self.tell(self.holder, "leave now")
            self.entries -= 1
            leaving = self.holder
            if not self.entries:
                self.holder = None
            self.settle(also=(leaving, "left"))

        @rule(actor=st.sampled_from([actor for actor in _ACTORS if "task" in actor[1]]))
        def cancel(self, actor: Actor) -> None:
            if actor not in self.waiting:
                return
            self.tell(actor, "cancel now")
            self.expect(actor, "cancelled")
            self.gave_up = True
            self.waiting.remove(actor)

        @rule(host=st.integers(0, _HOSTS - 1))
        def fork(self, host: int) -> None:
            """The child owns nothing, whatever its parent holds and waits for."""
            self.tell((host, "fork"), "fork now")
            owns, got = self.report_of((host, "fork")).split()
            self.check(owns == "False", "a forked child owns its parent's hold")
            if not (self.holder is None and got == "False" and self.gave_up):
                self.check(got == str(self.holder is None), f"got in: {got}")

        @rule(host=st.integers(0, _HOSTS - 1))
        def kill(self, host: int) -> None:
            self.story.append(f"kill {host}")
            hosts[host].member.close()
            hosts[host] = _Host(crew, tree)
            self.waiting = {actor for actor in self.waiting if actor[0] != host}
            if self.holder is not None and self.holder[0] == host:
                self.holder, self.entries = None, 0
            self.settle()

        @rule(replace=st.booleans())
        def pull_away(self, replace: bool) -> None:
            self.story.append("replace the lock file" if replace else "delete the lock file")
            if replace:
                new = lock_file.with_suffix(".new")
                new.touch()
                new.rename(lock_file)
            else:
                lock_file.unlink(missing_ok=True)

        # What is looked at

        @invariant()
        def one_more(self) -> None:
            count(1)

        def check(self, condition: bool, otherwise: str) -> None:
            # Kept, because another run of the same steps may well end otherwise.
            if not condition:
                failures.append("\n".join([*self.story, otherwise]))
                raise AssertionError(otherwise)

        def tell(self, actor: Actor, command: str) -> None:
            self.story.append(f"{actor} is told to {command}")
            hosts[actor[0]].member.say(f"{actor[1]} {command}")

        def expect(self, actor: Actor, words: str) -> None:
            report = self.report_of(actor)
            self.check(report == words, f"{actor} reports {report}, not {words}")

        def report_of(self, actor: Actor) -> str:
            """The next report must be this one's: whoever else has one got in beside the model."""
            reporting, words = self.next_report()
            self.check(reporting == actor, f"{reporting} reports {words}")
            return words

        def next_report(self) -> tuple[Actor, str]:
            deadline = time.monotonic() + LIMIT
            while time.monotonic() < deadline:
                for number, host in enumerate(hosts):
                    if host.member.has_told():
                        name, _, words = host.member.line().partition(" ")
                        self.story.append(f"{(number, name)} reports {words}")
                        return (number, name), words
                select.select([host.member for host in hosts], [], [], 1)
            self.check(False, "nobody reports")
            raise AssertionError("unreachable")

        def settle(self, also: tuple[Actor, str] | None = None) -> None:
            """If the tree is free, one of those that wait gets in; meanwhile `also` reports."""
            wanted = {also} if also else set()
            granted = not (self.holder is None and self.waiting)
            while wanted or not granted:
                actor, words = self.next_report()
                if (actor, words) in wanted:
                    wanted.clear()
                    continue
                self.check(words == "entered", f"{actor} reports {words}")
                self.check(actor in self.waiting, f"{actor} did not wait")
                self.check(not granted, f"{actor} entered as well as {self.holder}")
                self.waiting.remove(actor)
                self.holder, self.entries = actor, 1
                granted = True

        def teardown(self) -> None:
            if failures:
                return
            while self.holder is not None:
                self.leave()
            self.check(not self.waiting, f"{self.waiting} wait for nobody")
            for host in hosts:
                self.check(not host.member.has_told(), "somebody has more to report")
            last = source_tree_lock(tree, timeout=LIMIT)
            self.check(last.acquire(), "it is still locked")
            last.release()
            # The next schedule has the same hosts, and a thread that waits on behalf of somebody
            # who gave up may be granted the lock only now.
            pids = {str(host.member.pid) for host in hosts}
            deadline = time.monotonic() + LIMIT
            while pids & set(Path("/proc/locks").read_text().split()):
                self.check(time.monotonic() < deadline, "somebody keeps a lock, or waits for it")
                time.sleep(0.001)

    return Machine


def test_any_schedule_of_threads_tasks_processes_and_forks_agrees_with_the_model(
    crew: Crew, tree: Path, count_cases: Callable[[int], None], long_run: bool
) -> None:
    failures: list[str] = []
    how = settings(
        max_examples=200 if long_run else 20,
        stateful_step_count=60 if long_run else 40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        phases=[Phase.generate],
    )
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call,unused-ignore] # in some versions
            _machine(crew, tree, count_cases, failures), settings=how
        )
    except BaseException:
        if failures:
            pytest.fail(failures[0])
        raise
