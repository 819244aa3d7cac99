"""`python -m experiments.noise_floor [MODEL ...]`: how much of what the NMI says of an expert is the noise floor.

For each layer the mean NMI of each expert with the others, beside the mean that independent weights with the same
histograms would give: their means over experts, and the rank correlation of the two. A correlation near 1 says that
experts are ranked by the shape of their own histograms, and not by what they share with others. Seconds a model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import moeits
from benchmarks.measuring import table

ROOT = Path(__file__).parents[1]
MODELS = [
    ROOT / "src/moeits/demo/demo-qwen2moe",
    *(ROOT.parent / f"shared/models/moe-tiny-{name}" for name in ("mixtral", "qwen2moe", "deepseekv2")),
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    rows = [row for model in parser.parse_args(argv).models for row in layers(Path(model))]
    print(table(("model", "layer", "mean NMI", "noise floor", "rank correlation over experts"), rows))


def layers(model: Path) -> list[tuple[str, ...]]:
    """One row per layer."""
    evidence = moeits.score(model)
    rows: list[tuple[str, ...]] = []
    for layer, redundancy in evidence.redundancy.items():
        nmi, floor = (matrix.sum(axis=1) / (len(matrix) - 1) for matrix in (redundancy, evidence.floor[layer]))
        ranks = spearmanr(nmi, floor).statistic
        rows.append((model.name, str(layer), f"{np.mean(nmi):.5f}", f"{np.mean(floor):.5f}", f"{ranks:.2f}"))
    return rows


if __name__ == "__main__":
    main()
