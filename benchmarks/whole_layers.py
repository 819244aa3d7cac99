"""One whole layer of a large model, written to the disk and scored by the command: `python -m benchmarks.whole_layers`.

    python -m benchmarks.whole_layers --model Qwen3-30B-A3B [--samples exact,1/8,1/32] [--folder SCRATCH]

The experts have the names, shapes and dtype of the release, and nothing else of a layer is there but its router. An
expert's rows are drawn anew from those of a few matrices with Student-t(8) entries, so that no two experts are alike;
but expert 1 is a copy of expert 0, and in bfloat16 expert 3 a noisy one of expert 2, which the scores must find. What
starting takes is measured on a checkpoint of two tiny experts and subtracted before a layer is multiplied.
The folder is removed when its model is done.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from benchmarks.kernel import compiled, pointer
from benchmarks.measuring import machine, seconds, table
from moeits.evidence import Evidence
from moeits.signals.nmi import NMI

MEMORY = "2GiB"
EXPERTS_A_FILE, POOL = 32, 3
BLOCK = 128
NOISY = 3
COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")


@dataclass(frozen=True)
class Model:
    """The routed experts of a release."""

    layers: int
    experts: int
    shape: tuple[int, int]
    """Of gate and up; down is the other way round."""
    config: dict[str, Any]
    fp8: bool = False
    router: str = "mlp.gate.weight"
    projections: tuple[str, str, str] = (
        "mlp.experts.{}.gate_proj",
        "mlp.experts.{}.up_proj",
        "mlp.experts.{}.down_proj",
    )
    freedom: int = 8
    """Degrees of freedom of the Student-t entries; 0 for normal ones."""

    @property
    def pairs(self) -> int:
        return 3 * self.experts * (self.experts - 1) // 2

    @property
    def entries(self) -> int:
        return self.shape[0] * self.shape[1]


_QWEN = {"num_hidden_layers": 1, "decoder_sparse_step": 1, "mlp_only_layers": [], "hidden_size": 2048}
_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
_MIXTRAL = {"model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 4096, "num_local_experts": 8}
_QWEN2 = {"model_type": "qwen2_moe", "num_experts": 60, "num_experts_per_tok": 4}
_LITE = {"model_type": "deepseek_v2", "num_hidden_layers": 1, "first_k_dense_replace": 0, "hidden_size": 2048}
MODELS = {
    "Mixtral-8x7B": Model(
        32,
        8,
        (14336, 4096),
        {**_MIXTRAL, "num_experts_per_tok": 2},
        router="block_sparse_moe.gate.weight",
        projections=tuple(f"block_sparse_moe.experts.{{}}.{name}" for name in ("w1", "w3", "w2")),  # type: ignore[arg-type]
    ),
    "Qwen1.5-MoE-A2.7B": Model(24, 60, (1408, 2048), {**_QWEN, **_QWEN2}),
    "DeepSeek-V2-Lite": Model(
        26, 64, (1408, 2048), {**_LITE, "n_routed_experts": 64, "num_experts_per_tok": 6, "moe_layer_freq": 1}
    ),
    "Qwen3-30B-A3B": Model(
        48, 128, (768, 2048), {**_QWEN, "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8}
    ),
    "Qwen3-Next-80B-A3B": Model(
        48, 512, (512, 2048), {**_QWEN, "model_type": "qwen3_next", "num_experts": 512, "num_experts_per_tok": 10}
    ),
    "DeepSeek-V3": Model(
        58,
        256,
        (2048, 7168),
        {
            **{"model_type": "deepseek_v3", "num_hidden_layers": 1, "first_k_dense_replace": 0, "hidden_size": 7168},
            **{"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4},
            **{"torch_dtype": "bfloat16", "quantization_config": _FP8},
        },
        fp8=True,
    ),
}


def write_layer(folder: Path, model: Model) -> int:
    """Write as many layers as the config has, one; returns the bytes of its files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = {shape: _pool(rng, shape, model) for shape in (model.shape, model.shape[::-1])}
    count = next(model.config[key] for key in COUNTS if key in model.config)
    weight_map: dict[str, str] = {}
    router = (0.02 * rng.standard_normal((count, model.shape[1]))).astype(ml_dtypes.bfloat16)
    for layer, start in product(range(model.config["num_hidden_layers"]), range(0, count, EXPERTS_A_FILE)):
        tensors: dict[str, np.ndarray] = {} if start else {f"model.layers.{layer}.{model.router}": router}
        for expert in range(start, min(start + EXPERTS_A_FILE, count)):
            tensors |= _expert(layer, expert, rows, model)
        file = f"model-{len(weight_map):07}.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(model.config))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@dataclass(frozen=True)
