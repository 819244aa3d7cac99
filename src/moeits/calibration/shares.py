"""Which sources are fitted, which choose the settings and which judge: none does two of these if that can be."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Characters are counted, not tokens, and only a sample says how many a token has.
_MARGIN = 1.15
_MOST_NAMES = 20


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Documents, and the sources that they are of."""

    fit: Mapping[str, str]
    """Document -> its source."""
    choosing: Mapping[str, tuple[str, ...]]
    """Source -> documents; of `judging` alike."""
    judging: Mapping[str, tuple[str, ...]]
    fitted: tuple[str, ...]
    chosen_by: tuple[str, ...]
    judged_by: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """The names, as refit.json keeps them."""
        roles = {"fitted": self.fitted, "chosen_by": self.chosen_by, "judged_by": self.judged_by}
        return {role: _listed(names) for role, names in roles.items()}


def _listed(names: tuple[str, ...]) -> list[str]:
    rest = len(names) - _MOST_NAMES
    return list(names) if rest <= 0 else [*names[:_MOST_NAMES], f"{rest} more"]


def share_out(documents: Mapping[str, str], *, held_out: float, fit: float, written: bool) -> Shares | None:
    """Documents by source, or None if the sources are too few or too small.

    `documents` gives each document's source; `held_out` and `fit` are characters that are needed. The smallest sources
    are held out, so that most is left for the fit: some choose, others judge. Where only one can be spared it does
    both, on documents apart. With `written` the fit has text of the model's own beside, or alone.
    """
    sizes: Counter[str] = Counter()
    for document, source in documents.items():
        sizes[source] += len(document)
    order = sorted(sizes, key=lambda source: (sizes[source], source))
    half = held_out / 2
    chosen_by = _until(order, sizes, half)
    judged_by = _until(order[len(chosen_by) :], sizes, half)
    fitted = order[len(chosen_by) + len(judged_by) :]
    if _enough(sizes, (chosen_by, half), (judged_by, half), (fitted, fit)) and fitted:
        return _shares(documents, fitted, chosen_by, judged_by, written=written)
    both = _until(order, sizes, held_out)
    fitted = order[len(both) :]
    can_fit = _enough(sizes, (fitted, fit)) if fitted else written
    if _enough(sizes, (both, held_out)) and can_fit:
        return _shares(documents, fitted, both, both, written=written)
    return None


def _until(order: list[str], sizes: Mapping[str, int], needed: float) -> list[str]:
    """The first sources that have enough together."""
    taken: list[str] = []
    while len(taken) < len(order) and sum(sizes[source] for source in taken) < _MARGIN * needed:
        taken.append(order[len(taken)])
    return taken


def _enough(sizes: Mapping[str, int], *parts: tuple[list[str], float]) -> bool:
    return all(sum(sizes[source] for source in names) >= _MARGIN * needed for names, needed in parts)


def _shares(
    documents: Mapping[str, str], fitted: list[str], chosen_by: list[str], judged_by: list[str], *, written: bool
) -> Shares:
    def of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        return {name: tuple(document for document, source in documents.items() if source == name) for name in names}

    choosing, judging = of(chosen_by), of(judged_by)
    if chosen_by == judged_by:
        choosing = {source: own[0::2] for source, own in choosing.items()}
        judging = {source: own[1::2] for source, own in judging.items()}
    return Shares(
        fit={document: source for source, own in of(fitted).items() for document in own},
        choosing=choosing,
        judging=judging,
        fitted=(*(["self"] if written else []), *fitted),
        chosen_by=tuple(chosen_by),
        judged_by=tuple(judged_by),
    )
