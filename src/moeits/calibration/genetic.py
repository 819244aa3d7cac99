"""Sets of a layer's experts by a genetic search, as MoE-I2 goes about it (arXiv 2411.01016)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import SettingError
from moeits.experts.layout import MoELayout
from moeits.printable import printable

Members = tuple[int, ...]
"""Experts of a set, ascending."""

POPULATION, GENERATIONS = 100, 50
CANDIDATES = 3
"""How many sets of a layer are tried with those of its neighbours."""

# The paper does not say what share of a population lives on, nor how often a child has experts of neither parent.
_ELITE, _MUTATED, _MOST_SWAPPED = 0.2, 0.3, 2
_MOST_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for one set in every layer."""

    counts: Mapping[int, int]
    """Decoder layer -> how many of its experts stay."""
    seed: int

    @property
    def facts(self) -> dict[str, Any]:
        """What evidence and plan say of it."""
        return {"seed": self.seed, "population": POPULATION, "generations": GENERATIONS, "elite": _ELITE}

    def candidates(self, error: Callable[[Members], float], experts: int, layer: int) -> np.ndarray:
        """(n, E), 1 for the members of each of the best sets of a layer, the best first; `error` is of who stays."""
        rng = np.random.default_rng([self.seed, layer])
        sets = best_sets(error, experts, self.counts[layer], rng)
        return np.array([np.isin(range(experts), members) for members in sets], np.float64)


def members_of(rows: np.ndarray) -> list[Members]:
    """The sets of an array (n, E) of ones and zeros."""
    return [tuple(map(int, np.flatnonzero(row))) for row in rows]


def only_row(members: Members, experts: int) -> np.ndarray:
    """(E, E): one set in the row of its size, and nothing of other sizes."""
    rows = np.zeros((experts, experts))
    rows[len(members) - 1, list(members)] = 1
    return rows


def not_foreseen(*, searches: bool) -> tuple[str, ...]:
    """What a dry run does not count."""
    most = POPULATION + GENERATIONS * (POPULATION - int(_ELITE * POPULATION))
    return (f"The genetic search is not in the seconds: it tries up to {most:,} sets of a layer.",) if searches else ()


def counts_to_search(asked: str | int | Path | PruningPlan, checkpoint: Checkpoint, selection: int) -> dict[int, int]:
    """How many experts of each layer a set shall have: the same number, or as many as a plan keeps there.

    Raises SettingError for counts that a layer cannot keep, or without tokens to try sets on; PlanError.
    """
    layers = MoELayout.of(checkpoint).layers
    if not selection:
        raise SettingError("--search-sets tries sets on the tokens of --selection, which is 0: give 64 or more.")
    if isinstance(asked, int) or (isinstance(asked, str) and asked.strip().isdecimal()):
        count = int(asked) if len(str(asked)) < _MOST_DIGITS else 10**_MOST_DIGITS
        counts = dict.fromkeys(layers, count)
    else:
        counts = (asked if isinstance(asked, PruningPlan) else PruningPlan.load(asked)).counts
    if differing := sorted(counts.keys() ^ layers.keys()):
        raise SettingError(f"--search-sets {_shown(asked)} keeps other layers than the model has: {differing[:5]}.")
    for i, layer in layers.items():
        if layer.groups > 1:
            raise SettingError(
                f"--search-sets searches whatever experts go together, and the router of layer {i} is limited to "
                f"{layer.groups} groups, which must stay of equal size: choose by reconstruction."
            )
        if not max(layer.least_per_group, 1) <= counts[i] <= layer.num_experts:
            raise SettingError(
                f"--search-sets {_shown(asked)} asks for {_shown(counts[i])} experts of layer {i}, which keeps from "
                f"{max(layer.least_per_group, 1)} to {layer.num_experts}."
            )
    return counts


def _shown(value: object) -> str:
    return "of a plan" if isinstance(value, PruningPlan) else printable(str(value), 40)


def best_sets(
    error: Callable[[Members], float], experts: int, count: int, rng: np.random.Generator, *, most: int = CANDIDATES
) -> list[Members]:
    """The sets of `count` experts with the least errors that a genetic search meets, the best first.

    Where there are no more sets than a population has, all are tried. Each is tried once. Ties go to the set whose
    missing experts come first.
    """
    everyone = range(experts)

    def staying(gone: Members) -> Members:
        return tuple(expert for expert in everyone if expert not in gone)

    judged = cache(lambda gone: (error(staying(gone)), gone))
    size = experts - count
    if comb(experts, size) <= POPULATION:
        met = [*combinations(everyone, size)]
    else:
        met = _bred(judged, experts, size, rng)
    return [staying(gone) for _, gone in sorted(map(judged, met))[:most]]


def _bred(
    judged: Callable[[Members], tuple[float, Members]], experts: int, size: int, rng: np.random.Generator
) -> list[Members]:
    """All sets of missing experts that were tried: a random population, and generations of its best ones' children."""
    population = _filled({}, experts, size, rng)
    met = dict.fromkeys(population)
    for _ in range(GENERATIONS):
        ranked = [gone for _, gone in sorted(map(judged, population))]
        grown = dict.fromkeys(ranked[: int(_ELITE * POPULATION)])
        for _ in range(POPULATION):
            if len(grown) == POPULATION:
                break
            first, second = rng.choice(POPULATION // 2, 2, replace=False)
            grown.setdefault(_child(ranked[first], ranked[second], experts, rng))
        population = _filled(grown, experts, size, rng)
        met |= dict.fromkeys(population)
    return [*met]


def _filled(known: dict[Members, None], experts: int, size: int, rng: np.random.Generator) -> list[Members]:
    """A whole population, what is missing of it drawn at random: no set is there twice."""
    while len(known) < POPULATION:
        known.setdefault(tuple(sorted(map(int, rng.choice(experts, size, replace=False)))))
    return [*known]


def _child(first: Members, second: Members, experts: int, rng: np.random.Generator) -> Members:
    """As many experts, drawn from those of both parents; sometimes one or two of them are swapped for others."""
    union = sorted({*first, *second})
    child = {int(expert) for expert in rng.choice(union, len(first), replace=False)}
    others = [expert for expert in range(experts) if expert not in child]
    if rng.random() < _MUTATED:
        swapped = min(int(rng.integers(1, _MOST_SWAPPED + 1)), len(child), len(others))
        child -= {int(expert) for expert in rng.choice(sorted(child), swapped, replace=False)}
        child |= {int(expert) for expert in rng.choice(others, swapped, replace=False)}
    return tuple(sorted(child))
