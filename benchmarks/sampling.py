"""Scores from a sample against exact ones, on experts of the shapes of large models: `python -m benchmarks sampling`.

A few random experts of the right shape are encoded and compared on one thread, and what that took is multiplied, by all
matrices and pairs of the model, and halved for two cores. Reading bfloat16 at 1 GB/s is added.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.measuring import table
from benchmarks.weights import KINDS, matrix
from moeits.signals.nmi import NMI

SAMPLES = (None, "1/8", "1/32")
TIMED_PAIRS = 8


@dataclass(frozen=True)
class Shapes:
    """The routed experts of a model."""

    layers: int
    experts: int
    shape: tuple[int, int]

    @property
    def entries(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def pairs(self) -> int:
        return self.experts * (self.experts - 1) // 2


MODELS = {
    "Qwen3-30B-A3B": Shapes(48, 128, (768, 2048)),
    "Qwen3-Next-80B-A3B": Shapes(48, 512, (512, 2048)),
    "DeepSeek-V3": Shapes(58, 256, (2048, 7168)),
}


def run() -> str:
    rows = [_row(name, kind, sample) for name in MODELS for kind in KINDS[:1] for sample in SAMPLES]
    header = (
        "model",
        "weights",
        "sample",
        "binning, ms an expert's matrix",
        "pair, us",
        "floor, s a matrix",
        "held, MiB a matrix",
        "reading, min",
        "binning and pairs, min",
        "in all, min",
    )
    return (
        f"One thread, medians; load of the machine {os.getloadavg()[0]:.1f}, {os.getloadavg()[1]:.1f}, "
        f"{os.getloadavg()[2]:.1f}. Whole models: layers x 3 matrices x experts and pairs, on two cores; exact scores "
        "bin every expert once, though those of DeepSeek-V3 do not fit 2 GiB and are binned several times.\n\n"
        + table(header, rows)
    )


def _row(name: str, kind: str, sample: str | None) -> tuple[str, ...]:
    model, rng = MODELS[name], np.random.default_rng(0)
    signal = NMI(sample=sample).for_model(("gate", "up", "down"), "")
    made = [matrix(kind, rng, model.shape) for _ in range(3)]
    signal.encode({"gate": made[0]})  # compiles, and makes what all experts share
    binning, encoded = [], []
    for at in range(6):
        start = time.process_time()
        encoded.append(signal.encode({"gate": made[at % 3]}))
        binning.append(time.process_time() - start)
    signal.compare(encoded[:1], encoded[1:2])
    pairs = [_timed(lambda: signal.compare(encoded[:1], TIMED_PAIRS * encoded[1:3])) for _ in range(9)]
    pair = statistics.median(pairs) / (2 * TIMED_PAIRS)
    columns = (encoded * (model.experts // 6 + 1))[: model.experts]
    floor = _timed(lambda: signal.floor(columns))
    held = model.experts * signal.memory(model.entries, 2).encoded
    matrices = 3 * model.layers
    reading = matrices * model.experts * model.entries * 2 / 1e9
    working = matrices * (model.experts * statistics.median(binning) + model.pairs * pair + floor) / 2
    return (
        name,
        kind,
        sample or "exact",
        f"{1e3 * statistics.median(binning):.1f}",
        f"{1e6 * pair:.0f}",
        f"{floor:.2f}",
        f"{held / 2**20:.0f}",
        f"{reading / 60:.1f}",
        f"{working / 60:.1f}",
        f"{(reading + working) / 60:.1f}",
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
