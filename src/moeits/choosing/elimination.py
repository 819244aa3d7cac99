"""The order in which the experts of one layer go: run once to the end, it answers every tau, count and budget."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from operator import neg

import numpy as np

from moeits.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class EliminationOrder:
    """Which expert is removed at each step, down to the last one that stays.

    `levels[k]` is the redundancy of the pair that step k breaks up; it never rises along the order. `mean` and `iqr`
    are those of the layer's matrix, so that the threshold of a tau is mean + tau * iqr (Algorithm 3). A criterion
    without a threshold has no levels.
    """

    num_experts: int
    removed: tuple[int, ...]
    levels: tuple[float, ...] | None = None
    mean: float = 0.0
    iqr: float = 0.0
    scores: tuple[float, ...] | None = None
    """What each expert adds to a sum over the layer, by id, none negative; None where nothing adds up."""
    pairs: np.ndarray | None = field(default=None, compare=False, repr=False)
    """(E, E): how redundant each two experts are, where the order is made of that."""
    sets: tuple[tuple[int, ...] | None, ...] | None = None
    """Who stays after each number of steps, ascending, where a criterion chooses a set for each count by itself.

    None for a count of which it has no set. Whoever is gone at one count may be back at a smaller one; `removed` is
    then only the order nearest to that.
    """

    @classmethod
    def ranked(
        cls, ranks: np.ndarray, levels: np.ndarray, scores: tuple[float, ...] | None = None
    ) -> "EliminationOrder":
        """The order of `ranks`, the number of who goes first before all others, (E,); each expert has a level, (E,)."""
        upper, lower = np.percentile(levels, [75, 25])
        gone = tuple(map(int, ranks[:-1]))
        return cls(
            num_experts=len(levels),
            removed=gone,
            levels=tuple(float(levels[expert]) for expert in gone),
            mean=float(levels.mean()),
            iqr=float(upper - lower),
            scores=scores,
        )

    def steps_at(self, tau: float) -> int:
        """How many steps Algorithm 3 takes at this tau: those whose level is above the threshold.

        Raises PlanError if the criterion has no levels.
        """
        return self.steps_above(self.mean + tau * self.iqr)

    def steps_above(self, threshold: float) -> int:
        """How many steps have a level above this one."""
        if self.levels is None:
            raise PlanError(
                "This criterion has no scores to measure a threshold by: give a reduction, a size or counts."
            )
        # Levels never rise, so the steps taken are a prefix; bisection wants them ascending.
        return bisect_left(self.levels, -threshold, key=neg)

    def without(self, protected: Collection[int]) -> "EliminationOrder":
        """The order of the others, all of which may go: whoever would have been last is then the last to go."""
        if not protected:
            return self
        last = next(iter(set(range(self.num_experts)) - set(self.removed)))
        levels = self.levels and (*self.levels, self.levels[-1])
        steps = [n for n, expert in enumerate((*self.removed, last)) if expert not in protected]
        removed = tuple((*self.removed, last)[n] for n in steps)
        return replace(self, removed=removed, levels=levels and tuple(levels[n] for n in steps))

    def by_groups(self, groups: int) -> "EliminationOrder":
        """The order of a router that is limited by `groups`, equal runs of ids that must stay of equal size.

        It goes in rounds that take one expert of each group; within a group experts go as they do here. A round has the
        lowest level of its experts, so that at every tau each group loses as many as the one that would lose fewest.
        """
        if groups == 1:
            return self
        size, at = self.num_experts // groups, {expert: step for step, expert in enumerate(self.removed)}
        # The group with most experts that are never removed is the shortest, and ends the last round.
        rounds = [
            sorted(members, key=at.__getitem__)
            for members in zip(*([e for e in self.removed if e // size == g] for g in range(groups)), strict=False)
        ]
        levels = self.levels and tuple(
            min(self.levels[at[expert]] for expert in members) for members in rounds for _ in members
        )
        removed = tuple(expert for members in rounds for expert in members)
        return replace(self, removed=removed, levels=levels)

    def _no_set(self, count: int) -> str:
        known = [len(members) for members in reversed(self.sets or ()) if members and len(members) < self.num_experts]
        return (
            f"This budget keeps {count} of {self.num_experts} experts in a layer, and the evidence has sets of "
            f"{', '.join(map(str, known)) or 'no other count than all'} there. Search for the counts of a plan by "
            "moe-i2, which has the same ones, with: moeits calibrate MODEL --search-sets PLAN --output "
            "signals.safetensors"
        )

    def kept_after(self, steps: int) -> tuple[int, ...]:
        """The experts left after that many steps, ascending. Raises PlanError for a count of which there is no set."""
        if self.sets is not None:
            if (members := self.sets[steps]) is None:
                raise PlanError(self._no_set(self.num_experts - steps))
            return members
        return tuple(sorted(set(range(self.num_experts)) - set(self.removed[:steps])))


def steps_to(order: Sequence[int], kept: Sequence[int], num_experts: int) -> int | None:
    """After how many steps of an order exactly `kept` are left; None if that never happens."""
    steps = num_experts - len(kept)
    return steps if set(order[:steps]) == set(range(num_experts)) - set(kept) else None
