"""What `--dry-run` says a run takes, beside what it took: `python -m benchmarks.foreseen FOLDER [MODEL] [VERB...]`.

CPU seconds of whole processes, medians of `TIMES`, since other programs may be at work on the machine; on one thread
(OMP_NUM_THREADS=1) those are what a run takes on a machine that has nothing else to do, but for the disk that it waits
for: of what copies much the clock says more, which stands beside. Without MODEL the one that the package carries.
FOLDER is new, and holds what is made on the way.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measuring import machine, table
from moeits.demo import MODEL, TRAIN, VALID

TIMES = 3
VERBS: dict[str, tuple[str, ...]] = {
    "score": ("score", "{model}", "--threads", "1"),
    "simplify": ("simplify", "{model}", "--reduction", "0.5", "--threads", "1"),
    "simplify-random": ("simplify", "{model}", "--reduction", "0.5", "--criterion", "random", "--threads", "1"),
    "prune": ("prune", "{model}", "--plan", "{folder}/simplify/plan.json"),
    "calibrate": ("calibrate", "{model}", "--tokens", "8192"),
    "refit": ("refit", "{folder}/simplify", "--parent", "{model}", "--tokens", "4096"),
    "heal": ("heal", "{folder}/simplify", "--data", "{train}", "--recipe", "small", "--steps", "10"),
    "evaluate": ("evaluate", "{model}", "--perplexity", "{valid}", "--limit", "25", "--dtype", "float32"),
    "measure": ("measure", "{model}", "--no-energy"),
    "sweep": (
        *("sweep", "{model}", "--tau", "1.25", "--perplexity", "{valid}", "--limit", "10", "--dtype", "float32"),
        *("--threads", "1"),
    ),
    "forecast": ("forecast", "{model}", "--reductions", "0.25,0.5", "--tokens", "2048", "--held-out", "2048"),
    "compare-criteria": (
        *("compare-criteria", "{model}", "--keep", "0.5", "--criteria", "moeits,random", "--tokens", "2048"),
        *("--held-out", "2048", "--perplexity", "{valid}", "--limit", "10"),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", default=str(MODEL))
    parser.add_argument("verbs", nargs="*", metavar="VERB", help=f"of {', '.join(VERBS)}")
    asked = parser.parse_args(argv)
    rows = [row(verb, asked.folder, asked.model) for verb in asked.verbs or VERBS]
    columns = ("verb", "foreseen, s", "took, CPU s", "took by the clock, s", "foreseen / CPU", "foreseen / clock")
    print(f"{machine()}\n\n{table(columns, rows)}")


def row(verb: str, folder: Path, model: str) -> tuple[str, ...]:
    """The medians of a verb."""
    words = {"model": model, "folder": str(folder), "train": str(TRAIN), "valid": str(VALID)}
    output = folder / verb
    command = [*(word.format(**words) for word in VERBS[verb]), "--output", str(output)]
    folder.mkdir(parents=True, exist_ok=True)
    said, took, clock = [], [], []
    for _ in range(TIMES):
        shutil.rmtree(output, ignore_errors=True)
        output.unlink(missing_ok=True)
        said.append(json.loads(_run([*command, "--dry-run", "--json"])[0])["seconds"])
        _, own, by_clock = _run(command)
        took.append(own)
        clock.append(by_clock)
    foreseen, own, by_clock = median(said), median(took), median(clock)
    ratios = (f"{foreseen / own:.2f}", f"{foreseen / by_clock:.2f}")
    line = (verb, f"{foreseen:.1f}", f"{own:.1f}", f"{by_clock:.1f}", *ratios)
    print("  ".join(line), file=sys.stderr, flush=True)
    return line


def _run(command: Sequence[str]) -> tuple[str, float, float]:
    """What a command prints, its CPU seconds with those of the programs that it starts, and those of the clock."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "moeits", *command], capture_output=True, text=True, check=True)
    by_clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, by_clock


if __name__ == "__main__":
    main()
