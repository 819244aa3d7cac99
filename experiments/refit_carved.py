"""A real language model, a quarter and half of its experts gone, refitted on text of its own: loss and the five tasks.

    python ../shared/tools/carve_smollm2.py dense ...      then stats ... and carve ... --out MOE, as its docstring says
    OMP_NUM_THREADS=1 python -m experiments.refit_carved MOE --work FOLDER

SmolLM2-135M as 16 experts a layer; experts chosen by reconstruction, 16,384 self-written tokens in windows of 128. What
judges is text of another kind, the beginnings of the articles of WikiText-2's test split, and 200 items of each task,
zero-shot, float32. About 100 minutes of one core; what lies in the work folder is not made again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import moeits
from experiments import wikitext_heads
from experiments.pruned_variants import evaluate_variants, table, table_by_task

SHARED = Path(__file__).parents[2] / "shared"
TEXTS = {"data": "self", "tokens": 16_384, "window": 128}


def refit_variants(model: Path, work: Path, kept: Sequence[int]) -> dict[str, Path]:
    """Name of each variant -> its checkpoint folder; the unpruned model first."""
    signals, variants = work / "signals.safetensors", {"unpruned": model}
    if not signals.exists():
        moeits.calibrate(model, output=signals, **TEXTS)
    for count in kept:
        pruned, refitted = work / f"recon-{count}", work / f"recon-{count}-refit"
        if not pruned.exists():
            plan = moeits.plan(signals, criterion="reconstruction", experts_per_layer=count)
            moeits.prune(model, plan=plan, output=pruned)
        if not refitted.exists():
            moeits.refit(pruned, parent=model, output=refitted, **TEXTS)
        variants |= {f"{count} kept": pruned, f"{count} kept, refitted": refitted}
    return variants


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kept", type=int, nargs="*", default=[12, 8])
    parser.add_argument("--limit", type=int, default=200)
    asked = parser.parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    heads = asked.work / "wikitext.jsonl"
    if not heads.exists():
        heads.write_text("".join(f"{line}\n" for line in wikitext_heads.documents()), encoding="utf-8")
    variants = refit_variants(asked.model, asked.work, asked.kept)
    text = evaluate_variants(variants, asked.work, "wiki", perplexity=heads)
    print("\n".join(table(text)))
    for count in asked.kept:
        pair = {name: text[name] for name in (f"{count} kept", f"{count} kept, refitted")}
        print("\n" + "\n".join(table(pair, reference=f"{count} kept")))
    how = {"num_fewshot": 0, "batch_size": 8, "limit": asked.limit, "data_dir": SHARED / "data"}
    print("\n" + "\n".join(table_by_task([evaluate_variants(variants, asked.work, "tasks", tasks="paper", **how)])))


if __name__ == "__main__":
    main()
