"""`python -m experiments.measure_pruned`: what half of the experts cost to run, beside all of them.

Each of the three trained models of ../shared/models as it came, with half of its experts as many per layer as the plan
says, and the same evened out. Speeds are those of `moeits measure` (128 tokens read, then 32 generated, batch 1,
float32), but all three variants are held in one process and timed in turn, so that whatever else the machine does meets
them alike: "x unpruned" is the median of the ratios within a round, with their quartiles. Memory and loading are
`moeits measure`'s own, in a process for each.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import moeits
from benchmarks.measuring import machine
from moeits.measurement import running
from moeits.runtime import load, quiet

MODELS = Path(__file__).parents[2] / "shared" / "models"
PROMPT, NEW = 128, 32
COLUMNS = (
    *("model", "tensors", "FLOPs/token", "peak memory", "load, s"),
    *("reading, tokens/s", "x unpruned", "generating, tokens/s", "x unpruned", "experts' kernel"),
)


def main(argv: Sequence[str] | None = None) -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args(argv).rounds
    print(f"{machine()}\ntorch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print(f"| {' | '.join(COLUMNS)} |\n| --- {'| ---: ' * (len(COLUMNS) - 2)}| --- |")
    for name in ("mixtral", "qwen2moe", "deepseekv2"):
        with tempfile.TemporaryDirectory() as scratch, quiet():
            variants = {name: MODELS / f"moe-tiny-{name}"}
            for layout in ("auto", "uniform"):
                variants[f"{name}, half, {layout}"] = folder = Path(scratch) / layout
                moeits.simplify(variants[name], output=folder, reduction=0.5, layout=layout)
            for row in compared(torch, variants, rounds):
                print("| " + " | ".join(row) + " |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


def compared(torch: Any, variants: dict[str, Path], rounds: int) -> list[tuple[str, ...]]:
    models = {name: load(folder, dtype="float32").eval() for name, folder in variants.items()}
    kernels = {name: model.config._experts_implementation for name, model in models.items()}
    ids = torch.randint(1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    reading: dict[str, list[float]] = {name: [] for name in models}
    generating: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, model in models.items():
                read = running._timed(torch, ids.device, partial(model, ids, use_cache=True))
                generated = running._decode(torch, model, ids, NEW)
                if number:  # the first round warms up
                    reading[name].append(PROMPT / read)
                    generating[name].append(NEW / generated)
        flops = {name: running._flops(model, ids) / PROMPT for name, model in models.items()}
    first = next(iter(models))
    return [
        (
            name,
            *cost(folder, flops[name]),
            *(speed(reading[name]), ratio(reading[name], reading[first])),
            *(speed(generating[name]), ratio(generating[name], generating[first])),
            kernels[name],
        )
        for name, folder in variants.items()
    ]


def cost(folder: Path, flops: float) -> tuple[str, ...]:
    found = moeits.measure(folder, repeats=1, new_tokens=2, energy=False, dtype="float32")
    assert found.memory is not None
    peak, seconds = found.memory["peak_bytes"], found.load_seconds
    return f"{found.tensor_bytes / 2**20:.1f} MiB", f"{flops:,.0f}", f"{peak / 2**20:.1f} MiB", f"{seconds:.1f}"


def speed(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def ratio(values: list[float], others: list[float]) -> str:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(values, others, strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
