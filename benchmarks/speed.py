"""How fast the lock is, beside its peers in the same run: README.md says what is measured.

    python -m pip install -e '.[bench]' && python benchmarks/speed.py [--quick] [names…]

Without names it measures all that takes time, in about eleven minutes, and wants the machine for
itself. Each name is that of a file here. Results go to results/, and from there into README.md;
those of `--quick`, which takes a minute and tells only that all works, elsewhere.
"""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from report import RESULTS, write_readme
from rich.console import Console
from rich.markdown import Markdown

_TIMED = "concurrent_builds whole_builds hook_process free_tree busy_tree growth".split()
_OTHERS = ["uv_gap", "comparison"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(_TIMED + _OTHERS)}")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    options = parser.parse_args()
    if unknown := set(options.names) - {*_TIMED, *_OTHERS}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    results = Path(tempfile.mkdtemp(prefix="benchmarks-")) if options.quick else RESULTS
    console = Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temp:
        # Lock files of thousands of trees, and all else that is made, go with it.
        tempfile.tempdir = os.environ["TMPDIR"] = temp
        for name in options.names or _TIMED:
            section = importlib.import_module(name).run(quick=options.quick)
            console.print(Markdown(f"# {name}\n\n{section.publish(name, results)}"))
    if not options.quick:
        write_readme()
    console.print(f"Results are in {results}")


if __name__ == "__main__":
    main()
