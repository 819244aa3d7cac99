"""One scoring, three sizes, each beside a random choice of the same size: is the score worth anything on this model?

python examples/beside_chance.py MODEL text.jsonl FOLDER
"""

import sys
from pathlib import Path

import moeits


def main(model: str, text: str, folder: str) -> None:
    """Print the loss of each checkpoint on a text, in nats per token."""
    Path(folder).mkdir()
    evidence = moeits.score(model)

    def loss(checkpoint: str | Path) -> float:
        return moeits.evaluate(checkpoint, perplexity=text, dtype="float32").perplexity["nats_per_token"]

    print(f"unpruned: {loss(model):.3f}")
    for reduction in (0.125, 0.25, 0.5):
        chosen = moeits.plan(evidence, reduction=reduction)
        by_chance = moeits.plan(evidence, criterion="random", seed=0, like=chosen)
        for plan in (chosen, by_chance):
            output = Path(folder) / f"{plan.criterion}-{reduction}"
            moeits.prune(model, plan=plan, output=output)
            print(f"{reduction:.1%} removed, {plan.criterion}: {loss(output):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
