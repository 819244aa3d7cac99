"""Half of the experts of one whole layer, pruned from disk to disk by us and by another program, as processes.

    python -m benchmarks rivals

The other is compressed-tensors' MagnitudeExpertPruner, asked for the same: the experts whose router rows have the
smallest sums of absolute values stay out (tests/test_beside_others.py: the two write the same tensors). MoEITS's own
choice and AIMER's stand beside it, which read all weights.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import ratio, spread, table
from benchmarks.whole_layers import MODELS, write_layer

REPEATS, MODEL = 5, "Qwen3-30B-A3B"
OURS = {
    "moeits, router-norm l1": ["--criterion", "router-norm", "--router-norm", "l1"],
    "moeits, aimer": ["--criterion", "aimer"],
    "moeits, moeits": [],
}
THEIRS = """
import sys
from compressed_tensors.entrypoints.convert import convert_checkpoint
from compressed_tensors.entrypoints.convert.converters import MagnitudeExpertPruner
model, output = sys.argv[1:]
pruner = MagnitudeExpertPruner.from_pretrained(
    model, router_pattern=r"mlp\\.gate\\.weight$", expert_pattern=r"mlp\\.experts\\.\\d+\\.", sparsity=0.5
)
convert_checkpoint(model, output, pruner, device="cpu")
"""


def run() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        model, output = Path(scratch) / "model", Path(scratch) / "output"
        named = {**MODELS[MODEL].config, "architectures": ["Qwen3MoeForCausalLM"]}
        nbytes = write_layer(model, replace(MODELS[MODEL], config=named))
        simplify = ["-m", "moeits", "simplify", str(model), "--reduction", "0.5", "--output", str(output)]
        programs = {"compressed-tensors": ["-c", THEIRS, str(model), str(output)]}
        programs |= {"compressed-tensors, imported only": ["-c", "\n".join(THEIRS.splitlines()[:4])]}
        programs |= {name: [*simplify, *asked] for name, asked in OURS.items()}
        found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in programs}
        for repeat in range(REPEATS + 1):
            for name, asked in programs.items():
                took = _process(asked, output)
                # The first of each puts files in the page cache and compiles kernels.
                found[name] += [took] if repeat else []
    theirs = [cpu for _, cpu, _ in found["compressed-tensors"]]
    rows = [
        (
            name,
            spread([clock for clock, _, _ in runs]),
            spread([cpu for _, cpu, _ in runs]),
            spread(ratio([cpu for _, cpu, _ in runs], theirs)),
            spread([peak for _, _, peak in runs], 2**30),
        )
        for name, runs in found.items()
    ]
    header = ("program, criterion", "clock, s", "CPU, s", "CPU, times theirs", "peak memory, GiB")
    return (
        f"One layer of {MODEL}, {nbytes / 1e9:.1f} GB, from disk to disk, half of 128 experts removed; whole "
        f"processes. {REPEATS} repeats in turn.\n\n{table(header, rows)}"
    )


def _process(asked: Sequence[str], output: Path) -> tuple[float, float, int]:
    """Seconds of the clock and of CPU, and the most bytes of memory, of a new process; its output is removed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{asked[:3]} ended with {process.returncode}")
    shutil.rmtree(output, ignore_errors=True)
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
