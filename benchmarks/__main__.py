"""`python -m benchmarks [NAME ...]`: run all benchmarks, or those named; prints one Markdown page.

Every comparison is measured in one run, its sides in turn, and given as a median with its spread.
"""

import argparse
from collections.abc import Sequence

from benchmarks import kernel, planning, process, rivals, sampling, scoring, start, writing
from benchmarks.measuring import machine

BENCHMARKS = {
    "scoring": scoring.run,
    "process": process.run,
    "start": start.run,
    "kernel": kernel.run,
    "planning": planning.run,
    "writing": writing.run,
    "rivals": rivals.run,
    "sampling": sampling.run,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run all benchmarks, or those named; prints one Markdown page.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    names = parser.parse_args(argv).names or list(BENCHMARKS)
    print(f"# Benchmarks\n\n{machine()}")
    for name in names:
        print(f"\n## {name}\n", flush=True)
        print(BENCHMARKS[name](), flush=True)


if __name__ == "__main__":
    main()
