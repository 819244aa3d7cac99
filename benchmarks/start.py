"""From the command `moeits score` to its first pair: Python, imports, the model's files, kernels from disk.

    python -m benchmarks start

scipy, which extras bring, is imported by numba wherever it finds it, so the packages that are installed count.
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measuring import spread, table

REPEATS = 11
BEGAN = "MOEITS_BENCHMARK_BEGAN"
CHILD = "from benchmarks.start import command_that_tells; command_that_tells()"


def run() -> str:
    import moeits

    model = Path(moeits.__file__).parent / "demo" / "demo-qwen2moe"
    with tempfile.TemporaryDirectory() as scratch:
        _first_pair(model, Path(scratch) / "warm-up.safetensors")  # compiles the kernels into the cache
        found = [_first_pair(model, Path(scratch) / f"{repeat}.safetensors") for repeat in range(REPEATS)]
    clock, cpu = zip(*found, strict=True)
    extras = ", ".join(f"{'with' if find_spec(name) else 'without'} {name}" for name in ("scipy", "torch"))
    header = ("until the first pair", "clock, s", "CPU, s")
    return (
        f"`moeits score` of the demo model, {extras}; kernels compiled before. {REPEATS} repeats.\n\n"
        f"{table(header, [('a new process', spread(clock), spread(cpu))])}"
    )


def _first_pair(model: Path, output: Path) -> tuple[float, float]:
    """Seconds of the clock and of CPU, of a new process."""
    command = [sys.executable, "-c", CHILD, "score", str(model), "--output", str(output)]
    # With its bytecode on disk, as an installed package has it, whatever the surroundings of this run say.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.run(
        command, env=environment | {BEGAN: str(time.time())}, capture_output=True, text=True, check=True
    )
    clock, cpu = process.stderr.split()[-2:]
    return float(clock), float(cpu)


def command_that_tells() -> None:
    """The command, which writes what has passed at its first pair to standard error, after all else."""
    from moeits.__main__ import main
    from moeits.signals import joint_counts

    kernel, passed = joint_counts.joint_count_log_count, list[tuple[float, float]]()

    def telling(*asked: Any) -> float:
        if not passed:
            passed.append((time.time() - float(os.environ[BEGAN]), time.process_time()))
        return kernel(*asked)

    # Whoever counts pairs imports it where they are counted.
    setattr(joint_counts, kernel.__name__, telling)
    try:
        main()
    finally:
        sys.stderr.write(f"\n{passed[0][0]} {passed[0][1]}\n")
