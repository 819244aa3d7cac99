"""The three trained models of ../shared/models: unpruned, MoEITS at half of the experts, random with the same counts.

The first two and one random choice also healed, all three by the recipe `small` (experiments/heal_shared_models.py).

    OMP_NUM_THREADS=1 python -m experiments.evaluate_shared_models --work FOLDER

Continuation accuracy on 400 items and loss on held-out text, float32, with paired intervals. About 40 minutes of one
core, and as much again for the healing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.pruned_variants import evaluate_variants, heal_variants, prune_variants, table

SHARED = Path(__file__).parents[2] / "shared"
HALF = {"moe-tiny-mixtral": 4, "moe-tiny-qwen2moe": 16, "moe-tiny-deepseekv2": 16}
PARTS: dict[str, dict[str, Any]] = {
    "continuation": {"tasks": "continuation", "data_dir": SHARED / "data"},
    "perplexity": {"perplexity": SHARED / "data" / "text" / "valid.jsonl"},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(HALF))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    asked = parser.parse_args(argv)
    for name in asked.models:
        work = asked.work / name
        work.mkdir(parents=True, exist_ok=True)
        pruned = prune_variants(SHARED / "models" / name, work, experts_per_layer=HALF[name], seeds=asked.seeds)
        healed = heal_variants(dict(list(pruned.items())[:3]), work)
        for title, variants, reference in (
            (f"{name}, {HALF[name]} experts kept in each layer", pruned, "unpruned"),
            (f"{name}, healed", healed, "unpruned, healed"),
        ):
            found = [evaluate_variants(variants, work, part, **how) for part, how in PARTS.items()]
            print(f"\n{title}:\n\n" + "\n".join(table(*found, reference=reference)), flush=True)


if __name__ == "__main__":
    main()
