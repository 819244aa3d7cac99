"""`python -m experiments.heal_shared_models [WORK [MODEL ...]]`: what healing restores on three small trained models.

Each model is pruned to half of its experts, by MoEITS and at random, and healed with the recipe `small`: on the next
token, the routers alone, and by distillation from the unpruned model. Beside them stands the unpruned model healed the
same way, without which the gain could be nothing but more training. Losses are those that `moeits heal` measures, of
the checkpoint on disk after the merge: nats per token on 96 sequences of 256 tokens of valid.jsonl, the same for all
three models, which have one tokenizer. Whatever lies in the work folder is not made again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import moeits
from moeits.stages.inspect import inspect

SHARED = Path(__file__).parents[2] / "shared"
MODELS = ("moe-tiny-mixtral", "moe-tiny-qwen2moe", "moe-tiny-deepseekv2")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?", default=Path("heal-benchmark"))
    parser.add_argument("models", nargs="*", default=MODELS)
    asked = parser.parse_args(argv)
    print("| model | variant | loss | recovered | trained parameters | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in asked.models:
        for row in rows(SHARED / "models" / name, asked.work / name):
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)


def rows(model: Path, work: Path) -> list[tuple[str, ...]]:
    """Rows of one model: variant, loss, share of the lost loss that came back, parameters trained, seconds."""
    half = inspect(model).layers[0].experts // 2
    pruned, random = work / "pruned", work / "random"
    if not pruned.exists():
        moeits.simplify(model, output=pruned, experts_per_layer=half)
    if not random.exists():
        moeits.simplify(model, output=random, experts_per_layer=half, criterion="random", seed=0)
    healed = {
        "pruned, healed": healing(work / "healed", pruned),
        "unpruned, healed the same way": healing(work / "unpruned-healed", model),
        "pruned, only routers healed": healing(work / "routers", pruned, targets="router"),
        "pruned, healed by distillation": healing(work / "distilled", pruned, objective="distillation", teacher=model),
        "random, healed": healing(work / "random-healed", random),
    }
    unpruned = healed["unpruned, healed the same way"]["loss_before"]
    lost = {
        "pruned": healed["pruned, healed"]["loss_before"],
        "random": healed["random, healed"]["loss_before"],
    }
    plain = [(name, f"{loss:.4f}", "", "", "") for name, loss in {"unpruned": unpruned, **lost}.items()]
    return plain + [row(name, facts, unpruned, lost) for name, facts in healed.items()]


def healing(output: Path, source: Path, **settings: Any) -> dict[str, Any]:
    """healing.json of a healing with the recipe `small`, done now if it is not there."""
    text = SHARED / "data" / "text"
    if not output.exists():
        files: dict[str, Any] = {"data": text / "train.jsonl", "valid": text / "valid.jsonl"}
        moeits.heal(source, **files, output=output, recipe="small", evaluate_every=50, fresh=True, **settings)
    return json.loads((output / "healing.json").read_text())


def row(name: str, facts: Mapping[str, Any], unpruned: float, lost: Mapping[str, float]) -> tuple[str, ...]:
    loss, before = facts["loss_merged"], lost.get(name.partition(",")[0])
    recovered = "" if before is None else f"{(before - loss) / (before - unpruned):.0%}"
    return name, f"{loss:.4f}", recovered, f"{facts['trainable_parameters']:,}", f"{facts['seconds']:.0f}"


if __name__ == "__main__":
    main()
