"""`python -m benchmarks.change OTHER/src`: this moeits beside another one, such as a worktree of an older commit.

The two take turns, each time in a new process and first the one, then the other. Seconds of CPU (user and system) stand
beside seconds of the clock, since a shared machine stretches those less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measuring import machine, spread, table
from benchmarks.weights import one_layer_checkpoint

OURS = Path(__file__).parents[1] / "src"
REPEATS, EXPERTS = 7, 24
PAIRS = 3 * EXPERTS * (EXPERTS - 1) // 2

# What runs within a process that has started, imported and compiled everything before.
_WITHIN = """
import json, sys, time, moeits
def work():
    {work}
{before}
clock, cpu = time.perf_counter(), time.process_time()
work()
print(json.dumps([time.perf_counter() - clock, time.process_time() - cpu]))
"""

Took = tuple[float, float]
"""Seconds of the clock, seconds of CPU."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, metavar="OTHER/src")
    other = parser.parse_args(argv).other.resolve()
    print(f"{machine()}\n")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, work in _works(Path(scratch), other):
            for source in (other, OURS):
                work(source)
            rows += _measured(name, work, other)
    header = ("", "", "before", "after", "after / before, of the medians", "median of the ratios")
    print(f"{REPEATS} repeats in turn; median (least to most).\n\n" + table(header, rows))


def _works(folder: Path, other: Path) -> list[tuple[str, Callable[[Path], Took]]]:
    model = one_layer_checkpoint(folder / "model", experts=EXPERTS)
    evidence, plan = folder / "evidence.safetensors", folder / "plan.json"
    _command(other, "score", model, "--output", evidence)
    _command(other, "plan", evidence, "--experts-per-layer", EXPERTS // 2, "--output", plan)
    score = f"moeits.score({str(model)!r}, threads=1)"
    prune = f"moeits.prune({str(model)!r}, plan={str(plan)!r}, output={str(folder / 'pruned')!r}, overwrite=True)"
    return [
        (f"{PAIRS} pairs, binning included, 1 thread", lambda source: _within(source, score, before="work()")),
        ("whole process: moeits score", lambda source: _command(source, "score", model, "--output", folder / "new")),
        ("whole process: moeits --version", lambda source: _command(source, "--version")),
        ("writing 0.19 GiB: prune", lambda source: _within(source, prune, before="work(); import os; os.sync()")),
    ]


def _measured(name: str, work: Callable[[Path], Took], other: Path) -> list[tuple[str, ...]]:
    before: list[Took] = []
    after: list[Took] = []
    for repeat in range(REPEATS):
        for source in (other, OURS) if repeat % 2 else (OURS, other):
            (before if source == other else after).append(work(source))
    rows: list[tuple[str, ...]] = []
    for at, kind in enumerate(("clock, s", "CPU, s")):
        old, new = [took[at] for took in before], [took[at] for took in after]
        of_medians = statistics.median(new) / statistics.median(old)
        ratios = [b / a for a, b in zip(old, new, strict=True)]
        rows.append((name if not at else "", kind, spread(old), spread(new), f"{of_medians:.2f}", spread(ratios)))
    return rows


def _environment(source: Path) -> dict[str, str]:
    # With bytecode on disk, as an installed package has it.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(source)}


def _command(source: Path, *words: object) -> Took:
    command = [sys.executable, "-m", "moeits", *map(str, words)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_environment(source))
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[2:])} of {source} ended with {process.returncode}")
    return took, usage.ru_utime + usage.ru_stime


def _within(source: Path, work: str, *, before: str) -> Took:
    command = [sys.executable, "-c", _WITHIN.format(work=work, before=before)]
    said = subprocess.run(command, env=_environment(source), capture_output=True, text=True, check=True).stdout
    clock, cpu = json.loads(said)
    return clock, cpu


if __name__ == "__main__":
    main()
