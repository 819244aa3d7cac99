"""What a criterion must know, as a scoring that finds it."""

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
