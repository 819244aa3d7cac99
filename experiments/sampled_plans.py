"""`python -m experiments.sampled_plans [MODEL ...] [--samples SHARE,SHARE]`: which experts plans from samples remove.

For each model and reduction: of the experts that the exact plan removes, the share that the plan of each sample removes
too, mean over seeds; beside it the share that two plans agree on that are exact on half of the entries each, and what
two random choices of that size would share. Counts of every layer are those of the exact plan (`--like`).

Halves are every other row of each weight, which is what a score's own noise is: neither is less right than the other.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

import moeits
from benchmarks.measuring import table
from experiments.noise_floor import MODELS
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import BudgetOutOfReach
from moeits.evidence import Evidence
from moeits.experts.layout import MoELayout
from moeits.signals.nmi import NMI

REDUCTIONS, SEEDS = (0.25, 0.5, 0.75), 3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--samples", default="1/2,1/8,1/16")
    asked = parser.parse_args(argv)
    samples = asked.samples.split(",")
    rows = []
    for model in map(Path, asked.models):
        for row in alike(model, samples):
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    heads = ("model", "removed, %", *samples, "halves", "random", "error, of the spread")
    print(table(heads, rows))


def alike(model: Path, samples: Sequence[str]) -> list[tuple[str, ...]]:
    """One row per reduction."""
    exact = moeits.score(model)
    sampled = {sample: _scored(model, sample) for sample in samples}
    halves = [halved(model, exact, half) for half in (0, 1)]
    rows = []
    for reduction in REDUCTIONS:
        try:
            like = moeits.plan(exact, reduction=reduction)
        except BudgetOutOfReach:  # more than top_k experts of every layer would go
            continue
        kept = moeits.plan(exact, like=like)
        cells = [
            f"{100 * np.mean([shared(kept, moeits.plan(each, like=like)) for each in found]):.0f}" if found else "-"
            for found in sampled.values()
        ]
        both = shared(*(moeits.plan(each, like=like) for each in halves))
        cells += [f"{100 * both:.0f}", f"{100 * by_chance(kept):.0f}"]
        rows.append(
            (model.name, f"{100 * reduction:.0f}", *cells, " / ".join(_noise(exact, each) for each in sampled.values()))
        )
    return rows


def _scored(model: Path, sample: str) -> list[Evidence]:
    """Three samples; none where the model's weights are too small for one."""
    try:
        return [moeits.score(model, sample=sample, sample_seed=seed) for seed in range(SEEDS)]
    except moeits.SettingError:
        return []


def _noise(exact: Evidence, found: Sequence[Evidence]) -> str:
    """Standard error of a sample as a multiple of the standard deviation of exact scores, mean over layers."""
    if not found:
        return "-"
    ratios = []
    for layer, redundancy in exact.redundancy.items():
        pairs = np.triu_indices(len(redundancy), 1)
        ratios.append(np.sqrt(np.mean(found[0].errors[layer][pairs] ** 2)) / redundancy[pairs].std())
    return f"{np.mean(ratios):.1f}"


def halved(model: Path, exact: Evidence, half: int) -> Evidence:
    """Exact scores on every other row of each weight, from `half` on, with histograms of their own."""
    checkpoint = Checkpoint.open(model)
    layout, nmi = MoELayout.of(checkpoint), NMI()
    redundancy = {}
    for layer, moe in layout.layers.items():
        found = np.zeros((moe.num_experts, moe.num_experts))
        names = layout.architecture.projection_names
        for name in names:
            weights = (layout.read(checkpoint, layer, expert, name)[half::2] for expert in range(moe.num_experts))
            encoded = [nmi.encode_weight(np.ascontiguousarray(weight)) for weight in weights]
            found += nmi.compare(encoded, encoded) / len(tuple(names))
        np.fill_diagonal(found, 0)
        redundancy[layer] = found
    return Evidence(
        inventory=exact.inventory, estimator="nmi", settings=exact.settings, redundancy=redundancy, floor=exact.floor
    )


def removed(plan: PruningPlan) -> set[tuple[int, int]]:
    layers: Mapping[int, Iterable[int]] = plan.kept
    return {
        (layer, expert)
        for layer, kept in layers.items()
        for expert in set(range(plan.layers[layer].num_experts)) - set(kept)
    }


def shared(one: PruningPlan, other: PruningPlan) -> float:
    """Of the experts that one plan removes, the share that the other removes too."""
    return len(removed(one) & removed(other)) / max(len(removed(one)), 1)


def by_chance(plan: PruningPlan) -> float:
    """What two random choices of these counts share on average."""
    counts = {layer: facts.num_experts - len(plan.kept[layer]) for layer, facts in plan.layers.items()}
    return sum(count**2 / plan.layers[layer].num_experts for layer, count in counts.items()) / max(
        sum(counts.values()), 1
    )


if __name__ == "__main__":
    main()
