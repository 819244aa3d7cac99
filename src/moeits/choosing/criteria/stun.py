"""Experts whose router rows lie close are one cluster, of which one expert stays: the first stage of STUN."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from moeits.choosing.elimination import EliminationOrder
from moeits.evidence import Evidence

Clusters = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Stun:
    """Agglomerative clustering of router rows by complete linkage; the expert nearest to its cluster's mean stays.

    arXiv 2409.06211, by router rows alone, so that no data are needed. In a layer of fewer than three clusters it
    averages their experts, and a second stage prunes weights one by one; neither is done here.
    """

    name: ClassVar[str] = "stun"
    needs: ClassVar[tuple[str, ...]] = ("router-nearness", "weight-nearness")
    needs_seed: ClassVar[bool] = False
    allocation: ClassVar[str] = "uniform"
    chosen: ClassVar[str] = "close to others by their router rows"

    def rank(self, evidence: Evidence, layer: int, rng: np.random.Generator) -> EliminationOrder:  # noqa: ARG002
        rows, weights = (-evidence.of_pairs(name)[layer] for name in self.needs)
        steps, distances = merged_clusters(rows)
        levels = -np.array(distances or [0.0])
        upper, lower = np.percentile(levels, [75, 25])
        return EliminationOrder(
            num_experts=len(rows),
            removed=_in_turn(steps, weights),
            levels=tuple(map(float, levels[: len(distances)])),
            mean=float(levels.mean()),
            iqr=float(upper - lower),
            sets=tuple(tuple(sorted(nearest(cluster, weights) for cluster in clusters)) for clusters in steps),
        )


CRITERION = Stun()


def merged_clusters(distance: np.ndarray) -> tuple[list[Clusters], list[float]]:
    """Complete linkage of (E, E) distances: the clusters after 0, 1, ... E - 1 merges, and the distance of each merge.

    Each merge takes the two clusters whose farthest members are nearest, the first in row-major order on ties.
    """
    clusters: list[tuple[int, ...]] = [(expert,) for expert in range(len(distance))]
    between = np.where(np.tri(len(distance), dtype=bool), np.inf, distance)
    steps: list[Clusters] = [tuple(clusters)]
    merges: list[float] = []
    while len(clusters) > 1:
        a, b = divmod(int(between.argmin()), len(clusters))
        merges.append(float(between[a, b]))
        whole = np.minimum(between, between.T)
        whole[a] = whole[:, a] = np.maximum(whole[a], whole[b])
        clusters[a] = tuple(sorted((*clusters[a], *clusters.pop(b))))
        whole = np.delete(np.delete(whole, b, axis=0), b, axis=1)
        between = np.where(np.tri(len(clusters), dtype=bool), np.inf, whole)
        steps.append(tuple(clusters))
    return steps, merges


def nearest(cluster: Sequence[int], squared: np.ndarray) -> int:
    """The member nearest to the mean of a cluster, by squared distances (E, E) of all experts' weights."""
    members = list(cluster)
    return members[int(squared[np.ix_(members, members)].mean(axis=1).argmin())]


def _in_turn(steps: Sequence[Clusters], squared: np.ndarray) -> tuple[int, ...]:
    """Who goes at each merge if whoever is gone stays away: of two that stood for their clusters, the farther one."""
    stands: dict[tuple[int, ...], int] = {(expert,): expert for (expert,) in steps[0]}
    gone = []
    for before, after in pairwise(steps):
        (new,) = set(after) - set(before)
        parts = [cluster for cluster in before if set(cluster) < set(new)]
        two = sorted(stands[part] for part in parts)
        means = squared[np.ix_(two, list(new))].mean(axis=1)
        stays = two[int(means.argmin())]
        stands[new] = stays
        gone += [expert for expert in two if expert != stays]
    return tuple(gone)
