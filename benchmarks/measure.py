"""Measure everything that README.md tells, beside peers in the same run.

    python -m pip install -U pip && python -m pip install -e '.[bench]'
    python benchmarks/measure.py [--quick] [NAME...]
    python benchmarks/draw.py

It takes about twelve minutes on two cores, and needs the machine for itself. Each NAME is that of a
file here. What is found goes to results/, as JSON, and from there into README.md. The results of
`--quick`, which only tells whether all works, go elsewhere.
"""

import argparse
import importlib
import json
import os
import re
import tempfile
from compileall import compile_dir
from pathlib import Path
from typing import Any

import source_tree_lock

NAMES = "concurrent_builds builds hook_process busy_tree comparison".split()
RESULTS = Path(__file__).with_name("results")
README = Path(__file__).with_name("README.md")


def write_readme() -> None:
    """Put what is in the results between the markers of the README."""
    paths = [path for name in NAMES if (path := RESULTS / f"{name}.json").exists()]
    kept = {path.stem: json.loads(path.read_text("utf-8")) for path in paths}
    blocks = {name: tables(each) for name, each in kept.items()}
    blocks["machine"] = "\n".join(sorted({f"{each['machine']}." for each in kept.values()}))
    blocks["goals"] = goals([goal for each in kept.values() for goal in each["goals"]])

    def block(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n\n{blocks.get(found[1], 'Not measured yet.')}\n\n{found[2]}"

    text = README.read_text("utf-8")
    text = re.sub(r"<!-- (\w+) -->\n.*?(<!-- /\1 -->)", block, text, flags=re.DOTALL)
    README.write_text(text, "utf-8")


def tables(kept: dict[str, Any]) -> str:
    return "\n\n".join(f"{caption}\n\n{table(*parts)}" for caption, *parts in kept["tables"])


def goals(rows: list[list[str]]) -> str:
    return table(["goal", "at most", "measured", ""], rows)


def table(columns: list[str], rows: list[list[str]]) -> str:
    alignment = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, alignment, *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    compile_dir(source_tree_lock.__path__[0], quiet=1)  # as an installer does
    results = Path(tempfile.mkdtemp(prefix="benchmarks-")) if options.quick else RESULTS
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temp:
        # Lock files of many trees, and all else that is made, go with it.
        tempfile.tempdir = os.environ["TMPDIR"] = temp
        for name in options.names or NAMES:
            section = importlib.import_module(name).run(quick=options.quick)
            section.save(results / f"{name}.json")
            print(f"\n{tables(vars(section))}\n\n{goals(section.goals)}\n", flush=True)
    if not options.quick:
        write_readme()
    print(f"Results are in {results}")


if __name__ == "__main__":
    main()
