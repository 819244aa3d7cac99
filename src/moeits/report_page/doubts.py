"""What the numbers of a run cannot tell, a sentence each: the warnings of the first screen."""

from collections.abc import Iterator, Sequence

from moeits.report_page.artefacts import Point, Run
from moeits.report_page.lost import Lost
from moeits.report_page.rows import Row
from moeits.run_files import ForecastFile, Judged, RefitFile

# Fewer documents or items than these leave an interval to chance (`moeits compare` warns at the same number).
_FEW = 10
NO_RANDOM = "No random row: moeits sweep --control 3, or simplify --criterion random --like PLAN, gives a run one."
ONE_DRAW = "One random choice is one draw: another seed could be better or worse. Three say more."


def doubts(run: Run, best_of: Sequence[Row], point: Point, lost: Sequence[Lost]) -> list[str]:
    """The gravest first. `best_of` are the rows of which the first lost least; none if nothing was evaluated."""
    row = best_of[0] if best_of else None
    found = [*_of_results(run, row, lost), *_of_chance(lost), *_of_intervals(lost), *_of_several(best_of)]
    found += [*_of_refit(point.refit), *_of_healing(row), *_of_forecast(run.forecast), *_of_text(row)]
    if run.left_out:
        found.append(f"{len(run.left_out)} models of this run could not be read and are in no number here.")
    return found


def _of_results(run: Run, row: Row | None, lost: Sequence[Lost]) -> Iterator[str]:
    if row is None:
        yield (
            "Not evaluated: sizes are all that is known. moeits evaluate CHECKPOINT --perplexity TEXT, of the pruned "
            "and of the unpruned model, says what was lost."
        )
    elif run.unpruned.unhealed is None:
        yield "No unpruned row: what pruning cost is not known until the unpruned model is evaluated alike."
    elif lost and all(each.lost is None for each in lost):
        yield "The unpruned model cannot be paired with this one, so no interval can be given."


def _of_chance(lost: Sequence[Lost]) -> Iterator[str]:
    if lost and all(each.standing == "alone" for each in lost):
        yield NO_RANDOM
    elif any(len(each.rivals) == 1 for each in lost):
        yield ONE_DRAW


def _of_intervals(lost: Sequence[Lost]) -> Iterator[str]:
    for each in lost:
        between, what = each.lost, "loss" if each.is_loss else each.measure.word.replace(", %", "")
        if between is None:
            continue
        where = "documents" if each.is_loss else "items"
        if between.items < _FEW:
            yield f"There are only {between.items} {where}, so the interval of the {what} is a rough guess."
        elif between.high - between.low > abs(between.middle):
            yield f"The interval of the {what} is wider than what it is about: more {where} would say more."


def _of_several(best_of: Sequence[Row]) -> Iterator[str]:
    if len(best_of) > 1:
        yield f"The best of {len(best_of)} models of this size, by the numbers shown: new text may find it less so."


def _of_refit(refit: RefitFile | None) -> Iterator[str]:
    if refit is None:
        return
    if not refit["accepted"]:
        yield "The refit was refused, as the loss did not fall for certain: these are the weights as pruned."
    elif judged_by_its_own(refit["data"]):
        yield "The refit was judged by other documents of the text that it was fitted on; other text can gain less."


def _of_healing(row: Row | None) -> Iterator[str]:
    if row is not None and row.kind == "healed":
        yield "Healed: if its training text is like the text that judges, other text loses more than is shown."


def _of_forecast(forecast: ForecastFile | None) -> Iterator[str]:
    if forecast is None:
        return
    if judged_by_its_own(forecast["data"]):
        yield "The forecast was judged by other documents of the text that chose and fitted; other text can lose more."


def _of_text(row: Row | None) -> Iterator[str]:
    """What was read, and that it is not the reader's."""
    if row is None:
        return
    text, tasks = row.results.perplexity, list(row.results.tasks)
    read = [f"{text['file']} ({text['documents']:,} documents, {text['tokens']:,} tokens)"] if text else []
    judged = " and ".join([*read, *([f"{len(tasks)} task{'s' * (len(tasks) > 1)}"] if tasks else [])])
    yield f"Judged on {judged}; text of your own may lose more."


def judged_by_its_own(data: Judged) -> bool:
    """Whether what judged is of the very sources that were fitted."""
    return data["held_out_by"] == "document" and "judge" not in data
