"""Results as a table in the paper's form: a row per model, a column per task, the unpruned model always first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from moeits.report_page.artefacts import Point, Run

# What stands where nothing was measured.
NOTHING = "\N{EN DASH}"

Score = tuple[float, float | None]
"""A share from 0 to 1 and its standard error, None where the harness gave none."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One evaluated model."""

    label: str
    kind: str
    """unpruned, unhealed or healed"""
    point: Point
    results: Mapping[str, Any]

    def score(self, task: str, metric: str) -> Score | None:
        """A metric of a task, None if it was not measured."""
        found = self.results.get("tasks", {}).get(task, {})
        return (found[metric], found.get(f"{metric}_stderr")) if found.get(metric) is not None else None

    def mean(self, tasks: Sequence[str], metric: str) -> Score | None:
        """The plain mean over tasks; its standard error as of independent tasks. None if a task is missing."""
        scores = [self.score(task, metric) for task in tasks]
        if not tasks or any(score is None for score in scores):
            return None
        values = [score for score in scores if score is not None]
        errors = [error for _, error in values if error is not None]
        spread = sqrt(sum(error**2 for error in errors)) / len(values) if len(errors) == len(values) else None
        return sum(value for value, _ in values) / len(values), spread

    @property
    def nbytes(self) -> int | None:
        """Bytes of tensors of the model that was evaluated."""
        return self.results.get("model", {}).get("bytes")


def rows_of(run: Run) -> list[Row]:
    """Every evaluated model of a run: the unpruned one first, then the largest to the smallest."""
    rows = (
        [Row(label=_label(run.unpruned, run), kind="unpruned", point=run.unpruned, results=run.unpruned.unhealed)]
        if (run.unpruned.unhealed)
        else []
    )
    if run.unpruned.healed:
        rows.append(Row(label="unpruned, healed", kind="healed", point=run.unpruned, results=run.unpruned.healed))
    for point in reversed(run.points):
        for kind, results in (("unhealed", point.unhealed), ("healed", point.healed)):
            if results:
                label = _label(point, run) + (", healed" if kind == "healed" else "")
                rows.append(Row(label=label, kind=kind, point=point, results=results))
    return rows


def _label(point: Point, run: Run) -> str:
    if point is run.unpruned:
        return "unpruned"
    criterion = (point.plan or {}).get("criterion", "moeits")
    name = {"moeits": "MoEITS"}.get(criterion, criterion)
    if criterion == "random":
        name += f" {(point.plan or {}).get('settings', {}).get('seed', '')}"
    return f"{name}, {point.summary.get('experts_kept', '?')} experts"


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """The tasks that any of the models was evaluated on, in the order of their first appearance."""
    return list(dict.fromkeys(task for row in rows for task in row.results.get("tasks", {})))


def metrics_of(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """Of acc and acc_norm those that some task has; else the first metric that comes with a standard error."""
    found = [row.results.get("tasks", {}).get(task, {}) for row in rows for task in tasks]
    usual = [name for name in ("acc", "acc_norm") if any(each.get(name) is not None for each in found)]
    other = [name.removesuffix("_stderr") for each in found for name in each if name.endswith("_stderr")]
    return usual or other[:1]


def accuracy_table(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """The paper's form: model, P(down), parameters, a column per task with its 95 % interval, the mean."""
    tasks = [task for task in tasks_of(rows) if any(row.score(task, metric) for row in rows)]
    several = len(tasks) > 1
    return {
        "kind": "table",
        "caption": f"{metric}, %, with 95 % intervals",
        "columns": ["model", "P(down), %", "parameters", *tasks, *(["mean"] if several else [])],
        "rows": [
            [
                row.label,
                "0" if row.kind == "unpruned" else percent(row.point.summary.get("reduction", 0.0)),
                count(row.results.get("model", {}).get("parameters")),
                *(with_interval(row.score(task, metric)) for task in tasks),
                *([with_interval(row.mean(tasks, metric))] if several else []),
            ]
            for row in rows
        ],
        "strong": [number for number, row in enumerate(rows) if row.kind == "unpruned"],
    }


def perplexity_table(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Nats per token and bits per byte of the models that were read a text; None if none was."""
    read = [(row, row.results["perplexity"]) for row in rows if row.results.get("perplexity")]
    if not read:
        return None
    names = ("nats_per_token", "bits_per_byte")
    return {
        "kind": "table",
        "caption": "Held-out text, lower is better",
        "columns": ["model", *(name.replace("_", " ") for name in names)],
        "rows": [[row.label, *(f"{found[name]:.4f}" for name in names)] for row, found in read],
        "strong": [number for number, (row, _) in enumerate(read) if row.kind == "unpruned"],
    }


def evaluation_notes(rows: Sequence[Row]) -> list[str]:
    """How the numbers were made: shots, items, chance, and prompts that were cut."""
    notes = []
    for task in tasks_of(rows):
        found = next(row.results["tasks"][task] for row in rows if task in row.results.get("tasks", {}))
        samples, prompts = found.get("n_samples") or {}, found.get("prompts") or {}
        note = f"{task}: {found.get('num_fewshot')}-shot, {samples.get('effective')} of {samples.get('original')} items"
        if found.get("chance"):
            note += f", a guess scores {percent(found['chance'])} %"
        if prompts.get("items_cut"):
            note += (
                f"; {prompts['items_cut']} prompts were longer than the context ({prompts['longest_tokens']} tokens, "
                f"room for {prompts['room_tokens']}) and lost their beginning"
            )
        notes.append(note + ".")
    return notes


def with_interval(score: Score | None) -> str:
    """`53.3 ± 4.9`: percent and the half-width of its 95 % interval."""
    if score is None:
        return NOTHING
    value, error = score
    return f"{100 * value:.1f}" + (f" ± {196 * error:.1f}" if error is not None else "")


def percent(share: float) -> str:
    """A share in percent, two decimals."""
    return f"{100 * share:.2f}"


def count(number: float | None) -> str:
    """A whole number with thousands apart."""
    return NOTHING if number is None else f"{number:,.0f}"
