"""The whole `moeits score` process on one layer of 24 whole-size experts: start, binning, pairs, writing."""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import naive
from benchmarks.measuring import ratio, seconds, spread, table
from benchmarks.weights import KINDS, matrix, one_layer_checkpoint

REPEATS, EXPERTS = 5, 24


def run() -> str:
    pairs = 3 * EXPERTS * (EXPERTS - 1) // 2
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            model = one_layer_checkpoint(Path(scratch) / kind, experts=EXPERTS, kind=kind)
            rng = np.random.default_rng(1)
            a, b = matrix(kind, rng), matrix(kind, rng)
            _score(model, Path(scratch) / "warm-up.safetensors")  # compiles the kernels into the cache
            slow, fast, peaks = [], [], []
            for repeat in range(REPEATS):
                slow.append(pairs * seconds(partial(naive.nmi, a, b)))
                took, peak = _score(model, Path(scratch) / f"{repeat}.st")
                fast.append(took)
                peaks.append(peak)
            rows.append(
                (
                    kind,
                    spread(slow, digits=0),
                    spread(fast),
                    spread(ratio(slow, fast), digits=0),
                    spread(peaks, 2**30),
                )
            )
    header = ("24 experts", "naive, s (one pair x 828)", "moeits score, s", "times", "peak memory, GiB")
    return (
        f"One process on all cores, kernels compiled before; {pairs} pairs of matrices. The naive computation is "
        f"measured on one pair in the same run and multiplied. {REPEATS} repeats in turn.\n\n" + table(header, rows)
    )


def _score(model: Path, output: Path) -> tuple[float, int]:
    """Run the command: seconds, and the peak memory of that process in bytes."""
    command = [sys.executable, "-m", "moeits", "score", str(model), "--output", str(output)]
    # With its bytecode on disk, as an installed package has it, whatever the surroundings of this run say.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"moeits score ended with {process.returncode}")
    return took, usage.ru_maxrss * 1024
