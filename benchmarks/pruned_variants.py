"""A model unpruned, pruned by MoEITS, and pruned at random to the same counts, and each healed: compared item by item.

What both scripts of docs/evaluation.md do. Whatever lies in the work folder is not made again, so an interrupted run
goes on, and a finished one prints its tables at once.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import moeits
from benchmarks.heal_shared_models import healing
from moeits.compare import Difference


def prune_variants(model: Path, work: Path, *, experts_per_layer: int, seeds: Iterable[int]) -> dict[str, Path]:
    """Name of each variant -> its checkpoint folder; the unpruned model first."""
    variants = {"unpruned": model, "MoEITS": work / "moeits"}
    variants |= {f"random, seed {seed}": work / f"random-{seed}" for seed in seeds}
    for name, folder in variants.items():
        if not folder.exists():
            chance = {"criterion": "random", "seed": int(name.rpartition(" ")[2])} if "random" in name else {}
            moeits.simplify(model, output=folder, experts_per_layer=experts_per_layer, **chance)
    return variants


def heal_variants(variants: dict[str, Path], work: Path) -> dict[str, Path]:
    """The same variants healed alike, the unpruned one too: what training alone gives it is not what pruning cost."""
    healed = {}
    for name, folder in variants.items():
        healed[f"{name}, healed"] = work / f"{'unpruned' if name == 'unpruned' else folder.name}-healed"
        healing(healed[f"{name}, healed"], folder)
    return healed


def evaluate_variants(variants: dict[str, Path], work: Path, part: str, **asked: Any) -> dict[str, moeits.Results]:
    """Results of each variant on one part, from the work folder where they are there already."""
    found = {}
    for name, folder in variants.items():
        output = work / f"{part}-{'unpruned' if name == 'unpruned' else folder.name}.json"
        if not output.exists():
            moeits.evaluate(folder, output=output, dtype="float32", **asked)
        found[name] = moeits.Results.load(output)
    return found


def table(results: dict[str, moeits.Results], *, reference: str = "unpruned") -> Iterator[str]:
    """Markdown: one row per metric and variant, each with its paired difference to the reference."""
    yield f"| | variant | value | against {reference} [95 %] | only {reference} right | only variant right |"
    yield "| --- | --- | --- | --- | --- | --- |"
    compared = {name: moeits.compare(results[reference], each) for name, each in results.items()}
    own = compared[reference]
    metrics = [(task, metric) for task, found in own.tasks.items() for metric in found]
    for task, metric in [*metrics, *(("perplexity", unit) for unit in own.perplexity)]:
        for name, comparison in compared.items():
            found = (comparison.perplexity if task == "perplexity" else comparison.tasks[task])[metric]
            difference = "- | - | -" if name == reference else _difference(found)
            yield f"| {task} {metric} | {name} | {found.b:.4f} | {difference} |"


def _difference(found: Difference) -> str:
    counts = f"{found.only_a} | {found.only_b}" if found.only_a is not None else "- | -"
    return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}] | {counts}"
