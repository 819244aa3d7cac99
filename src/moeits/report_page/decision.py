"""The first screen of a run: what was lost, what was saved, and what neither can tell. It never flatters."""

from collections.abc import Iterator, Sequence
from math import exp
from typing import Any

from moeits.report_page.accuracy import NOTHING
from moeits.report_page.artefacts import Point, Run, name_of
from moeits.report_page.blocks import Block, Section, section
from moeits.report_page.differences import Pairing
from moeits.report_page.doubts import doubts
from moeits.report_page.lost import Interval, Lost, what_was_lost
from moeits.report_page.measures import Measure, measures_of
from moeits.report_page.questions import Questions
from moeits.report_page.rows import Row
from moeits.report_page.saved import saved_cards, share
from moeits.report_page.verdict import judged_rows
from moeits.run_files import ForecastFile, PredictionOfLoss, RefitFile

SLUG = "ship"
TITLE = "Should I ship it?"
# A forecast of a size this near is of the same number of experts, as far as whole experts allow.
_SAME_SIZE = 0.02
# As many cards stand side by side.
_ONE_ROW = 5

Card = dict[str, Any]


def decision(run: Run, rows: Sequence[Row], pairs: Pairing) -> Section | None:
    """Verdict, numbers and doubts on the choice that removes closest to half and lost least; None without plans."""
    alike = Questions(rows).alike()
    best_of = judged_rows(alike)
    row = best_of[0] if best_of else None
    point = row.point if row else _unevaluated(run)
    if point is None:
        return None
    found = [_lost_by(measure, row, pairs, alike) for measure in reversed(measures_of(alike))] if row else []
    lost = [each for each in found if each]
    sentences = [_which(point, row, run), *(f"{_in_words(each)} {_chance_in_words(each)}" for each in lost)]
    cards = [*_lost_cards(lost), *map(chance_card, lost[:1]), *saved_cards(run, point)]
    cards += [*_refit_card(point.refit), *_forecast_card(run.forecast, point)]
    return section(SLUG, TITLE, [], [block(heading_of(lost), sentences, cards, doubts(run, best_of, point, lost))])