class Rows:
    """Of which experts are made."""

    values: np.ndarray
    scales: np.ndarray | None
    """Of FP8, one for each block of 128 x 128."""

    def drawn(self, rng: np.random.Generator, count: int) -> "Rows":
        """So many rows anew. Those of FP8 stay in their blocks, whose scales they share, and blocks change places."""
        if self.scales is None:
            return Rows(self.values[rng.choice(len(self.values), count, replace=False)], None)
        values, scales = [], []
        for band in rng.choice(len(self.scales), count // BLOCK, replace=False):
            moved = rng.integers(self.scales.shape[1])
            own = self.values[BLOCK * band + rng.permutation(BLOCK)]
            values.append(np.roll(own, BLOCK * moved, axis=1))
            scales.append(np.roll(self.scales[band], moved))
        return Rows(np.concatenate(values), np.stack(scales))


def _pool(rng: np.random.Generator, shape: tuple[int, int], model: Model) -> Rows:
    size = POOL * shape[0], shape[1]
    drawn = rng.standard_t(model.freedom, size) if model.freedom else rng.standard_normal(size)
    values = 0.02 * drawn.astype(np.float32)
    if not model.fp8:
        return Rows(_bfloat16(values), None)
    # As releases are quantized: the largest number of a block becomes 448, the largest of FP8.
    blocks = values.reshape(-1, BLOCK, shape[1] // BLOCK, BLOCK)
    scales = np.abs(blocks).max((1, 3)) / 448
    blocks /= scales[:, None, :, None]
    return Rows(values.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn), scales)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16)


def _expert(
    layer: int, expert: int, rows: dict[tuple[int, int], Rows], model: Model
) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng([layer, 0 if expert == 1 else expert])
    original = np.random.default_rng([layer, NOISY - 1])
    for name, shape in zip(model.projections, (model.shape, model.shape, model.shape[::-1]), strict=True):
        own = rows[shape].drawn(rng, shape[0])
        if expert == NOISY and own.scales is None:
            copied = rows[shape].drawn(original, shape[0]).values.astype(np.float32)
            own = Rows(_bfloat16(0.9 * copied + 0.44 * own.values.astype(np.float32)), None)
        weight = f"model.layers.{layer}.{name.format(expert)}.weight"
        yield weight, own.values
        if own.scales is not None:
            yield f"{weight}_scale_inv", own.scales


def run_score(folder: Path, output: Path, sample: str) -> dict[str, float]:
    """What `moeits score` takes: seconds, seconds of CPU, and bytes of memory at most."""
    asked = [] if sample == "exact" else ["--sample", sample]
    return run("score", folder, "-o", output, "--memory", MEMORY, *asked, "--verify", "sampled")


