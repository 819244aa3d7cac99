"""Results as tables in the paper's form: a row per model, a column per task, the unpruned model always first."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

from moeits.report_page.blocks import Block, few_of, table
from moeits.report_page.differences import Pairing, in_words
from moeits.report_page.questions import Questions, question_in_words
from moeits.report_page.rows import TEXT, Row, Score, group_label, groups_of, seed_of, tasks_of

# What stands where nothing was measured.
NOTHING = "\N{EN DASH}"
# Over the names of rows: who chose, and how many experts stay.
_MODEL = "model, experts"


def accuracy_table(rows: Sequence[Row], metric: str, questions: Questions) -> list[Block]:
    """The paper's form: a column per task with its 95 % interval, the mean, P(down), parameters."""
    tasks = [task for task in tasks_of(rows) if any(row.score(task, metric) for row in rows)]

    def cells(group: Sequence[Row]) -> list[str]:
        each = [_scores(group, partial(_score, task, metric), questions, task) for task in tasks]
        mean = [_scores(group, lambda row: _mean(row, tasks, metric, questions))] if len(tasks) > 1 else []
        return [group_label(group), *each, *mean, *_sizes(group)]

    columns = [_MODEL, *tasks, *(["mean"] if len(tasks) > 1 else []), "P(down), %", "parameters"]
    return _long(f"{metric}, %, with 95 % intervals", columns, rows, cells)


def text_table(rows: Sequence[Row], questions: Questions) -> list[Block]:
    """Nats per token and bits per byte of the models that read a text; empty if none did."""
    read = [row for row in rows if row.results.perplexity]
    if not read:
        return []

    def cells(group: Sequence[Row]) -> list[str]:
        losses = [row.results.perplexity for row in group if row.results.perplexity]
        mark = questions.mark(group[0], TEXT)
        values = [
            _range([loss["nats_per_token"] for loss in losses], "{:.3f}") + mark,
            _range([loss["bits_per_byte"] for loss in losses], "{:.3f}") + mark,
        ]
        return [group_label(group), *values, *_sizes(group)]

    columns = [_MODEL, "nats per token", "bits per byte", "P(down), %", "parameters"]
    return _long("Loss on held-out text, lower is better", columns, read, cells)


def difference_table(pairs: Pairing, metric: str) -> list[Block]:
    """What each model lost or gained against the unpruned one on the same items; empty if nothing could be paired."""
    pruned = [row for row in pairs.rows if row.kind != "unpruned"]
    found = {row: pairs.lost(row).by_metric for row in pruned}
    tasks = [task for task in (*tasks_of(pruned), TEXT) if any((task, metric) in each for each in found.values())]
    scale, digits = _scale(metric)

    def cell(group: Sequence[Row], task: str) -> str:
        differences = [found[row].get((task, metric)) for row in group]
        if len(group) == 1:
            return in_words(differences[0], scale, digits) or NOTHING
        known = [scale * each.difference for each in differences if each]
        return _range(known, f"{{:+.{digits}f}}") if len(known) == len(group) else NOTHING

    def cells(group: Sequence[Row]) -> list[str]:
        return [group_label(group), *(cell(group, task) for task in tasks)]

    where = "documents" if metric == "nats_per_token" else "items"
    caption = f"{_named(metric)} minus that of the unpruned model on the same {where}, {_unit(metric)}, 95 % intervals"
    return _long(caption, [_MODEL, *tasks], pruned, cells) if tasks else []


def against_random(pairs: Pairing, metric: str) -> list[Block]:
    """Chosen experts against random choices of as many, on the same items; empty without such choices."""
    rivals = {row: pairs.rivals(row) for row in pairs.rows}
    chosen = [row for row in pairs.rows if rivals[row]]
    known = {key for row in chosen for rival in rivals[row] for key in pairs.of(rival, row).by_metric}
    tasks = [task for task in (*tasks_of(chosen), TEXT) if (task, metric) in known]
    if not tasks:
        return []

    def line(row: Row, against: Sequence[Row]) -> list[str]:
        found = (pairs.against_mean(row, against, task, metric) for task in tasks)
        return [
            f"{row.label} minus {_choices(against)}",
            *(in_words(each, *_scale(metric)) or NOTHING for each in found),
        ]

    caption = f"{_named(metric)} minus that of random choices of the same size, {_unit(metric)}, 95 % intervals"
    points = [list(each) for _, each in groupby(chosen, key=lambda row: row.point.name)]
    few, thinned = few_of([[line(row, rivals[row]) for row in point] for point in points])
    every = [line(row, [rival]) for row in chosen for rival in rivals[row]]
    if not thinned and len(every) == len(few):
        return [table(caption, [_MODEL, *tasks], few)]
    whole = table(f"{caption}: every seed", [_MODEL, *tasks], every, folded=True)
    return [table(caption, [_MODEL, *tasks], few, thinned=thinned), whole]


