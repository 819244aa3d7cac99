"""An order that somebody else found, taken in by `moeits calibrate --statistics ORDER.jsonl`."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class Order(LeastOfSignal):
    """An order that somebody else found, from a file; it says who goes, not by how much."""

    name: ClassVar[str] = "order"
    chosen: ClassVar[str] = "last in a given order"
    level: ClassVar[str] = "order"
    adds_up: ClassVar[bool] = False


CRITERION = Order()
