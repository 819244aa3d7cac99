"""Fewer experts or fewer bits: the same bytes of routed experts, reached by pruning, by rounding, and by both.

    OMP_NUM_THREADS=1 python -m experiments.equal_bytes --work FOLDER [--models demo moe-tiny-qwen2moe]

Experts are chosen by reconstruction and refitted on 8,192 self-written tokens. Rounding is to the nearest, symmetric,
with a bf16 scale for every 16 weights of a row (these experts are too narrow for more): an experiment's, for the
package has no quantizer. Prints the tables of docs/comparison.md. About ten minutes of one core for each model.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.experts.layout import MoELayout

SHARED = Path(__file__).parents[2] / "shared"
DEMO = Path(moeits.__file__).parent / "demo"
MODELS = ("demo", "moe-tiny-qwen2moe", "moe-tiny-mixtral", "moe-tiny-deepseekv2")
GROUP, SCALE_BITS, FULL_BITS = 16, 16, 16
KEPT = (1.0, 0.75, 0.5, 0.25)
BITS = (16, 8, 4, 3, 2)


def share(kept: float, bits: int) -> float:
    """Of the bytes that the routed experts have in bf16."""
    return kept * (bits + (SCALE_BITS / GROUP if bits < FULL_BITS else 0)) / FULL_BITS


def rounded(weight: np.ndarray, bits: int) -> np.ndarray:
    """(outputs, inputs) float32, to the nearest of 2^bits - 1 equally spaced numbers around 0 for every 16 of a row."""
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, inputs // GROUP, GROUP)
    most = 2 ** (bits - 1) - 1
    scale = np.abs(groups).max(axis=2, keepdims=True) / most
    scale = scale.astype("bfloat16").astype(np.float32)
    return (np.rint(groups / np.where(scale > 0, scale, 1)).clip(-most, most) * scale).reshape(outputs, inputs)


def with_fewer_bits(model: Path, folder: Path, bits: int) -> Path:
    """A copy of a checkpoint whose routed experts are rounded, in the dtype that they had."""
    from safetensors.numpy import load_file, save_file

    layout = MoELayout.of(Checkpoint.open(model))
    names = {name for layer in layout.layers.values() for expert in layer.experts.values() for name in expert.values()}
    shutil.copytree(model, folder)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in names & tensors.keys():
            weight = tensors[name]
            tensors[name] = rounded(weight.astype(np.float32), bits).astype(weight.dtype)
        save_file(tensors, shard, metadata={"format": "pt"})
    return folder


def smaller(model: Path, work: Path, kept: float) -> Path:
    """The model with that share of its experts, refitted; itself where it keeps all."""
    folder = work / f"kept-{kept:g}"
    if kept < 1 and not folder.exists():
        moeits.simplify(
            model,
            criterion="reconstruction",
            reduction=1 - kept,
            refit=True,
            data="self",
            tokens=8192,
            window=128,
            min_experts=1,
            output=folder,
        )
    return folder if kept < 1 else model


def measured(model: Path, work: Path, text: Path) -> Iterator[tuple[float, int, float, float]]:
    """Share of the experts, bits, share of their bytes, nats per token; all combinations."""
    for kept in KEPT:
        for bits in BITS:
            results = work / f"loss-{kept:g}-{bits}.json"
            if not results.exists():
                folder = smaller(model, work, kept)
                if bits < FULL_BITS:
                    shutil.rmtree(work / "rounded", ignore_errors=True)
                    folder = with_fewer_bits(folder, work / "rounded", bits)
                moeits.evaluate(folder, perplexity=text, dtype="float32", output=results)
            found = moeits.Results.load(results).perplexity
            assert found is not None
            yield kept, bits, share(kept, bits), found["nats_per_token"]


def table(rows: Sequence[tuple[float, int, float, float]]) -> Iterator[str]:
    """Markdown: the rise of the loss, a row for each share of experts, a column for each number of bits."""
    loss = {(kept, bits): nats for kept, bits, _, nats in rows}
    yield f"| experts kept | {' | '.join('bf16' if bits == FULL_BITS else f'{bits} bits' for bits in BITS)} |"
    yield f"| --- |{' ---: |' * len(BITS)}"
    for kept in KEPT:
        cells = (f"{loss[kept, bits] - loss[1.0, FULL_BITS]:.3f} ({share(kept, bits):.0%})" for bits in BITS)
        yield f"| {kept:.0%} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--text", type=Path, help="what judges the shared models; the demo brings its own")
    asked = parser.parse_args(argv)
    for name in asked.models:
        demo = name == "demo"
        model = DEMO / "demo-qwen2moe" if demo else SHARED / "models" / name
        text = DEMO / "valid.jsonl" if demo else asked.text or SHARED / "data" / "text" / "valid.jsonl"
        work = asked.work / name
        work.mkdir(parents=True, exist_ok=True)
        print("\n".join([f"\n{name}\n", *table([*measured(model, work, text)])]), flush=True)


if __name__ == "__main__":
    main()
