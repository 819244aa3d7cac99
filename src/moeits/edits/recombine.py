"""Neurons of removed experts move into the kept experts that have one like them (DERN)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.edits import Edit, Group
from moeits.edits.neurons import Blend, ReadNeurons, Terms
from moeits.edits.none import Unedited
from moeits.edits.shares import shares_of
from moeits.errors import SettingError
from moeits.evidence import Evidence
from moeits.settings import EXPERT, setting

_MOST_ROUNDS = 30
_HELD_BYTES = 2**29
"""Of removed experts that are compared with all kept ones at a time, as float32."""

_MOVING_BYTES = 2**29
"""Of moving neurons that are held until they are clustered; those beyond are read again, as many at a time."""


@dataclass(frozen=True)
class Recombine(Unedited):
    """Steps 2 and 3 of DERN: a neuron (its gate row, up row and down column) goes to the kept expert that has the one
    most similar to it, if that is similar enough, and each kept expert clusters what it has into as many as before.

    Similarity is the mean cosine of up and down. Clusters are those of spherical k-means on the whole neuron, from the
    kept expert's own neurons on; members are scaled to their mean norm and weigh as their expert's sum of gates, where
    the evidence knows it, else by how often it is chosen, else equally. Rows of the router stay as they are. What is
    not as published: DERN starts from the neurons with the largest gate rows, by which near-copies take several seeds.
    """

    name: ClassVar[str] = "recombine"
    weights: ClassVar[str] = (
        "Neurons of removed experts were put into those that are left, where these have similar ones (`edit` in "
        "plan.json); all other weights are those of the source, bit for bit."
    )

    min_similarity: float = setting(
        0.6, help="Of --edit recombine: how similar a moving neuron must be to one that stays.", panel=EXPERT
    )

    def __post_init__(self) -> None:
        if not -1 <= self.min_similarity <= 2:  # above 1 nobody moves, which is plain removal
            raise SettingError(
                f"--min-similarity {self.min_similarity} is out of range: it is a cosine, such as 0.6; above 1 no "
                "neuron moves."
            )

    def groups(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Group]:
        count = evidence.layers[layer].num_experts
        removed = sorted(set(range(count)) - set(kept))
        if not removed:
            return {}
        return {
            expert: shares_of([expert, *removed], evidence, layer, ("router-score", "frequency")) for expert in kept
        }

    def blends(self, groups: Mapping[int, Group], read: ReadNeurons) -> Mapping[int, Blend]:
        moved = _moves(groups, read, self.min_similarity)
        blends: dict[int, Blend] = {}
        for takers in _few_takers(moved):
            rows = _rows_of(takers, moved, read)
            for expert in takers:
                blends[expert] = _clustered(expert, groups[expert], moved.pop(expert), rows.pop(expert), read)
        return {expert: blends[expert] for expert in groups if expert in blends}


@dataclass(frozen=True)
class _Moving:
    """Neurons of one removed expert that move into one kept expert."""

    numbers: np.ndarray
    nbytes: int
    """Of their rows."""
    whole: np.ndarray | None
    """(n, 3 H): gate row, up row and down column of each; None where they are to be read again."""


_Moved = Mapping[int, _Moving]
"""By removed expert."""


def _moves(groups: Mapping[int, Group], read: ReadNeurons, least: float) -> dict[int, dict[int, _Moving]]:
    """Kept expert -> what moves into it: every neuron goes where the most similar one is, the lower id on ties.

    A removed expert is read once; a kept one once for as many removed ones as are held at a time. Rows that move
    are held as far as they fit.
    """
    free = _MOVING_BYTES
    moved: dict[int, dict[int, _Moving]] = {expert: {} for expert in groups}
    removed = sorted({member for group in groups.values() for member, _ in group} - groups.keys())
    for held in _few_at_a_time(removed, read):
        similar = {member: _up_and_down(neurons) for member, neurons in held.items()}
        best = {member: np.full(len(rows), -np.inf) for member, rows in similar.items()}
        target = {member: np.full(len(rows), -1) for member, rows in similar.items()}
        for expert, group in sorted(groups.items()):
            if not (members := sorted(held.keys() & {member for member, _ in group})):
                continue
            own = _up_and_down(read(expert))
            for member in members:
                nearest = (similar[member] @ own.T).max(axis=1)
                better = nearest > best[member]
                best[member][better], target[member][better] = nearest[better], expert
        for member, neurons in held.items():
            whole = _whole(neurons)
            for expert in groups:
                numbers = np.flatnonzero((target[member] == expert) & (best[member] > least))
                if not len(numbers):
                    continue
                nbytes = len(numbers) * whole[0].nbytes
                fits = nbytes <= free
                free -= nbytes if fits else 0
                moved[expert][member] = _Moving(numbers, nbytes, whole[numbers] if fits else None)
    return moved


def _few_takers(moved: Mapping[int, _Moved]) -> list[list[int]]:
    """Kept experts into which something moves, as many at a time as what is read again for them fits; one at least."""
    batches: list[list[int]] = []
    free = 0
    for expert, of in moved.items():
        nbytes = sum(moving.nbytes for moving in of.values() if moving.whole is None)
        if of and (not batches or nbytes > free):
            batches.append([])
            free = _MOVING_BYTES
        if of:
            batches[-1].append(expert)
            free -= nbytes
    return batches


def _rows_of(takers: Sequence[int], moved: Mapping[int, _Moved], read: ReadNeurons) -> dict[int, dict[int, np.ndarray]]:
    """Kept expert -> removed one -> the rows that move; a removed one is read at most once for all these takers."""
    rows: dict[int, dict[int, np.ndarray]] = {expert: {} for expert in takers}
    for member in sorted({member for expert in takers for member in moved[expert]}):
        again: np.ndarray | None = None
        for expert in takers:
            if (moving := moved[expert].get(member)) is None:
                continue
            if (found := moving.whole) is None:
                again = _whole(read(member)) if again is None else again
                found = again[moving.numbers]
            rows[expert][member] = found
    return rows


def _few_at_a_time(experts: Sequence[int], read: ReadNeurons) -> Iterator[dict[int, Mapping[str, np.ndarray]]]:
    """Experts with their weights, as many at a time as fit; who asks for the next ones is done with these."""
    held: dict[int, Mapping[str, np.ndarray]] = {}
    for expert in experts:
        held[expert] = read(expert)
        nbytes = sum(rows.nbytes for neurons in held.values() for rows in neurons.values())
        if nbytes >= _HELD_BYTES or expert == experts[-1]:
            yield held
            held.clear()


def _up_and_down(neurons: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows whose products are the mean of the cosines of up and of down."""
    return np.concatenate([_unit(neurons[name]) for name in ("up", "down")], axis=1) / np.float32(np.sqrt(2))


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _clustered(expert: int, group: Group, moved: _Moved, rows: Mapping[int, np.ndarray], read: ReadNeurons) -> Blend:
    """What an expert has and what moves into it, as many clusters as it has neurons, each of which becomes one."""
    weight_of = dict(group)
    own = _whole(read(expert))
    from_whom = {expert: np.arange(len(own))} | {member: moved[member].numbers for member in sorted(moved)}
    neurons = np.concatenate([own, *(rows[member] for member in sorted(moved))])
    members = np.concatenate([np.full(len(numbers), member) for member, numbers in from_whom.items()])
    weights = np.array([weight_of.get(member, 0.0) for member in members])
    numbers = np.concatenate([*from_whom.values()])
    which, made, shares = _k_means(neurons, len(own), weights)
    return {
        member: Terms(neurons=numbers[which[of]], made=made[of], shares=shares[of])
        for member in from_whom
        if len(of := np.flatnonzero((members[which] == member) & (shares != 0)))
    }


