"""What edits are worth: the same half of the demo model's experts, with and without each of them, refitted and not.

    OMP_NUM_THREADS=1 python -m experiments.edits --work FOLDER [--keep 0.5]

Experts are chosen by reconstruction, watched on 8,192 self-written tokens (`--window 128`), on which refits are fitted
too; eight random choices stand beside them. Prints the table of docs/comparison.md: the rise of the loss on the
held-out text of the package over the unpruned model, with its paired interval. What is done is kept in FOLDER. About
40 minutes of one core.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import moeits
from moeits.choosing.pruning_plan import PruningPlan
from moeits.evidence import Evidence

DEMO = Path(moeits.__file__).parent / "demo"
MODEL, TEXT = DEMO / "demo-qwen2moe", DEMO / "valid.jsonl"
WATCHED: Mapping[str, Any] = {"data": "self", "tokens": 8192, "window": 128, "device": "cpu"}
EDITS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "average": {"edit": "average"},
    "aligned-average": {"edit": "aligned-average"},
    "recombine": {"edit": "recombine"},
    "recombine, from 0.3 on": {"edit": "recombine", "min_similarity": 0.3},
}
ON_THEIR_OWN: Mapping[str, Mapping[str, Any]] = {
    "mask, half, moe-pruner": {"edit": "mask"},
    "mask, half, wanda": {"edit": "mask", "mask_by": "wanda"},
    "mask, half, magnitude": {"edit": "mask", "mask_by": "magnitude"},
    "mask, 2:4, moe-pruner": {"edit": "mask", "sparsity": "2:4"},
    "low-rank, 50%": {"edit": "low-rank"},
    "low-rank, 50%, equal": {"edit": "low-rank", "rank_power": 0.0},
    "quantize, 2.5 bits of 1 to 3": {"edit": "quantize"},
    "quantize, 2 bits of 1 to 3": {"edit": "quantize", "bits": 2.0},
    "quantize, 3 bits": {"edit": "quantize", "bits": 3.0, "bit_widths": "3"},
    "quantize, 2 bits": {"edit": "quantize", "bits": 2.0, "bit_widths": "2"},
}
"""Edits of each expert's own weights, which go without removing anybody as well."""
SEEDS = range(8)


def evidence_of(work: Path) -> list[Path]:
    """What the weights show, and what some tokens show; made once."""
    scored, watched = work / "evidence.safetensors", work / "signals.safetensors"
    if not scored.exists():
        moeits.score(MODEL, output=scored)
    if not watched.exists():
        moeits.calibrate(MODEL, output=watched, input_norms=True, rounding_errors=True, **WATCHED)
    return [scored, watched]


def loss(work: Path, name: str, plan: PruningPlan | None, *, refit: bool = False) -> Path:
    """The results of one checkpoint, which is made for them and removed."""
    results = work / f"{name}{'-refitted' if refit else ''}.json"
    if results.exists():
        return results
    model, made = MODEL, work / "made"
    shutil.rmtree(made, ignore_errors=True)
    if plan is not None:
        moeits.prune(MODEL, plan=plan, output=made / "pruned")
        model = made / "pruned"
    if refit:
        moeits.refit(model, parent=MODEL, output=made / "refitted", **WATCHED)
        model = made / "refitted"
    moeits.evaluate(model, perplexity=TEXT, dtype="float32", output=results)
    shutil.rmtree(made, ignore_errors=True)
    return results


def rise(before: Path, after: Path) -> tuple[float, str]:
    """Nats per token over the unpruned model, and as the table shows it."""
    found = moeits.compare(before, after).perplexity["nats_per_token"]
    return found.difference, f"{found.difference:.3f} ({found.low:.3f} to {found.high:.3f})"


def rows(work: Path, keep: float) -> Iterator[str]:
    """Markdown, a row for each edit."""
    unpruned = loss(work, "unpruned", None)
    evidence = evidence_of(work)
    count = round(keep * Evidence.load(evidence[0]).layers[0].num_experts)
    yield "| edit | all experts | pruned | refitted |"
    yield "| --- | ---: | ---: | ---: |"
    for name, asked in {**EDITS, **ON_THEIR_OWN}.items():
        choice: dict[str, Any] = {"criterion": "reconstruction", "min_experts": 1, **asked}
        plan = moeits.plan(evidence, experts_per_layer=count, **choice)
        of = [loss(work, f"{count} {name}", plan, refit=refit) for refit in (False, True)]
        cells = [rise(unpruned, results)[1] for results in of]
        whole = moeits.plan(evidence, reduction=0, **choice) if name in ON_THEIR_OWN else None
        first = rise(unpruned, loss(work, f"all {name}", whole))[1] if whole else ""
        yield f"| {' | '.join([name, first, *cells])} |"
    cells = []
    for refit in (False, True):
        found = []
        for seed in SEEDS:
            plan = moeits.plan(evidence, criterion="random", seed=seed, experts_per_layer=count, min_experts=1)
            found.append(rise(unpruned, loss(work, f"{count} random {seed}", plan, refit=refit))[0])
        cells.append(f"{sum(found) / len(found):.3f} (least {min(found):.3f}, most {max(found):.3f})")
    yield f"| eight random choices, no edit | | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the experts that stay")
    asked = parser.parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    for row in rows(asked.work, asked.keep):
        print(row, flush=True)


if __name__ == "__main__":
    main()
