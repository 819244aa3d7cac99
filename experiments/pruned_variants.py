"""A model unpruned, pruned by MoEITS, and pruned at random to the same counts, and each healed: compared item by item.

What both scripts of docs/evaluation.md do. Whatever lies in the work folder is not made again, so an interrupted run
goes on, and a finished one prints its tables at once.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import moeits
from experiments.heal_shared_models import healing
from moeits.stages.compare import Difference


def prune_variants(model: Path, work: Path, *, experts_per_layer: int, seeds: Iterable[int]) -> dict[str, Path]:
    """Name of each variant -> its checkpoint folder; the unpruned model first."""
    variants = {"unpruned": model, "MoEITS": work / "moeits"}
    variants |= {f"random, seed {seed}": work / f"random-{seed}" for seed in seeds}
    variants |= {"chance-corrected": work / "chance-corrected"}
    for name, folder in variants.items():
        if not folder.exists():
            moeits.simplify(model, output=folder, experts_per_layer=experts_per_layer, **_criterion(name))
    return variants


def _criterion(variant: str) -> dict[str, Any]:
    if variant.startswith("random"):
        return {"criterion": "random", "seed": int(variant.rpartition(" ")[2])}
    return {"criterion": "moeits" if variant == "MoEITS" else variant}


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


def table(*parts: dict[str, moeits.Results], reference: str = "unpruned") -> Iterator[str]:
    """Markdown: a row per variant, a column per metric, each with its paired difference to the reference [95 %]."""
    columns = [column for part in parts for column in _columns(part, reference)]
    yield "| variant | " + " | ".join(f"{metric} | against {reference}" for metric, _ in columns) + " |"
    yield "| --- |" + " ---: | --- |" * len(columns)
    for name in parts[0]:
        cells = (
            f"{found[name].b:.4f} | {'-' if name == reference else _difference(found[name])}" for _, found in columns
        )
        yield f"| {name} | " + " | ".join(cells) + " |"


def table_by_task(parts: Iterable[dict[str, moeits.Results]], reference: str = "unpruned") -> Iterator[str]:
    """Markdown: a row per task and metric; for each variant the value, and the paired difference to the reference."""
    rows = [column for part in parts for column in _columns(part, reference)]
    names = list(rows[0][1])
    yield "| | " + " | ".join(name if name == reference else f"{name} | against {reference}" for name in names) + " |"
    yield "| --- |" + "".join(" ---: |" if name == reference else " ---: | --- |" for name in names)
    for metric, found in rows:
        cells = (f"{f.b:.3f}" + ("" if name == reference else f" | {_difference(f, 3)}") for name, f in found.items())
        yield f"| {metric} | " + " | ".join(cells) + " |"


def _columns(results: dict[str, moeits.Results], reference: str) -> Iterator[tuple[str, dict[str, Difference]]]:
    """For each metric of one part: its name, and how each variant differs from the reference."""
    compared = {name: moeits.compare(results[reference], each) for name, each in results.items()}
    own = compared[reference]
    for task, metrics in own.tasks.items():
        for metric in metrics:
            yield f"{task} {metric}", {name: each.tasks[task][metric] for name, each in compared.items()}
    if own.perplexity:
        yield "nats per token", {name: each.perplexity["nats_per_token"] for name, each in compared.items()}


def _difference(found: Difference, digits: int = 4) -> str:
    return f"{found.difference:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
