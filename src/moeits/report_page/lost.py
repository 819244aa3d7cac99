"""What a model lost against the unpruned one and against chance: the numbers that a decision to ship it needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from moeits.report_page.differences import Pairing
from moeits.report_page.measures import Measure
from moeits.report_page.rows import Row
from moeits.stages.compare import Difference


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference with its 95 % interval, in the unit of its measure."""

    middle: float
    low: float
    high: float
    items: int
    """Items of the task, or documents, that it is about; of several tasks those of the smallest."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What one model lost by one measure. Differences are its own value minus the other's."""

    measure: Measure
    row: Row
    value: float
    before: float | None
    """The unpruned model's; None if it was not evaluated alike."""
    lost: Interval | None
    """Against the unpruned model, on the same items; None if the two cannot be paired."""
    rivals: tuple[Row, ...]
    """Random choices of as many experts in every layer, treated alike and evaluated alike."""
    against: Interval | None
    """Against the mean of its rivals, item by item; None if they cannot be paired, and of a mean over several tasks."""

    @property
    def is_loss(self) -> bool:
        """Whether smaller is better."""
        return self.measure.metric == "nats_per_token"

    def is_worse(self, difference: float) -> bool:
        """Whether a difference means that something was lost."""
        return (difference > 0) == self.is_loss

    @property
    def chance(self) -> tuple[float, float, float] | None:
        """What the rivals score: the mean, the lowest, the highest; None without rivals."""
        values = [score[0] for row in self.rivals if (score := self.measure.of(row))]
        return (sum(values) / len(values), min(values), max(values)) if values else None

    @property
    def standing(self) -> str:
        """Beside a random choice: `better`, `worse`, `untold`, or `alone` where there is none."""
        if self.chance is None:
            return "alone"
        if self.against is not None:
            low, high = self.against.low, self.against.high
        else:
            _, least, most = self.chance
            low, high = self.value - most, self.value - least
        if low <= 0 <= high:
            return "untold"
        return "worse" if self.is_worse(low) else "better"

    @property
    def outcome(self) -> str:
        """Beside the unpruned model: `lost`, `gained`, `untold`, or `unknown` where that was not evaluated alike."""
        if self.lost is None:
            return "unknown"
        if self.lost.low <= 0 <= self.lost.high:
            return "untold"
        return "lost" if self.is_worse(self.lost.middle) else "gained"


def what_was_lost(row: Row, measure: Measure, pairs: Pairing, alike: Sequence[Row]) -> Lost | None:
    """None if the measure says nothing of the row."""
    value = measure.of(row)
    if value is None:
        return None
    unpruned = pairs.unpruned if pairs.unpruned in alike else None
    before = measure.of(unpruned) if unpruned else None
    rivals = [each for each in pairs.rivals(row) if each in alike and measure.of(each) and _treated_alike(row, each)]
    return Lost(
        measure=measure,
        row=row,
        value=value[0],
        before=before[0] if before else None,
        lost=_over_tasks(measure, [pairs.lost(row).by_metric.get((task, measure.metric)) for task in measure.tasks])
        if before
        else None,
        rivals=tuple(rivals),
        against=_over_tasks(measure, [pairs.against_mean(row, rivals, measure.tasks[0], measure.metric)])
        if rivals and len(measure.tasks) == 1
        else None,
    )


def _treated_alike(row: Row, rival: Row) -> bool:
    """Whether both were refitted or neither; `Pairing.rivals` sees to healing."""
    return bool(row.point.refit) == bool(rival.point.refit)


def _over_tasks(measure: Measure, found: Sequence[Difference | None]) -> Interval | None:
    """The difference of the mean over tasks, which are taken as independent; None if one could not be paired."""
    known = [each for each in found if each]
    if not known or len(known) < len(found):
        return None
    scale = 1 if measure.metric == "nats_per_token" else 100
    middle = sum(each.difference for each in known) / len(known)
    items = min(each.items for each in known)
    if len(known) == 1:
        low, high = known[0].low, known[0].high
    else:
        half = sqrt(sum(((each.high - each.low) / 2) ** 2 for each in known)) / len(known)
        low, high = middle - half, middle + half
    return Interval(middle=scale * middle, low=scale * low, high=scale * high, items=items)
