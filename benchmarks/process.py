"""The whole `moeits score` process on one layer of 24 whole-size experts: start, binning, pairs, writing."""

import os
import subprocess
import sys
import tempfile
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
                slow.append(pairs * seconds(lambda a=a, b=b: naive.nmi(a, b)))
                peaks.append(0)
                fast.append(seconds(lambda model=model, repeat=repeat: _score(model, Path(scratch) / f"{repeat}.st")))
                peaks[-1] = _peak_bytes
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


_peak_bytes = 0


def _score(model: Path, output: Path) -> None:
    """Run the command and keep the peak memory of that process."""
    global _peak_bytes
    command = [sys.executable, "-m", "moeits", "score", str(model), "--output", str(output)]
    # With its bytecode on disk, as an installed package has it, whatever the surroundings of this run say.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"moeits score ended with {process.returncode}")
    _peak_bytes = usage.ru_maxrss * 1024
