"""What models are judged by in a plot: the mean accuracy over their tasks, and the loss on a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeits.report_page.rows import TEXT, Row, Score, metrics_of, tasks_of


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something that models are judged by, in the unit of a plot."""

    word: str
    short: str
    """For an axis."""
    of: Callable[[Row], Score | None]
    form: str
    """How a value is written, with its unit."""
    tasks: tuple[str, ...]
    metric: str
    chance: float | None = None

    @property
    def shown(self) -> str:
        """The word as a sentence begins with it; the name of a metric stays as it is written."""
        return f"{self.word[:1].upper()}{self.word[1:]}" if self.metric == "nats_per_token" else self.word


def measures_of(rows: Sequence[Row], tasks: Sequence[str] | None = None) -> list[Measure]:
    """The mean accuracy over these tasks (by default all), if there are any, and the held-out loss, if there is one."""
    tasks = tasks_of(rows) if tasks is None else tasks
    metric = next(iter(metrics_of(rows, tasks)), None)
    found = [_accuracy(rows, tasks, metric)] if metric else []
    if any(row.nats for row in rows):
        found.append(
            Measure(
                word=f"loss on {TEXT}, nats per token",
                short="loss, nats per token",
                of=lambda row: row.nats,
                form="{:.3f}",
                tasks=(TEXT,),
                metric="nats_per_token",
            )
        )
    return found


def what_is_shown(rows: Sequence[Row]) -> str:
    """What the sections on results are called: by what the models were judged."""
    has_tasks, has_text = bool(tasks_of(rows)), any(row.nats for row in rows)
    return "Accuracy and loss" if has_tasks and has_text else "Loss" if has_text else "Accuracy"


def _accuracy(rows: Sequence[Row], tasks: Sequence[str], metric: str) -> Measure:
    def percent(row: Row) -> Score | None:
        score = row.mean(tasks, metric)
        return score and (100 * score[0], None if score[1] is None else 100 * score[1])

    chances = [next((c for row in rows if (c := _chance(row, task)) is not None), None) for task in tasks]
    known = [chance for chance in chances if chance is not None]
    return Measure(
        word=f"{metric}, %" + (f", mean of {len(tasks)} tasks" if len(tasks) > 1 else f", {tasks[0]}"),
        short=f"{metric}, %",
        of=percent,
        form="{:.1f}",
        tasks=tuple(tasks),
        metric=metric,
        chance=100 * sum(known) / len(tasks) if len(known) == len(tasks) else None,
    )


def _chance(row: Row, task: str) -> float | None:
    found: Mapping[str, Any] = row.results.tasks.get(task, {})
    return found.get("chance")
