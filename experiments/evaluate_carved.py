"""The paper's five tasks on a language model above chance: SmolLM2-135M carved into 16 experts a layer, 25 % pruned.

    python ../shared/tools/carve_smollm2.py dense ...      then stats ... and carve ... --out MOE, as its docstring says
    OMP_NUM_THREADS=1 python -m experiments.evaluate_carved MOE --work FOLDER

Zero-shot, 200 items a task, float32. About 50 minutes of one core.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.pruned_variants import evaluate_variants, prune_variants, table_by_task

SHARED = Path(__file__).parents[2] / "shared"
TASKS = ("arc_easy", "winogrande", "hellaswag", "arc_challenge", "boolq")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--experts-per-layer", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--limit", type=int, default=200)
    asked = parser.parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    variants = prune_variants(asked.model, asked.work, experts_per_layer=asked.experts_per_layer, seeds=asked.seeds)
    how = {"num_fewshot": 0, "batch_size": 4, "limit": asked.limit, "data_dir": SHARED / "data"}
    found = [evaluate_variants(variants, asked.work, task, tasks=task, **how) for task in asked.tasks]
    print("\n".join(table_by_task(found)))


if __name__ == "__main__":
    main()
