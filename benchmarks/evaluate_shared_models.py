"""The three trained models of ../shared/models: unpruned, MoEITS at half of the experts, random with the same counts.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluate_shared_models --work FOLDER

Continuation accuracy on 400 items and loss on held-out text, float32, with paired intervals against the unpruned model.
About 45 minutes of one core.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.pruned_variants import evaluate_variants, prune_variants, table

SHARED = Path(__file__).parents[2] / "shared"
HALF = {"moe-tiny-mixtral": 4, "moe-tiny-qwen2moe": 16, "moe-tiny-deepseekv2": 16}
PARTS: dict[str, dict[str, Any]] = {
    "continuation": {"tasks": "continuation", "data_dir": SHARED / "data"},
    "perplexity": {"perplexity": SHARED / "data" / "text" / "valid.jsonl"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(HALF))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    asked = parser.parse_args()
    for part, how in PARTS.items():
        for model in asked.models:
            work = asked.work / model
            work.mkdir(parents=True, exist_ok=True)
            variants = prune_variants(SHARED / "models" / model, work, experts_per_layer=HALF[model], seeds=asked.seeds)
            print(f"\n{model}, {HALF[model]} experts kept in each layer\n")
            print("\n".join(table(evaluate_variants(variants, work, part, **how))), flush=True)


if __name__ == "__main__":
    main()