def block(heading: str, sentences: Sequence[str], cards: Sequence[Card], warnings: Sequence[str]) -> Block:
    """What the template shows as the first screen."""
    return {
        "kind": "decision",
        "heading": heading,
        "sentences": list(sentences),
        "cards": list(cards),
        "columns": len(cards) if len(cards) <= _ONE_ROW else -(-len(cards) // 2),
        "warnings": list(warnings),
    }


def card(name: str, value: str, *notes: str) -> Card:
    """A name, its value in large, and small print."""
    return {"name": name, "value": value, "notes": [note for note in notes if note]}


def _lost_by(measure: Measure, row: Row | None, pairs: Pairing, alike: Sequence[Row]) -> Lost | None:
    return what_was_lost(row, measure, pairs, alike) if row else None


def _unevaluated(run: Run) -> Point | None:
    """The choice that removes closest to half, where none was evaluated."""
    chosen = [point for point in run.points if not point.is_random]
    return min(chosen, key=lambda point: abs(point.summary["reduction"] - 0.5), default=None)


def heading_of(lost: Sequence[Lost]) -> str:
    """The verdict in one line: by the finest measure, unless another one finds the choice worse than chance."""
    if not lost:
        return "Nothing here says what was lost."
    first, standings = lost[0], [each.standing for each in lost]
    if "worse" in standings:
        return "A random choice of as many does better."
    if first.outcome == "unknown":
        return "What was lost cannot be said."
    if (first.outcome, first.standing) == ("lost", "better"):
        return "It measurably lost quality; a random choice loses more."
    cost = {
        "lost": "It measurably lost quality",
        "untold": "No loss that this text or these tasks can tell",
        "gained": "It came out better than the unpruned model",
    }[first.outcome]
    beside = {
        "better": "and better than a random choice",
        "untold": "and the choice cannot be told from chance",
        "alone": "and nothing shows what the choice adds to chance",
    }[first.standing]
    return f"{cost}, {beside}."


def _which(point: Point, row: Row | None, run: Run) -> str:
    """Which model this is about, and that there are others."""
    summary = point.summary
    state = ", healed" if row and row.kind == "healed" else ""
    refitted = ", refitted" if point.refit and point.refit["accepted"] else ""
    by = (row.chosen_by if row else None) or (point.plan.criterion if point.plan else "")
    name = name_of(point)
    chosen = f"{name[:1].upper()}{name[1:]}" + ("" if name == by else f", chosen by {by}")
    said = f"{chosen}{refitted}{state}: {summary['experts_kept']:,} of {summary['experts_before']:,} experts stay"
    models = len(run.points)
    if models == 1:
        return f"{said}."
    return f"{said}. Of {models} models here it is the one closest to half; the others stand below."


def _in_words(found: Lost) -> str:
    """`It lost 0.370 nats per token (0.329 to 0.411), 1.45 times the perplexity.`"""
    between = found.lost
    if between is None:
        what = (
            "" if found.before is None else f", where the unpruned model has {found.measure.form.format(found.before)}"
        )
        return f"{_named(found)} is {found.measure.form.format(found.value)}{what}; no interval can be given."
    digits = 3 if found.is_loss else 1
    if found.outcome == "untold":
        said = f"{_named(found)} changed by {signed(between.middle, digits)}{_unit(found)} ({_range(between, digits)})"
        return f"{said}: {between.items:,} {_items(found)} cannot tell that from nothing."
    size = f"{abs(between.middle):.{digits}f}"
    low, high = sorted((abs(between.low), abs(between.high)))
    times = f", {exp(between.middle):.2f} times the perplexity" if found.is_loss else ""
    verb = "Lost" if found.outcome == "lost" else "Gained"
    return f"{verb}: {size}{_unit(found)} ({low:.{digits}f} to {high:.{digits}f}){times}{_of_what(found)}."


def _chance_in_words(found: Lost) -> str:
    """`A random choice lost 0.290 (mean of 3 seeds, 0.260 to 0.310): this one is worse by 0.080 (0.050 to 0.110).`"""
    chance = found.chance
    if chance is None:
        return "No random row: the choice cannot be told from chance."
    digits = 3 if found.is_loss else 1
    mean, low, high = (each - (found.before or 0) for each in chance)
    worse = found.before is not None and all(map(found.is_worse, (mean, low, high)))
    verb = "comes to" if found.before is None else "lost" if worse else "changed it by"

    def shown(number: float) -> str:
        return signed(number, digits) if verb == "changed it by" else f"{abs(number):.{digits}f}"

    least, most = sorted((low, high), key=abs) if worse else (low, high)
    seeds = (
        f"mean of {len(found.rivals)} seeds, {shown(least)} to {shown(most)}" if len(found.rivals) > 1 else "one seed"
    )
    said = f"A random choice of as many {verb} {shown(mean)} ({seeds}): "
    if found.standing == "untold":
        return f"{said}this one cannot be told from it{_interval(found.against, digits)}."
    return f"{said}this one is {found.standing}{_by(found, digits)}."


def _interval(between: Interval | None, digits: int) -> str:
    return "" if between is None else f" ({_range(between, digits)})"


def _by(found: Lost, digits: int) -> str:
    between = found.against
    if between is None:
        return " than that one" if len(found.rivals) == 1 else " than every one of them"
    low, high = sorted((abs(between.low), abs(between.high)))
    return f" by {abs(between.middle):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _named(found: Lost) -> str:
    return "The loss" if found.is_loss else found.measure.word.replace(", %", "")


def _of_what(found: Lost) -> str:
    return "" if found.is_loss else f" of {_named(found)}"


def _unit(found: Lost) -> str:
    return " nats per token" if found.is_loss else " points"


def _items(found: Lost) -> str:
    return "documents" if found.is_loss else "items"


def _lost_cards(lost: Sequence[Lost]) -> Iterator[Card]:
    """One card: the finest measure in large, any other in its small print."""
    if lost:
        shown = lost_card(lost[0])
        for each in lost[1:]:
            named = each.measure.word.split(",")[0]
            change = NOTHING if each.lost is None else signed(each.lost.middle, 1)
            between = "" if each.lost is None else f" ({_range(each.lost, 1)})"
            shown["notes"].append(f"{named}, points: {change}{between}")
        yield shown


def lost_card(found: Lost) -> Card:
    """What was lost, in large."""
    digits = 3 if found.is_loss else 1
    name = "Lost, nats per token" if found.is_loss else f"{found.measure.word.replace(', %', '')}, points"
    values = f"{found.measure.form.format(found.value)} now"
    if found.before is not None:
        values = f"{found.measure.form.format(found.before)} unpruned, {values}"
    if found.lost is None:
        return card(name, NOTHING, "not known", values)
    return card(name, signed(found.lost.middle, digits), f"95 %: {_range(found.lost, digits)}", values)


def chance_card(found: Lost) -> Card:
    """What a random choice of as many experts lost, in large."""
    name, digits = "A random choice", 3 if found.is_loss else 1
    chance = found.chance
    if chance is None:
        return card(name, NOTHING, "not in this run")
    mean = chance[0] - (found.before or 0)
    seeds = f"{len(found.rivals)} seeds" if len(found.rivals) > 1 else "one seed"
    between = found.against
    beside = between and f"this minus it: {signed(between.middle, digits)} ({_range(between, digits)})"
    value = signed(mean, digits) if found.before is not None else f"{mean:.{digits}f}"
    return card(name, value, seeds, beside or "")


def _refit_card(refit: RefitFile | None) -> Iterator[Card]:
    if refit is None:
        return
    between, tokens = refit["loss"].get("difference"), f"{refit['loss']['tokens']:,} other tokens"
    if not refit["accepted"]:
        yield card("Refit", "refused", "no weight was changed", f"judged on {tokens}")
    elif between:
        yield card("Refit, nats per token", signed(between["mean"], 3), f"95 %: {_of(between)}", f"on {tokens}")
    else:
        yield card("Refit", "accepted", f"judged on {tokens}")


def _forecast_card(forecast: ForecastFile | None, point: Point) -> Iterator[Card]:
    if forecast is None:
        return
    wanted = point.summary["reduction"]
    nearest = min(forecast["sizes"], key=lambda size: abs(size["reduction"] - wanted), default=None)
    by = f"choices by {forecast['settings']['criterion']}"
    within = f"within {forecast['budget']:g} nats may go: {_safe(forecast, 'refitted')} with a refit, "
    within += f"{_safe(forecast, 'pruned')} without one"
    if nearest is None or abs(nearest["reduction"] - wanted) > _SAME_SIZE:
        yield card("Forecast", NOTHING, "not of this size", by, within)
        return
    state = "refitted" if point.refit and point.refit["accepted"] else "pruned"
    foreseen: PredictionOfLoss = nearest["refitted"] if state == "refitted" else nearest["pruned"]
    yield card(f"Forecast, {state}", signed(foreseen["rise"], 3), f"95 %: {_of(foreseen)}", by, within)


def _safe(forecast: ForecastFile, state: str) -> str:
    """How much may go, in whole percent."""
    most = forecast["safe"].get(state)
    return "nothing" if most is None else share(most)


def _of(between: Any) -> str:
    return f"{signed(between['low'], 3)} to {signed(between['high'], 3)}"


def _range(between: Interval, digits: int) -> str:
    return f"{signed(between.low, digits)} to {signed(between.high, digits)}"


def signed(number: float, digits: int) -> str:
    """`+0.370`, with a minus sign that is one."""
    return f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
