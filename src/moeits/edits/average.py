"""Removed experts are put into the kept one that they are most redundant with, as a weighted average."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.edits import Edit, Group
from moeits.edits.shares import shares_of
from moeits.evidence import Evidence


@dataclass(frozen=True)
class Average:
    """W' = sum_i w_i W_i over a kept expert and the removed ones nearest to it, w by how often each is chosen.

    The weighted merging of M-SMoE (arXiv 2310.01334, eq. 2) without its alignment of neurons, with groups by R instead
    of router logits. Where frequencies are not known all weights are equal. Neurons of two experts correspond only as
    far as both come from one dense model, so compare it with `none`.
    """

    name: ClassVar[str] = "average"
    needs: ClassVar[tuple[str, ...]] = ("redundancy",)
    weighs: ClassVar[tuple[str, ...]] = ("frequency",)
    """Signals by the first of which that is known members are weighed."""
    weights: ClassVar[str] = (
        "Where experts were removed, those that are left are weighted averages of themselves and of removed ones "
        "(`edit` in plan.json); all other weights are those of the source, bit for bit."
    )

    def groups(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Group]:
        redundancy = evidence.redundancy[layer]
        members: dict[int, list[int]] = {expert: [expert] for expert in kept}
        for expert in sorted(set(range(len(redundancy))) - set(kept)):
            nearest = kept[int(redundancy[expert, list(kept)].argmax())]
            members[nearest].append(expert)
        return {
            expert: shares_of(group, evidence, layer, self.weighs)
            for expert, group in members.items()
            if len(group) > 1
        }

    def make(self, expert: int, group: Group, read: Callable[[int], np.ndarray]) -> np.ndarray:  # noqa: ARG002
        total: np.ndarray | None = None
        for member, weight in group:
            part = read(member) * weight
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        return total


EDIT: Edit = Average()
