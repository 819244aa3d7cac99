"""What a criterion must know, as a scoring that finds it."""

from collections.abc import Iterable
from dataclasses import replace

from moeits.choosing.criteria import criterion_named
from moeits.signals import SIGNALS
from moeits.signals.settings import NONE, Scoring

REDUNDANCY = "redundancy"


def scoring_for(criterion: str, scoring: Scoring, edit_needs: Iterable[str] = ()) -> Scoring | None:
    """A scoring with what the criterion needs, and the edit beside it; None if it needs nothing, or what only
    calibrating finds.

    Redundancy, which takes most of the time, is measured only where one of them needs it or an estimator was asked
    for. Raises SettingError if there is no such criterion, or for a setting that belongs to none of the signals.
    """
    needs = criterion_named(criterion).needs
    beside = [name for name in needs if name != REDUNDANCY]
    if not needs or not {*beside} <= {signal.name for signal in SIGNALS}:
        scoring.refuse_unused(f"--criterion {criterion} scores no weights")
        return None
    signals = ",".join([*filter(None, [scoring.signals]), *beside]) or None
    unasked = scoring.estimator == Scoring.estimator and REDUNDANCY not in {*needs, *edit_needs}
    found = replace(scoring, signals=signals, estimator=NONE if unasked else scoring.estimator)
    found.measured()
    return found


def scoring_for_all(criteria: Iterable[str], scoring: Scoring) -> Scoring | None:
    """One scoring with what all these criteria need; None if none of them scores. Raises SettingError."""
    asked = [found for found in (scoring_for(name, scoring) for name in criteria) if found is not None]
    signals = dict.fromkeys(name for each in asked for name in (each.signals or "").split(",") if name)
    estimator = next((each.estimator for each in asked if each.estimator != NONE), NONE)
    return replace(scoring, signals=",".join(signals) or None, estimator=estimator) if asked else None


def watches(criterion: str) -> bool:
    """Whether it must see experts at work, which is what calibrating finds. Raises SettingError."""
    return bool(criterion_named(criterion).needs) and scoring_for(criterion, Scoring()) is None
