"""DERN, first step: the sum of an expert's gates, each token's gates renormalised over those it chose."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class DERN(LeastOfSignal):
    """DERN, first step: the sum of an expert's gates, each token's gates renormalised over those it chose."""

    name: ClassVar[str] = "dern"
    chosen: ClassVar[str] = "of little weight"
    level: ClassVar[str] = "dern"


CRITERION = DERN()
