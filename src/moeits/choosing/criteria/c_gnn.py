"""Communities of experts that answer alike and are chosen together keep slots by their size: C-GNN-Prune, guessed.

Of C-GNN-Prune only the abstract is public. This is a reconstruction from it, in which every formula is ours: it is not
to be reported as that paper's method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.errors import EvidenceError
from moeits.evidence import Evidence
from moeits.extras import need
from moeits.signals.watched import MEAN_OUTPUT

DIMENSIONS = 16
"""To which mean outputs are projected, by their own principal components."""

_HOPS = 2
# No share of choices is smaller, whatever a file says.
_LEAST = 1e-12


@dataclass(frozen=True)
class CGNN:
    """Greedy modularity on a graph of a layer's experts; each community's experts with the largest gates stay.

    An edge is half the cosine of mean outputs, on [0, 1], and half the share of tokens that chose both, times how
    alike the two are (the cosine again) once features have passed two edges: mean output, frequency and mean gate, by
    `D^-1/2 (A + I) D^-1/2` and without any training. Layers lose experts by the entropy of how often theirs are chosen;
    the abstract does not say in which direction, so there is `--allocation entropy-reversed` too.
    """

    name: ClassVar[str] = "c-gnn"
    needs: ClassVar[tuple[str, ...]] = (MEAN_OUTPUT, "coactivation", "frequency", "router-score")
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "entropy"
    chosen: ClassVar[str] = "little used"
    caveat: ClassVar[str] = "reconstructed from an abstract"
    has_levels: ClassVar[bool] = False

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:  # noqa: ARG002
        outputs, together = evidence.known(MEAN_OUTPUT)[layer], evidence.of_pairs("coactivation")[layer]
        frequency, gates = (evidence.of_experts(name)[layer] for name in self.needs[2:])
        if min(map(np.min, (together, frequency, gates))) < 0:
            raise EvidenceError(
                f"Counts or gates of layer {layer} are below 0 in the evidence. Calibrate the model again."
            )
        counts = frequency * (together.sum() / max(evidence.layers[layer].top_k - 1, 1))
        graph = edges(outputs, together, counts)
        graph = graph * alike(passed_on(graph, features(outputs, frequency, gates)))
        # The mean gate times the frequency is the sum of gates, but for a number that a layer's experts share.
        worst_first = np.argsort(gates, kind="stable")
        groups = communities(graph)
        return EliminationOrder(
            num_experts=len(gates),
            removed=tuple(map(int, worst_first[:-1])),
            scores=tuple(map(float, frequency)),
            sets=tuple(_kept(groups, worst_first[::-1], count) for count in range(len(gates), 0, -1)),
        )


CRITERION = CGNN()


def edges(outputs: np.ndarray, together: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(E, E), in [0, 1] with a diagonal of 0: A of mean outputs (E, H), tokens that chose both, and that chose each."""
    both = np.sqrt(counts)[:, None] * np.sqrt(counts)
    chosen = np.divide(together, both, out=np.zeros_like(both), where=both > 0)
    weights = (alike(outputs) + np.clip(chosen, 0, 1)) / 2
    np.fill_diagonal(weights, 0)
    return weights


def alike(vectors: np.ndarray) -> np.ndarray:
    """(E, E): (1 + cosine) / 2 of each two rows; a row of zeros is a half alike to all."""
    scaled = vectors / (np.abs(vectors).max(axis=1, keepdims=True) + (np.abs(vectors).max(axis=1) == 0)[:, None])
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit = scaled / np.where(norms > 0, norms, 1)
    return (1 + np.clip(unit @ unit.T, -1, 1)) / 2


def features(outputs: np.ndarray, frequency: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """(E, at most DIMENSIONS + 2): principal components of mean outputs, frequency and mean gate, each of spread 1."""
    centred = _scaled(outputs)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    mean_gates = np.divide(gates, frequency, out=np.zeros_like(gates), where=frequency > _LEAST)
    parts = ((left * sizes)[:, :DIMENSIONS], frequency[:, None], mean_gates[:, None])
    return np.concatenate([_scaled(part) for part in parts], axis=1)


def _scaled(part: np.ndarray) -> np.ndarray:
    """Columns of mean 0, all of them divided by their common spread."""
    part = part / (np.abs(part).max() or 1)
    centred = part - part.mean(axis=0)
    return centred / (np.sqrt((centred**2).sum(axis=1).mean()) or 1)


def passed_on(graph: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Features (E, F) after they have passed two edges of the graph (E, E)."""
    loops = graph + np.eye(len(graph))
    root = np.sqrt(loops.sum(axis=1))
    for _ in range(_HOPS):
        rows = (loops / root[:, None] / root) @ rows
    return rows


def communities(graph: np.ndarray) -> list[list[int]]:
    """The communities of greedy modularity (Clauset, Newman, Moore), the one with the lowest expert first."""
    networkx = need("networkx", extra="load")
    known = networkx.Graph()
    known.add_nodes_from(range(len(graph)))
    rows, columns = np.nonzero(np.triu(graph, 1))
    known.add_weighted_edges_from(zip(rows.tolist(), columns.tolist(), graph[rows, columns].tolist(), strict=True))
    if not known.number_of_edges():
        return [[expert] for expert in range(len(graph))]
    return sorted(sorted(each) for each in networkx.community.greedy_modularity_communities(known, weight="weight"))


def slots(sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` experts each community keeps: one if there are enough, the rest to whoever lacks most."""
    given = [int(count >= len(sizes))] * len(sizes)
    while sum(given) < count:
        lacking = [size * count / sum(sizes) - own for size, own in zip(sizes, given, strict=True)]
        given[lacking.index(max(lacking))] += 1
    return given


def _kept(groups: Sequence[Sequence[int]], best_first: np.ndarray, count: int) -> tuple[int, ...]:
    """Who stays of so many: of each community the first in the order."""
    place = {int(expert): at for at, expert in enumerate(best_first)}
    given = slots([len(group) for group in groups], count)
    return tuple(
        sorted(
            expert
            for group, most in zip(groups, given, strict=True)
            for expert in sorted(group, key=place.__getitem__)[:most]
        )
    )
