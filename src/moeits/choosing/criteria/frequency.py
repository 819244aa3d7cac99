"""How often the router chooses an expert."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class Frequency(LeastOfSignal):
    """How often the router chooses an expert."""

    name: ClassVar[str] = "frequency"
    chosen: ClassVar[str] = "seldom chosen"
    level: ClassVar[str] = "frequency"


CRITERION = Frequency()
