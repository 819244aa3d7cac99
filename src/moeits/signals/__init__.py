"""How redundant two weights are: one file per estimator.

An estimator prepares each weight once and compares prepared weights pair by pair, so that E experts cost E encodings
and E (E - 1) / 2 comparisons. To add one: write its file and add its class to `ESTIMATORS` (docs/extending.md).
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from moeits.errors import SettingError


class RedundancyEstimator(Protocol):
    """What `score` needs of an estimator. `encode` and `compare` are called from several threads at once.

    Its settings are the keyword arguments of its constructor, each with a default.
    """

    name: ClassVar[str]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that changes a result, defaults included; stored with the evidence."""

    def encode(self, weight: np.ndarray) -> Any:
        """Prepare one weight, (rows, cols), in its stored dtype. Raises NonFiniteWeight on NaN or infinity."""

    def compare(self, a: Any, b: Any) -> float:
        """Redundancy of two encoded weights of equal size. Symmetric. May be negative for corrected estimators."""

    def floor(self, encoded: Sequence[Any]) -> np.ndarray:
        """(E, E), diagonal 0: what `compare` is expected to give for independent weights; zeros if unbiased."""

    def encoded_bytes(self, entries: int) -> int:
        """Bytes that one encoded weight of so many entries holds, at most. `--memory` is kept by this number."""

    def working_bytes(self, entries: int, itemsize: int) -> int:
        """Bytes that one thread needs at most, beside stored and encoded weights, to encode a weight of so many entries
        of `itemsize` bytes, or to compare two of them."""


from moeits.signals.nmi import NMI  # noqa: E402

ESTIMATORS: tuple[type[RedundancyEstimator], ...] = (NMI,)


def estimator_named(name: str, **settings: Any) -> RedundancyEstimator:
    """The estimator of that name, set up. Raises SettingError if there is none, with the nearest known name, or if it
    has no such setting."""
    known = {estimator.name: estimator for estimator in ESTIMATORS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"There is no estimator {name!r}.{hint} Known: {', '.join(known)}.")
    make: Callable[..., RedundancyEstimator] = known[name]
    for setting in settings:
        if setting not in inspect.signature(make).parameters:
            raise SettingError(f"--estimator {name} has no {setting}: leave --{setting} out.")
    return make(**settings)
