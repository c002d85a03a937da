"""Build several trees at once with trio; Ctrl-C, or one build that fails, ends all of them."""

import os
import sys

import trio

from source_tree_lock import source_tree_lock

HOOK = [sys.executable, "-c", "from setuptools import build_meta as b; b.build_wheel('dist')"]


async def build(tree: str) -> None:
    async with source_tree_lock(tree) as lock:
        await trio.run_process(HOOK, cwd=tree, env=os.environ | lock.environ)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        for tree in sys.argv[1:]:
            nursery.start_soon(build, tree)


if __name__ == "__main__":
    trio.run(main)
