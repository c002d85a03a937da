"""How fast the lock is, beside its peers in the same run.

    python -m pip install -e '.[bench]' && python benchmarks/speed.py

It takes some minutes, and wants the machine for itself; `--quick` takes seconds, `--only NAME…`
runs some of the benchmarks. All numbers are ratios to peers in the same run, in rounds that
take the cases in turns; tables show the median of the rounds.

Writes one page for each benchmark, with its plots, and one with the goals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import busy_tree
import free_tree
import growth
import import_time
import one_process
import whole_builds
from report import goals_markdown, goals_text

BENCHMARKS = {
    "free": free_tree.run,
    "busy": busy_tree.run,
    "one-process": one_process.run,
    "growth": growth.run,
    "import": import_time.run,
    "builds": whole_builds.run,
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).with_name("results"), metavar="DIR"
    )
    return parser.parse_args()


def main() -> None:
    options = parsed()
    sections = []
    for name in options.only:
        section = BENCHMARKS[name](quick=options.quick)
        section.write(options.results)
        print(section.text())
        sections.append(section)
    print(f"\n{goals_text(sections)}")
    if set(options.only) == set(BENCHMARKS):
        (options.results / "goals.md").write_text(goals_markdown(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
