"""What a frontend can do while it waits for a tree: callbacks of a few lines each.

python waits.py cancel|spinner|limit SOURCE_TREE
"""

import itertools
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from source_tree_lock import LockTimeout, Wait
from source_tree_lock.adapters import locked_runner

# Cancel: frontends build in worker threads, where Python raises no KeyboardInterrupt.
cancelled = threading.Event()


def stop_if_cancelled(wait: Wait) -> None:
    if cancelled.is_set():
        raise KeyboardInterrupt


# Spinner: four turns a second. The time is in the sentence, and in `wait.waited`, in seconds.
turns = itertools.cycle("|/-\\")


def spin(wait: Wait) -> None:
    sys.stderr.write(f"\r{next(turns)} {wait.fit(70)}")


# When the tree is ours after a wait.
def clear(wait: Wait) -> None:
    sys.stderr.write("\r\033[K")


# Time limit: of all that this frontend does, not of each wait, as `timeout` is.
deadline = time.monotonic() + 2


def stop_in_time(wait: Wait) -> None:
    if time.monotonic() > deadline:
        raise LockTimeout(f"gave up {wait}", tree=wait.tree, holder=wait.holder)


CALLBACKS = {"cancel": stop_if_cancelled, "spinner": spin, "limit": stop_in_time}


def main(what: str, source_tree: str) -> None:
    run = locked_runner(while_waiting=CALLBACKS[what], after_wait=clear)
    signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    with ThreadPoolExecutor() as workers:
        build = workers.submit(run, [sys.executable, "-c", "print('built')"], source_tree)
        build.result()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("cancelled")
    except LockTimeout as error:
        sys.exit(str(error))
