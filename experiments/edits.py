"""What edits are worth: the same half of the demo model's experts, with and without each of them, refitted and not.

    OMP_NUM_THREADS=1 python -m experiments.edits --work FOLDER [--keep 0.5] [--only then]

Experts are chosen by reconstruction, watched on 8,192 self-written tokens (`--window 128`), on which refits are fitted
too; eight random choices stand beside them. Prints the tables of docs/comparison.md: the rise of the loss on the
held-out text of the package over the unpruned model, with its paired interval; in the second table edits come after the
refit. What is done is kept in FOLDER. About an hour of one core; `--only TEXT` makes the rows whose name has it.
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
TOGETHER: Mapping[str, Mapping[str, Any]] = {
    "aligned-average, then quantize, 3 bits": {"edit": "aligned-average,quantize", "bits": 3.0, "bit_widths": "3"},
    "aligned-average, then mask, 2:4": {"edit": "aligned-average,mask", "sparsity": "2:4"},
    "recombine, then quantize, 3 bits": {"edit": "recombine,quantize", "bits": 3.0, "bit_widths": "3"},
}
"""Edits one after another, the first of which takes removed experts in."""
TOGETHER_ON_THEIR_OWN: Mapping[str, Mapping[str, Any]] = {
    "mask, 2:4, then quantize, 3 bits": {"edit": "mask,quantize", "sparsity": "2:4", "bits": 3.0, "bit_widths": "3"},
    "mask, 2:4, then quantize, 2.5 bits of 2, 3": {
        "edit": "mask,quantize",
        "sparsity": "2:4",
        "bits": 2.5,
        "bit_widths": "2,3",
    },
    "low-rank, 50%, then mask, 2:4": {"edit": "low-rank,mask", "sparsity": "2:4"},
    "low-rank, 50%, then quantize, 3 bits": {"edit": "low-rank,quantize", "bits": 3.0, "bit_widths": "3"},
}
AFTER_THE_REFIT: Mapping[str, Mapping[str, Any]] = {
    name: {**ON_THEIR_OWN, **TOGETHER_ON_THEIR_OWN}[name]
    for name in (
        "mask, 2:4, moe-pruner",
        "low-rank, 50%",
        "quantize, 3 bits",
        "quantize, 2 bits",
        "mask, 2:4, then quantize, 3 bits",
        "low-rank, 50%, then quantize, 3 bits",
    )
}
SEEDS = range(8)


def evidence_of(work: Path) -> list[Path]:
    """What the weights show, and what some tokens show; made once."""
    scored, watched = work / "evidence.safetensors", work / "signals.safetensors"
    if not scored.exists():
        moeits.score(MODEL, output=scored)
    if not watched.exists():
        moeits.calibrate(MODEL, output=watched, input_norms=True, rounding_errors=True, **WATCHED)
    return [scored, watched]


def loss(work: Path, name: str, plan: PruningPlan | None, *, refit: bool = False, model: Path = MODEL) -> Path:
    """The results of one checkpoint, which is made for them and removed."""
    results = work / f"{name}{'-refitted' if refit else ''}.json"
    if results.exists():
        return results
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    if plan is not None:
        moeits.prune(model, plan=plan, output=made / "pruned")
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


def rows(work: Path, count: int, only: str) -> Iterator[str]:
    """Markdown, a row for each edit."""
    unpruned, evidence = loss(work, "unpruned", None), evidence_of(work)
    yield "| edit | all experts | pruned | refitted |"
    yield "| --- | ---: | ---: | ---: |"
    alone = {**ON_THEIR_OWN, **TOGETHER_ON_THEIR_OWN}
    for name, asked in {**EDITS, **ON_THEIR_OWN, **TOGETHER, **TOGETHER_ON_THEIR_OWN}.items():
        if only not in name:
            continue
        choice: dict[str, Any] = {"criterion": "reconstruction", "min_experts": 1, **asked}
        plan = moeits.plan(evidence, experts_per_layer=count, **choice)
        of = [loss(work, f"{count} {name}", plan, refit=refit) for refit in (False, True)]
        cells = [rise(unpruned, results)[1] for results in of]
        whole = moeits.plan(evidence, reduction=0, **choice) if name in alone else None
        first = rise(unpruned, loss(work, f"all {name}", whole))[1] if whole else ""
        yield f"| {' | '.join([name, first, *cells])} |"
    cells = []
    for refit in (False, True) if only in "random" else ():
        found = []
        for seed in SEEDS:
            plan = moeits.plan(evidence, criterion="random", seed=seed, experts_per_layer=count, min_experts=1)
            found.append(rise(unpruned, loss(work, f"{count} random {seed}", plan, refit=refit))[0])
        cells.append(f"{sum(found) / len(found):.3f} (least {min(found):.3f}, most {max(found):.3f})")
    if cells:
        yield f"| eight random choices, no edit | | {' | '.join(cells)} |"


def rows_after_the_refit(work: Path, count: int, only: str) -> Iterator[str]:
    """Markdown: what each edit costs if the pruned model was refitted before it."""
    unpruned, refitted = loss(work, "unpruned", None), work / f"{count} refitted"
    if not refitted.exists():
        plan = moeits.plan(evidence_of(work), criterion="reconstruction", min_experts=1, experts_per_layer=count)
        shutil.rmtree(work / "made", ignore_errors=True)
        moeits.prune(MODEL, plan=plan, output=work / "made" / "pruned")
        moeits.refit(work / "made" / "pruned", parent=MODEL, output=refitted, **WATCHED)
    watched = refitted.with_suffix(".safetensors")
    if not watched.exists():
        moeits.calibrate(refitted, output=watched, input_norms=True, rounding_errors=True, **WATCHED)
    yield "| edit | rise |"
    yield "| --- | ---: |"
    for name, asked in {f"refitted, then {name}": asked for name, asked in AFTER_THE_REFIT.items()}.items():
        if only in name:
            plan = moeits.plan(watched, criterion="reap", reduction=0, min_experts=1, **asked)
            results = loss(work, f"{count} {name}", plan, model=refitted)
            yield f"| {name} | {rise(unpruned, results)[1]} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the experts that stay")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this text")
    asked = parser.parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    count = round(asked.keep * Evidence.load(evidence_of(asked.work)[0]).layers[0].num_experts)
    for table in (rows, rows_after_the_refit):
        for row in table(asked.work, count, asked.only):
            print(row, flush=True)


if __name__ == "__main__":
    main()