# A process of its own waits for the command: what a child had in memory before it became the command counts as its own.
_WAITS = """
import os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def run(*words: object) -> dict[str, float]:
    """What a command takes: seconds, seconds of CPU, and bytes of memory at most."""
    command = [sys.executable, "-c", _WAITS, sys.executable, "-m", "moeits", *map(str, words)]
    code, clock, cpu, kilobytes = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if code != "0":
        raise SystemExit(f"moeits {words[0]} ended with {code}")
    return {"seconds": float(clock), "cpu": float(cpu), "memory": int(kilobytes) * 1024}


def read_seconds(folder: Path) -> float:
    """How long it takes to read the files through one buffer, and do nothing with them."""
    buffer = bytearray(1 << 20)

    def read() -> None:
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return seconds(read)


def c_seconds(model: Model) -> float:
    """CPU seconds of counting one pair of whole matrices in a plain C loop."""
    rng = np.random.default_rng(0)
    values = (0.02 * rng.standard_t(8, (2, *model.shape))).astype(ml_dtypes.bfloat16)
    a, b = (NMI().encode_weight(each) for each in values)
    with tempfile.TemporaryDirectory() as scratch:
        loop, counts = compiled(Path(scratch)), np.zeros(a.counts.size * b.counts.size, np.uint32)
        one = partial(loop, pointer(a.codes), pointer(b.codes), a.codes.size, b.counts.size, pointer(counts))
        times = []
        for _ in range(9):
            began = time.process_time()
            one()
            times.append(time.process_time() - began)
    return sorted(times)[4]


def rows_of(name: str, samples: list[str], scratch: Path) -> Iterator[tuple[str, ...]]:
    """A row for each sample."""
    model = MODELS[name]
    folder, tiny = scratch / "layer", scratch / "tiny"
    nbytes = write_layer(folder, model)
    small = {key: 2 if key in (*COUNTS, "num_experts_per_tok") else value for key, value in model.config.items()} | {
        "n_group": 1,
        "topk_group": 1,
    }
    write_layer(tiny, replace(model, layers=1, experts=2, shape=(BLOCK, BLOCK), config={**small, "hidden_size": BLOCK}))
    reading, c_loop = min(read_seconds(folder) for _ in range(2)), c_seconds(model)
    for sample in samples:
        run_score(tiny, scratch / "e", sample if sample == "exact" else "1/2")  # compiles the kernels
        start, own = (
            run_score(each, scratch / "e", at)
            for each, at in ((tiny, sample if sample == "exact" else "1/2"), (folder, sample))
        )
        copy = Evidence.load(scratch / "e").redundancy[0]
        assert np.unravel_index(copy.argmax(), copy.shape) in ((0, 1), (1, 0)), "the copy was not found"
        share = 1.0 if sample == "exact" else 1 / int(sample.split("/")[1])
        floor = reading + share * model.pairs * c_loop / 2
        whole = {kind: start[kind] + model.layers * (own[kind] - start[kind]) for kind in ("seconds", "cpu")}
        yield (
            name,
            sample,
            f"{nbytes / 1e9:.1f}",
            f"{start['seconds']:.1f} / {start['cpu']:.1f}",
            f"{own['seconds']:.0f} / {own['cpu']:.0f}",
            f"{own['memory'] / 2**30:.2f}",
            f"{reading:.1f} + {share * model.pairs * c_loop:.1f} / 2",
            f"{(own['cpu'] - start['cpu']) / 2 / floor:.2f}",
            f"{model.layers}",
            f"{whole['seconds'] / 60:.1f}",
            f"{whole['cpu'] / 2 / 60:.1f}",
        )


HEADER = (
    "model",
    "sample",
    "one layer, GB",
    "start, s / CPU s",
    "layer and start, s / CPU s",
    "peak memory, GiB",
    "floor of the layer, s: reading + C loop / cores",
    "CPU / 2 over floor",
    "layers",
    "whole model, min of this clock",
    "min, CPU / 2",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score one whole layer of a large model.")
    parser.add_argument("--model", choices=MODELS, default="Qwen3-30B-A3B")
    parser.add_argument("--samples", default="exact,1/8,1/32")
    parser.add_argument("--folder", type=Path, default=None, help="where the layer is written")
    asked = parser.parse_args(argv)
    scratch = Path(tempfile.mkdtemp(dir=asked.folder))
    try:
        before = os.getloadavg()[0]
        print(f"{machine()}\n\n{table(HEADER, [])}", flush=True)
        for row in rows_of(asked.model, asked.samples.split(","), scratch):
            print("| " + " | ".join(row) + " |", flush=True)
        print(f"\nLoad of the machine {before:.1f} before, {os.getloadavg()[0]:.1f} after.")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
