"""`python -m benchmarks [NAME ...]`: run all benchmarks, or those named; prints one Markdown page.

Every comparison is measured in one run, its sides in turn, and given as a median with its spread.
"""

import sys

from benchmarks import kernel, planning, process, scoring, writing
from benchmarks.measuring import machine

BENCHMARKS = {
    "scoring": scoring.run,
    "process": process.run,
    "kernel": kernel.run,
    "planning": planning.run,
    "writing": writing.run,
}


def main() -> None:
    names = sys.argv[1:] or list(BENCHMARKS)
    print(f"# Benchmarks\n\n{machine()}")
    for name in names:
        print(f"\n## {name}\n", flush=True)
        print(BENCHMARKS[name](), flush=True)


if __name__ == "__main__":
    main()
