"""Build several trees at once; Ctrl-C, or one build that fails, ends all of them."""

import asyncio
import os
import sys

from source_tree_lock import source_tree_lock

HOOK = [sys.executable, "-c", "from setuptools import build_meta as b; b.build_wheel('dist')"]


async def build(tree: str) -> None:
    async with source_tree_lock(tree) as lock:
        environ = os.environ | lock.environ
        child = await asyncio.create_subprocess_exec(*HOOK, cwd=tree, env=environ)
        try:
            await child.wait()
        finally:
            if child.returncode is None:  # cancelled: the tree is ours until the child is gone
                child.terminate()
                await child.wait()
    if child.returncode:
        raise RuntimeError(f"{tree}: the build failed")


async def main() -> None:
    await asyncio.gather(*map(build, sys.argv[1:]))


asyncio.run(main())
