"""The first screen of a comparison of criteria: the best choice, beside random ones of as many experts."""

from collections.abc import Iterator, Sequence
from math import exp

from moeits.criteria_file import CriteriaFile, ShownRow, shown_rows
from moeits.report_page.artefacts import Run
from moeits.report_page.blocks import Section, section
from moeits.report_page.decision import SLUG, TITLE, Card, block, card, signed
from moeits.report_page.doubts import ONE_DRAW
from moeits.report_page.saved import saved_cards


def criteria_decision(found: CriteriaFile, run: Run) -> Section | None:
    """None while the comparison has no rows."""
    rows, text = shown_rows(found["rows"]), found["text"]
    if text is None or not rows:
        return None
    chosen = [row for row in rows if not _is_random(row)]
    best = min(chosen, key=lambda row: row.rise, default=None)
    chance = _chance(best, rows)
    if best is None:
        return None
    size = f"{found['experts_kept']:,} of {found['experts_before']:,} experts stay"
    which = f"{best.label} ({best.state})"
    named = f"Chosen by {which}" if len(chosen) == 1 else f"Of {len(chosen)} rows {which} lost least"
    sentences = [
        f"{size}. {named}: {best.rise:.3f} nats per token more "
        f"than unpruned ({_range(best)}), {exp(best.rise):.2f} times the perplexity. {_beside(best, chance)}"
    ]
    cards = [
        card("Lost, nats per token", signed(best.rise, 3), f"95 %: {_range(best)}", f"{best.label}, {best.state}"),
        _chance_card(chance),
        *(each for point in run.points[:1] for each in saved_cards(run, point)),
    ]
    return section(SLUG, TITLE, [], [block(_heading(best, chance), sentences, cards, list(_doubts(found, rows)))])


def _is_random(row: ShownRow) -> bool:
    return row.label.split(",")[0] == "random"


def _chance(best: ShownRow | None, rows: Sequence[ShownRow]) -> ShownRow | None:
    """Random choices in the same state."""
    return next((row for row in rows if best and _is_random(row) and row.state == best.state), None)


def _standing(best: ShownRow, chance: ShownRow | None) -> str:
    """Whether the two intervals, or that of the best and the range of the seeds, are apart."""
    if chance is None:
        return "alone"
    if best.high < chance.low:
        return "better"
    return "worse" if best.low > chance.high else "untold"


def _heading(best: ShownRow, chance: ShownRow | None) -> str:
    if _standing(best, chance) == "worse":
        return "A random choice of as many does better."
    if best.low > 0 and _standing(best, chance) == "better":
        return "It measurably lost quality; a random choice loses more."
    cost = "It measurably lost quality" if best.low > 0 else "No loss that this text can tell"
    if best.high < 0:
        cost = "It came out better than the unpruned model"
    return {
        "better": f"{cost}, and better than a random choice.",
        "untold": f"{cost}, and the best choice cannot be told from chance.",
        "alone": f"{cost}, and nothing shows what the choice adds to chance.",
    }[_standing(best, chance)]


def _beside(best: ShownRow, chance: ShownRow | None) -> str:
    standing = _standing(best, chance)
    if chance is None:
        return "No random row: the choice cannot be told from chance."
    random = "Random choices" if _seeds(chance) else "A random choice"
    said = f"{random} of as many, {best.state}: {chance.rise:.3f} ({_range(chance)})"
    return f"{said}; {best.label} {'cannot be told from that' if standing == 'untold' else f'is {standing}'}."


def _seeds(chance: ShownRow) -> bool:
    """Whether it is of several seeds."""
    return "seeds" in chance.label


def _chance_card(chance: ShownRow | None) -> Card:
    if chance is None:
        return card("A random choice", "\N{EN DASH}", "not in this run")
    return card("A random choice", signed(chance.rise, 3), _range(chance), f"{chance.label}, {chance.state}")


def _doubts(found: CriteriaFile, rows: Sequence[ShownRow]) -> Iterator[str]:
    text = found["text"]
    assert text is not None
    if not any(map(_is_random, rows)):
        yield (
            "No random row: no choice here can be told from chance. Add random to --criteria and run the comparison "
            "again; what is finished is kept."
        )
    elif not any(_seeds(row) for row in rows if _is_random(row)):
        yield ONE_DRAW
    named = [row for row in rows if not _is_random(row)]
    if len(named) > 1:
        yield "The text that names the best of several also flatters it a little: judge that one on another text."
    if refused := [row.label for row in rows if row.refused]:
        yield f"The refit was refused for {', '.join(refused)}: those rows are the pruned weights."
    yield (
        f"Judged on {text['file']} ({text['documents']:,} documents, {text['tokens']:,} tokens); text of your own may "
        "lose more."
    )


def _range(row: ShownRow) -> str:
    return f"{signed(row.low, 3)} to {signed(row.high, 3)}"
