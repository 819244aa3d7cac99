"""Algorithm 3 above the noise floor: what chance alone explains removes nobody."""

from dataclasses import replace

import numpy as np

from moeits.stages.plan import plan
from tests.toys import random_redundancy, toy_evidence


def removed(evidence, criterion: str) -> tuple[int, ...]:  # type: ignore[no-untyped-def]
    return tuple(expert for expert, _ in plan(evidence, experts_per_layer=2, criterion=criterion).order[0])


def test_without_a_floor_it_is_the_papers_order() -> None:
    evidence = toy_evidence({0: random_redundancy(np.random.default_rng(0), 9)}, top_k=2)
    assert removed(replace(evidence, floor={}), "chance-corrected") == removed(evidence, "moeits")


def test_experts_whose_histograms_alone_score_high_stay_and_a_copy_goes() -> None:
    # Experts 0 to 3 fill many bins, so that chance alone makes them look alike; only 6 and 7 share anything.
    many = np.array([1.0, 1.0, 1.0, 1.0, 0.2, 0.2, 0.2, 0.2])
    floor = 0.05 * np.outer(many, many) * (1 - np.eye(8))
    redundancy = floor.copy()
    redundancy[6, 7] = redundancy[7, 6] = floor[6, 7] + 0.01
    evidence = replace(toy_evidence({0: redundancy}, top_k=2), floor={0: floor})
    assert removed(evidence, "moeits")[0] in range(4), "the paper's order follows the floor"
    assert removed(evidence, "chance-corrected")[0] in (6, 7)
