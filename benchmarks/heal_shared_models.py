"""`python -m benchmarks.heal_shared_models [WORK]`: what healing restores on three small trained models.

Each model is pruned to half of its experts, by MoEITS and at random, and healed with the recipe `small`: on the next
token, the routers alone, and by distillation from the unpruned model. Beside them stands the unpruned model healed the
same way, without which the gain could be nothing but more training. Losses are of the whole of valid.jsonl, packed into
sequences of 256 tokens. Whatever lies in the work folder is not made again. Prints the table of docs/healing.md.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import moeits
from moeits.checkpoint import Checkpoint
from moeits.healing.batches import Sequencer
from moeits.healing.conversations import read_rows
from moeits.healing.template import Template
from moeits.inspect import inspect

SHARED = Path(__file__).parents[2] / "shared"
MODELS = ("moe-tiny-mixtral", "moe-tiny-qwen2moe", "moe-tiny-deepseekv2")
LENGTH = 256


def main() -> None:
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "heal-benchmark")
    print("| model | variant | loss | recovered | trained parameters | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in MODELS:
        for row in rows(SHARED / "models" / name, work / name):
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)


def rows(model: Path, work: Path) -> list[tuple[str, ...]]:
    """Rows of one model: variant, loss, share of the lost loss that came back, parameters trained, seconds."""
    half = inspect(model).layers[0].experts // 2
    pruned, random = work / "pruned", work / "random"
    if not pruned.exists():
        moeits.simplify(model, output=pruned, experts_per_layer=half)
        moeits.simplify(model, output=random, experts_per_layer=half, criterion="random", seed=0)
    distilled: Mapping[str, Any] = {"objective": "distillation", "teacher": model}
    healings: dict[str, tuple[Path, Mapping[str, Any]]] = {
        "pruned, healed": (pruned, {}),
        "pruned, routers healed": (pruned, {"targets": "router"}),
        "pruned, healed by distillation": (pruned, distilled),
        "unpruned, healed the same way": (model, {}),
        "random, healed": (random, {}),
    }
    losses = {"unpruned": loss(model, work), "pruned": loss(pruned, work), "random": loss(random, work)}
    facts: dict[str, dict[str, Any]] = {}
    for variant, (source, settings) in healings.items():
        output = work / variant.replace(", ", "-").replace(" ", "-")
        if not output.exists():
            heal(source, output, settings)
        losses[variant] = loss(output, work)
        facts[variant] = json.loads((output / "healing.json").read_text())
    return [row(variant, losses, facts.get(variant)) for variant in losses]


def heal(source: Path, output: Path, settings: Mapping[str, Any]) -> None:
    text = SHARED / "data" / "text"
    moeits.heal(
        source,
        data=text / "train.jsonl",
        valid=text / "valid.jsonl",
        output=output,
        recipe="small",
        fresh=True,
        **settings,
    )


def row(variant: str, losses: Mapping[str, float], facts: Mapping[str, Any] | None) -> tuple[str, ...]:
    if facts is None:
        return variant, f"{losses[variant]:.4f}", "", "", ""
    start = losses["random" if variant.startswith("random") else "pruned"]
    share = (start - losses[variant]) / (start - losses["unpruned"])
    recovered = "" if variant.startswith("unpruned") else f"{share:.0%}"
    return variant, f"{losses[variant]:.4f}", recovered, f"{facts['trainable_parameters']:,}", f"{facts['seconds']:.0f}"


def loss(model: Path, work: Path) -> float:
    """Loss per token of all of valid.jsonl, in nats; kept in the work folder."""
    kept = work / f"{model.name if model.parent == work else 'unpruned'}.loss.json"
    if not kept.exists():
        kept.write_text(json.dumps(measure(model)))
    return json.loads(kept.read_text())


def measure(model: Path) -> float:
    import transformers

    from moeits.healing.training import measure_held_out

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    sequencer = Sequencer(
        template=Template.of(tokenizer, "auto"), length=LENGTH, packing=True, answers_only=False, most=10**6, seed=0
    )
    text = sequencer.split(read_rows(SHARED / "data/text/valid.jsonl"), samples=None, holdout=0, valid=None)
    return measure_held_out(Checkpoint.open(model), text.training, tokenizer.pad_token_id, "float32")


if __name__ == "__main__":
    main()
