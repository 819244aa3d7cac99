"""Two evaluated models on the same items: `moeits compare`, for every pair that the page shows side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moeits.errors import EvaluationError
from moeits.evaluation.results import Results
from moeits.report_page.rows import TEXT, Row
from moeits.stages.compare import RESAMPLES, Difference, compare, paired_interval


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What one model does better or worse than another, as far as their results can be paired."""

    by_metric: Mapping[tuple[str, str], Difference]
    """(task, metric) -> the difference; the task of a text is `TEXT`."""
    why_not: tuple[str, ...]
    """A sentence for each task that could not be paired."""


class Pairing:
    """Pairs of rows, each compared once: `moeits compare` takes a fraction of a second, and there may be hundreds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.unpruned = next((row for row in rows if row.kind == "unpruned"), None)
        self._known: dict[tuple[Row, Row], Paired] = {}

    def of(self, before: Row, after: Row) -> Paired:
        """after - before, item by item."""
        if (before, after) not in self._known:
            self._known[before, after] = _paired(before, after)
        return self._known[before, after]

    def lost(self, row: Row) -> Paired:
        """What a row does better or worse than the unpruned model."""
        known = self.unpruned is not None and row is not self.unpruned
        return self.of(self.unpruned, row) if known and self.unpruned else Paired(by_metric={}, why_not=())

    def rivals(self, row: Row) -> list[Row]:
        """The random choices of as many experts, treated alike."""
        return [each for each in self.rows if each.point in row.point.controls and each.kind == row.kind]

    def why_not(self) -> list[str]:
        """A sentence for each pair that could not be compared."""
        return list(dict.fromkeys(sentence for pair in self._known.values() for sentence in pair.why_not))

    def against_mean(self, chosen: Row, rivals: Sequence[Row], task: str, metric: str) -> Difference | None:
        """chosen minus the mean of its rivals on each item, with its interval over items; None if not comparable."""
        found = [self.of(rival, chosen).by_metric.get((task, metric)) for rival in rivals]
        known = [each for each in found if each]
        if len(known) != len(found) or len(known) < 2:
            return known[0] if len(known) == len(found) == 1 else None
        theirs = np.mean([_per_item(rival, task, metric) for rival in rivals], axis=0)
        difference = _per_item(chosen, task, metric) - theirs
        weight = _weight(chosen, task, len(difference))
        low, high = paired_interval(difference, weight, RESAMPLES, np.random.default_rng(0))
        middle = float(difference.sum() / weight.sum())
        return replace(known[0], difference=middle, low=low, high=high, only_a=None, only_b=None, mcnemar_p=None)


def _paired(before: Row, after: Row) -> Paired:
    """What `moeits compare` gives for two files; as far as they can be compared, if it refuses the whole of them."""
    a, b = before.results, after.results
    tasks = [task for task in a.tasks if all("doc_hash" in each.samples.get(task, {}) for each in (a, b))]
    common = [*tasks, *([TEXT] if all(map(_has_units, (a, b))) else [])]
    found, refused = _compared(a, b, common)
    if not refused:
        return Paired(by_metric=found, why_not=())
    each = [_compared(a, b, [task]) for task in common]
    why_not = (f"{after.label} beside {before.label}: {why}" for _, why in each if why)
    return Paired(by_metric={key: value for one, _ in each for key, value in one.items()}, why_not=tuple(why_not))


def _compared(a: Results, b: Results, tasks: Sequence[str]) -> tuple[dict[tuple[str, str], Difference], str]:
    """(task, metric) -> difference of these tasks; or nothing, and the sentence that says why not."""
    if not tasks:
        return {}, ""
    try:
        found = compare(_only(a, tasks), _only(b, tasks))
    except EvaluationError as error:
        return {}, str(error)
    by_task = {**found.tasks, TEXT: found.perplexity}
    return {(task, name): value for task, metrics in by_task.items() for name, value in metrics.items()}, ""


def _only(results: Results, tasks: Sequence[str]) -> Results:
    kept = {task: row for task, row in results.tasks.items() if task in tasks}
    return replace(results, tasks=kept, perplexity=results.perplexity if TEXT in tasks else None)


def _has_units(results: Results) -> bool:
    needed = {"sha256", "window_tokens", "tokens", "bytes"}
    facts: Mapping[str, Any] = results.perplexity or {}
    return needed <= set(facts) and {"nats", "tokens"} <= set(results.samples.get("perplexity", {}))


def _per_item(row: Row, task: str, metric: str) -> np.ndarray:
    column = row.results.samples["perplexity"]["nats"] if task == TEXT else row.results.samples[task][metric]
    return np.asarray(column, float)


def _weight(row: Row, task: str, items: int) -> np.ndarray:
    """Tokens of a document; an item of a task counts once."""
    return np.asarray(row.results.samples["perplexity"]["tokens"], float) if task == TEXT else np.ones(items)


def in_words(difference: Difference | None, scale: float, digits: int) -> str | None:
    """`-3.2 [-5.0, -1.4]`; None if there is none."""
    if difference is None:
        return None
    numbers = (scale * each for each in (difference.difference, difference.low, difference.high))
    middle, low, high = (f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}") for number in numbers)
    return f"{middle} [{low}, {high}]"
