"""Backward elimination on the layer's own output, with the router choosing again at every step."""

from typing import ClassVar

from moeits.choosing.criteria.by_signal import LeastOfSignal


class Reconstruction(LeastOfSignal):
    """Backward elimination on the layer's own output, with the router choosing again at every step."""

    name: ClassVar[str] = "reconstruction"
    chosen: ClassVar[str] = "replaceable"
    level: ClassVar[str] = "reconstruction-error"
    adds_up: ClassVar[bool] = False


CRITERION = Reconstruction()
