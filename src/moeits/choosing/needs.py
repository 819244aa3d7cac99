"""What a criterion must know, as a scoring that finds it."""

from collections.abc import Iterable
from dataclasses import replace

from moeits.choosing.criteria import criterion_named
from moeits.signals import SIGNALS
from moeits.signals.settings import Scoring


def scoring_for(criterion: str, scoring: Scoring) -> Scoring | None:
    """A scoring with what the criterion needs; None if it needs nothing, or what only calibrating finds.

    Raises SettingError if there is no such criterion.
    """
    needs = criterion_named(criterion).needs
    beside = [name for name in needs if name != "redundancy"]
    if not needs or not {*beside} <= {signal.name for signal in SIGNALS}:
        return None
    return replace(scoring, signals=",".join([*filter(None, [scoring.signals]), *beside]) or None)


def scoring_for_all(criteria: Iterable[str], scoring: Scoring) -> Scoring | None:
    """One scoring with what all these criteria need; None if none of them scores. Raises SettingError."""
    asked = [found for found in (scoring_for(name, scoring) for name in criteria) if found is not None]
    signals = dict.fromkeys(name for each in asked for name in (each.signals or "").split(",") if name)
    return replace(scoring, signals=",".join(signals) or None) if asked else None


def watches(criterion: str) -> bool:
    """Whether it must see experts at work, which is what calibrating finds. Raises SettingError."""
    return bool(criterion_named(criterion).needs) and scoring_for(criterion, Scoring()) is None