def _choices(rivals: Sequence[Row]) -> str:
    return f"random, {len(rivals)} seeds" if len(rivals) > 1 else f"random, {seed_of(rivals[0].point)}"


def _named(metric: str) -> str:
    return {"nats_per_token": "Loss"}.get(metric, metric)


def _unit(metric: str) -> str:
    return "nats per token (above zero is worse)" if metric == "nats_per_token" else "percentage points"


def _scale(metric: str) -> tuple[float, int]:
    return (1, 3) if metric == "nats_per_token" else (100, 1)


def _long(
    caption: str, columns: Sequence[str], rows: Sequence[Row], cells: Callable[[Sequence[Row]], list[str]]
) -> list[Block]:
    """Seeds of a point in one row, and if that makes many rows a few points; then every row by itself, folded."""
    groups = groups_of(rows)
    points = [list(each) for _, each in groupby(groups, key=lambda group: group[0].point.counts)]
    source = [group for group in groups if group[0].kind == "unpruned"]
    few, thinned = few_of([[cells(group) for group in own if group not in source] for own in points])
    few = [*map(cells, source), *few]
    strong = [number for number, row in enumerate(few) if row[0] == "unpruned"]
    if not thinned and len(groups) == len(rows):
        return [table(caption, columns, few, strong=strong)]
    every = table(f"{caption}: all", columns, [cells([row]) for row in rows], strong=strong, folded=True)
    return [table(caption, columns, few, strong=strong, thinned=thinned), every]


def _score(task: str, metric: str, row: Row) -> Score | None:
    return row.score(task, metric)


def _mean(row: Row, tasks: Sequence[str], metric: str, questions: Questions) -> Score | None:
    return None if any(questions.mark(row, task) for task in tasks) else row.mean(tasks, metric)


def _scores(
    group: Sequence[Row], of: Callable[[Row], Score | None], questions: Questions | None = None, task: str = ""
) -> str:
    """The score of a row with its interval; of several the mean, and the lowest and the highest."""
    found = [of(row) for row in group]
    mark = questions.mark(group[0], task) if questions else ""
    if len(group) == 1 or None in found:
        return with_interval(found[0] if len(group) == 1 else None) + mark
    return _range([100 * score[0] for score in found if score], "{:.1f}") + mark


def _range(numbers: Sequence[float], form: str) -> str:
    """The only number, or the mean of several with the lowest and the highest in brackets."""
    mean, low, high = (
        form.format(number).replace("-", "\N{MINUS SIGN}")
        for number in (sum(numbers) / len(numbers), min(numbers), max(numbers))
    )
    return mean if len(numbers) == 1 else f"{mean} ({low} to {high})"


def _sizes(group: Sequence[Row]) -> list[str]:
    row = group[0]
    reduction = "0" if row.kind == "unpruned" else percent(row.reduction)
    return [reduction, count(row.results.model.get("parameters"))]


def evaluation_notes(rows: Sequence[Row], questions: Questions) -> list[str]:
    """How the numbers were made: shots, items, chance, prompts that were cut, other questions."""
    notes = ["P(down) is the share of the routed experts' parameters that was removed."]
    for task, row in questions.first.items():
        note = f"{task}: {question_in_words(row, task)}"
        found = row.results.tasks.get(task, {})
        prompts = found.get("prompts") or {}
        if found.get("chance"):
            note += f", a guess scores {percent(found['chance'])} %"
        if prompts.get("requests_cut"):
            note += (
                f"; {prompts['requests_cut']:,} of {prompts['requests']:,} prompts, those of {prompts['items_cut']:,} "
                f"items, were longer than the context (up to {prompts['longest_tokens']} tokens, room for "
                f"{prompts['room_tokens']}) and lost their beginning"
            )
        notes.append(note + ".")
    notes += questions.notes()
    if any(len(group) > 1 for group in groups_of(rows)):
        notes.append(
            "Of random choices the mean over the seeds is shown, with the lowest and the highest in round brackets."
        )
    return notes


INTERVAL = (
    "Intervals are about items (in square brackets, or after ±): what another sample of equally many questions would "
    "give for the same weights, not what another seed of a random choice or of healing would."
)


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
