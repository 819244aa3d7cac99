"""The sum of an expert's gates, as the model uses them."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class RouterScore(LeastOfSignal):
    """The sum of an expert's gates, as the model uses them."""

    name: ClassVar[str] = "router-score"
    chosen: ClassVar[str] = "of small gates"
    level: ClassVar[str] = "router-score"


CRITERION = RouterScore()
