"""How large an expert's row of the router is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

import numpy as np

from moeits.errors import SettingError
from moeits.settings import setting
from moeits.signals import ROUTER, ExpertSignal
from moeits.signals.entries import piece_bytes, pieces

NORMS = ("l2", "l1")


@dataclass(frozen=True, kw_only=True)
class RouterNorm(ExpertSignal):
    """sum |w| (l1) or sqrt(sum w^2) (l2) over an expert's row of the router; the smallest go first.

    Raises SettingError for another norm.
    """

    name: ClassVar[str] = "router-norm"
    goes_first: ClassVar[Literal["largest", "smallest"]] = "smallest"

    router_norm: str = setting("l2", help="Norm of a router's rows.", choices=NORMS)

    def __post_init__(self) -> None:
        if self.router_norm not in NORMS:
            raise SettingError(f"--router-norm {self.router_norm} is not one of {', '.join(NORMS)}.")

    def parts(self, projections: Sequence[str]) -> tuple[str, ...]:
        return (ROUTER,)

    def measure(self, parts: Mapping[str, np.ndarray]) -> float:
        if self.router_norm == "l1":
            return sum(float(np.abs(piece).sum()) for piece in pieces(parts.values()))
        return sqrt(sum(float(np.square(piece).sum()) for piece in pieces(parts.values())))

    def memory(self, entries: int, itemsize: int) -> int:
        return piece_bytes(entries)