def _whole(neurons: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([*neurons.values()], axis=1)


def _k_means(neurons: np.ndarray, count: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which neurons, in which cluster, multiplied by what; the first `count` are the seeds.

    A cluster that nobody is in any more stays what it was.
    """
    norms, unit, everyone = np.linalg.norm(neurons, axis=1).astype(np.float64), _unit(neurons), np.arange(len(neurons))
    which, made, shares, centres = everyone[:count], everyone[:count], np.ones(count), unit[:count]
    nearest: np.ndarray | None = None
    for _ in range(_MOST_ROUNDS):
        before, nearest = nearest, (unit @ centres.T).argmax(axis=1)
        if before is not None and np.array_equal(before, nearest):
            break
        left = np.bincount(nearest, minlength=count)[made] == 0
        own_shares = _shares(nearest, count, norms, weights)
        which = np.concatenate([which[left], everyone])
        made, shares = np.concatenate([made[left], nearest]), np.concatenate([shares[left], own_shares])
        centres = np.zeros((count, neurons.shape[1]))
        Terms(neurons=which, made=made, shares=shares).add(neurons, centres)
        centres = _unit(centres).astype(np.float32)
    return which, made, shares


def _shares(made: np.ndarray, count: int, norms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """By how much each member of a cluster is multiplied: scaled to the mean norm, then weighed."""
    members = np.bincount(made, minlength=count)
    sums = np.bincount(made, weights=weights, minlength=count)
    mean_norm = np.bincount(made, weights=norms, minlength=count) / np.maximum(members, 1)
    # A cluster of experts that nobody chooses has equal weights.
    weighed = np.where(sums[made] > 0, weights / np.where(sums > 0, sums, 1)[made], 1 / members[made])
    return weighed * mean_norm[made] / np.where(norms > 0, norms, 1)


EDIT: Edit = Recombine()
