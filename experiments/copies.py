"""Who finds a planted copy: in every layer of the demo model expert 5 is made of expert 2, and someone has to go first.

    OMP_NUM_THREADS=1 python -m experiments.copies --work FOLDER

Prints the table of docs/copies.md: in how many of the layers one of the two goes first. About four minutes of one core.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import moeits
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.criteria import CRITERIA, Criterion, elimination_order
from moeits.evidence import Evidence, merged
from moeits.experts.layout import MoELayout

DEMO = Path(moeits.__file__).parent / "demo" / "demo-qwen2moe"
PARTS = ("gate", "up", "down")
TWO, FIVE = 2, 5
SHOWN = (
    "moeits",
    "chance-corrected",
    "correlation",
    "gaussian",
    "aligned",
    "router-cosine",
    "aimer",
    "weight-norm",
    "frequency",
    "reap",
    "reconstruction",
)

Weights = Mapping[str, np.ndarray]
"""gate and up (I, H), down (H, I), float32."""


def exact(expert: Weights, rng: np.random.Generator) -> Weights:  # noqa: ARG001
    return expert


def permuted(expert: Weights, rng: np.random.Generator) -> Weights:
    order = rng.permutation(len(expert["gate"]))
    return {"gate": expert["gate"][order], "up": expert["up"][order], "down": expert["down"][:, order]}


def scaled(expert: Weights, rng: np.random.Generator) -> Weights:  # noqa: ARG001
    return {**expert, "up": 2 * expert["up"], "down": expert["down"] / 2}


def neurons_scaled(expert: Weights, rng: np.random.Generator) -> Weights:
    by = np.exp2(rng.integers(-2, 3, len(expert["up"]))).astype(np.float32)
    return {**expert, "up": by[:, None] * expert["up"], "down": expert["down"] / by}


def noisy(share: float) -> Callable[[Weights, np.random.Generator], Weights]:
    def made(expert: Weights, rng: np.random.Generator) -> Weights:
        return {name: w + share * w.std() * rng.standard_normal(w.shape, np.float32) for name, w in expert.items()}

    return made


def permuted_and_noisy(expert: Weights, rng: np.random.Generator) -> Weights:
    return noisy(0.3)(permuted(expert, rng), rng)


KINDS: Mapping[str, Callable[[Weights, np.random.Generator], Weights]] = {
    "no copy": lambda expert, rng: {},  # noqa: ARG005
    "exact": exact,
    "noise of 10 %": noisy(0.1),
    "noise of 30 %": noisy(0.3),
    "noise of 100 %": noisy(1.0),
    "up doubled, down halved": scaled,
    "neurons scaled, each by its own": neurons_scaled,
    "neurons in another order": permuted,
    "another order, noise of 30 %": permuted_and_noisy,
}


def plant(kind: str, folder: Path) -> Path:
    """The demo model with expert 5 of every layer made of expert 2."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(DEMO, folder)
    (shard,) = folder.glob("*.safetensors")
    tensors, rng = load_file(shard), np.random.default_rng(0)
    for layer in MoELayout.of(Checkpoint.open(DEMO)).layers:
        names = {part: f"model.layers.{layer}.mlp.experts.{{}}.{part}_proj.weight" for part in PARTS}
        own = {part: tensors[name.format(TWO)].astype(np.float32) for part, name in names.items()}
        for part, weight in KINDS[kind](own, rng).items():
            before = tensors[names[part].format(FIVE)]
            tensors[names[part].format(FIVE)] = np.ascontiguousarray(weight).astype(before.dtype)
    save_file(tensors, shard, metadata={"format": "pt"})
    return folder


def found(evidence: Evidence, criterion: Criterion) -> int:
    """In how many layers one of the two is the first to go."""
    rng = np.random.default_rng(0)
    orders = [elimination_order(criterion, evidence, layer, rng) for layer in evidence.layers]
    return sum(order.removed[0] in (TWO, FIVE) for order in orders)


def seen(model: Path, tokens: int) -> Evidence:
    """All that the criteria shown need of a model."""
    scored = moeits.score(model, signals="correlation,gaussian,aligned,router-cosine,aimer,weight-norm")
    return merged(
        [scored, moeits.calibrate(model, data="bundled", tokens=tokens, output=model.with_suffix(".signals"))]
    )


def table(work: Path, tokens: int) -> list[str]:
    """Lines of Markdown: a kind of copy each, and in how many layers each criterion found it."""
    criteria = {criterion.name: criterion for criterion in CRITERIA}
    lines = [f"| expert 5 | {' | '.join(SHOWN)} |", f"| --- |{' ---: |' * len(SHOWN)}"]
    for number, kind in enumerate(KINDS):
        evidence = seen(plant(kind, work / str(number)), tokens)
        lines.append(f"| {kind} | {' | '.join(str(found(evidence, criteria[name])) for name in SHOWN)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    asked = parser.parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    print("\n".join(table(asked.work, asked.tokens)))


if __name__ == "__main__":
    main()
