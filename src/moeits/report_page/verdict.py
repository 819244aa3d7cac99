"""What a run comes to, in sentences: how much is gone, what that cost, and whether it was better than chance."""

from collections.abc import Sequence
from functools import partial
from math import inf

from moeits.report_page.accuracy import percent
from moeits.report_page.artefacts import Point, name_of
from moeits.report_page.differences import Pairing, in_words
from moeits.report_page.measures import Measure, measures_of
from moeits.report_page.questions import Questions
from moeits.report_page.rows import Row


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """The choices and states with as many experts in every layer as the one closest to half, the least loss first.

    None of them is random. Empty if nothing but the unpruned model and chance was evaluated.
    """
    pruned = [row for row in rows if row.point.plan and row.point.name != "unpruned" and not row.point.is_random]
    nearest = min(pruned, key=lambda row: abs(row.reduction - 0.5), default=None)
    same = [row for row in pruned if nearest and row.point.counts == nearest.point.counts]
    return sorted(same, key=partial(_lost_by, measures_of(rows)))


def _lost_by(measures: Sequence[Measure], row: Row) -> float:
    """How bad a row is, by the finest measure: the loss on a text where there is one."""
    score = measures[-1].of(row) if measures else None
    if score is None:
        return inf
    return score[0] if measures[-1].metric == "nats_per_token" else -score[0]


def judged_point(rows: Sequence[Row]) -> Point | None:
    """The choice that removes closest to half, of several the one that lost least; None if none was evaluated."""
    return next((row.point for row in judged_rows(rows)), None)


def verdict(rows: Sequence[Row], pairs: Pairing) -> list[str]:
    """A sentence on what is gone where that is closest to half, and one for each measure; none without results."""
    alike = Questions(rows).alike()
    point, measures = judged_point(alike), measures_of(alike)
    if point is None or not measures:
        return []
    summary = point.summary
    gone = (
        f"At {name_of(point)}, {summary['experts_kept']:,} of {summary['experts_before']:,} experts stay: "
        f"{percent(summary['reduction'])} % of the routed-expert parameters are gone."
    )
    told = [_told(measure, point, alike, pairs) for measure in measures]
    return [gone, *(sentence for sentence in told if sentence)]


def _told(measure: Measure, point: Point, rows: Sequence[Row], pairs: Pairing) -> str:
    """`Loss: 4.400 unpruned, 4.597 pruned (+0.197). Random choices: ...`; empty if it was not measured there."""
    unpruned = _values(measure, [row for row in rows if row.kind == "unpruned"])
    pruned = [row for row in rows if row.point is point and row.kind == "unhealed"]
    healed = [row for row in rows if row.point is point and row.kind == "healed"]
    chance = [row for row in rows if row.point in point.controls and row.kind == "unhealed"]
    value = _values(measure, pruned)
    if not value:
        return ""
    before = unpruned[0] if unpruned else None
    parts = [f"{measure.form.format(before)} unpruned"] if before is not None else []
    parts.append(f"{_value(measure, value[0], before)} pruned by {pruned[0].chosen_by}")
    if found := _values(measure, healed):
        parts.append(f"{_value(measure, found[0], before)} once healed")
    return f"{measure.shown}: {', '.join(parts)}. {_against_chance(measure, pruned[0], chance, before, pairs)}"


def _against_chance(measure: Measure, row: Row, chance: Sequence[Row], before: float | None, pairs: Pairing) -> str:
    values = _values(measure, chance)
    if not values or len(values) < len(chance):
        return "No random choice of the same size was evaluated, so this does not show what the method adds to chance."
    mean = sum(values) / len(values)
    seeds = f"mean of {len(values)} seeds" if len(values) > 1 else "one seed"
    shown = f"A random choice of the same size: {_value(measure, mean, before)}, {seeds}"
    return f"{shown}. {_judgement(measure, row, chance, pairs)}"


def _judgement(measure: Measure, row: Row, chance: Sequence[Row], pairs: Pairing) -> str:
    """Whether the choice is better than chance: by the paired interval, or where there is none by the seeds."""
    score = measure.of(row)
    assert score is not None
    lower_is_better = measure.metric == "nats_per_token"
    values = _values(measure, chance)
    difference = pairs.against_mean(row, chance, measure.tasks[0], measure.metric) if len(measure.tasks) == 1 else None
    if difference is None:
        if min(values) <= score[0] <= max(values):
            return f"{row.chosen_by} lies within the range of random choices."
        better = (score[0] < min(values)) == lower_is_better
        every = {1: "the random choice", 2: "both random choices"}.get(len(values), f"all {len(values)} random choices")
        return f"{row.chosen_by} is {'better' if better else 'worse'} than {every}."
    words = in_words(difference, 1 if lower_is_better else 100, 3 if lower_is_better else 1)
    if difference.low <= 0 <= difference.high:
        return f"{row.chosen_by} cannot be told from chance: {words}, 95 % interval."
    better = (difference.difference < 0) == lower_is_better
    return f"{row.chosen_by} is {'better' if better else 'worse'} than chance: {words}, 95 % interval."


def _values(measure: Measure, rows: Sequence[Row]) -> list[float]:
    return [score[0] for row in rows if (score := measure.of(row))]


def _value(measure: Measure, value: float, before: float | None) -> str:
    """`4.597 (+0.197)`: the value, and how far it is from the unpruned model's."""
    if before is None:
        return measure.form.format(value)
    change = measure.form.replace("{:", "{:+").format(value - before).replace("-", "\N{MINUS SIGN}")
    return f"{measure.form.format(value)} ({change})"
