"""What can be known of experts before it is decided who goes: one file per signal.

A signal of pairs ((E, E) per layer) and a signal of single experts ((E,) per layer) are read off the weights; a signal
of tokens needs a forward pass. The settings of a signal are the fields of its dataclass, each with a default. To add
one: write its file and add its class to `PAIR_SIGNALS` or `EXPERT_SIGNALS` (docs/extending.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np

from moeits.experts.inventory import LayerFacts

ROUTER = "router"
"""The part of an expert that is its row of the router; the others are named as the projections."""


MOST_ENUMERATED = 10
"""A layer of no more experts has all its subsets tried when it is calibrated."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a pair signal takes, at most. `--memory` is kept by these numbers."""

    encoded: int
    """Of one encoded expert."""
    encoding: int
    """Of one thread that encodes an expert, beside what is read and what comes out."""
    comparing: int
    """Of one thread that compares two encoded experts, beside these."""


class Signal(Protocol):
    """What all signals have: a name, and settings, which are the fields of a frozen dataclass."""

    name: ClassVar[str]
    """Evidence holds a signal under this name."""

    def for_model(self, projections: Sequence[str], model_type: str) -> Self:
        """The signal with all settings that depend on the model settled. Raises SettingError if one does not fit."""
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a result, defaults included; stored with the evidence."""
        return asdict(self)  # type: ignore[call-overload]


@runtime_checkable
class PairSignal(Signal, Protocol):
    """A number for each two experts of a layer, from their weights; (E, E), symmetric.

    An expert is encoded once and then compared with all others. `encode` and `compare` are called from several threads
    at once.
    """

    bounds: ClassVar[tuple[float, float]] = (-1e100, 1e100)
    """Between which numbers it lies."""

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        """The parts of an expert that are read together -> the weight of what they give in the sum over passes."""

    def encode(self, parts: Mapping[str, np.ndarray]) -> Any:
        """Prepare the parts of one expert in their stored dtype: projections (outputs, inputs), router (inputs,).

        Raises NonFiniteWeight on NaN or infinity, UnscorableWeight for a dtype that cannot be computed with.
        """

    def compare(self, rows: Sequence[Any], columns: Sequence[Any]) -> np.ndarray:
        """(rows, columns) float64: each of these encoded experts with each of those.

        A pair's number depends on nothing but the pair, not on its order, and may be negative.
        """

    def floor(self, encoded: Sequence[Any]) -> np.ndarray | None:
        """(E, E), diagonal 0: what `compare` is expected to give for independent weights. None: 0 for all pairs."""

    def memory(self, entries: int, itemsize: int) -> Memory:
        """What it takes for experts whose parts have so many entries together, of `itemsize` bytes."""


@runtime_checkable
class EstimatedSignal(PairSignal, Protocol):
    """A pair signal that looks at a part of the weights only, and says how far off it may be."""

    def estimate(self, rows: Sequence[Any], columns: Sequence[Any]) -> np.ndarray:
        """(2, rows, columns) float64: what `compare` gives, and its standard errors."""


@runtime_checkable
class ExpertSignal(Signal, Protocol):
    """A number for each expert of a layer, from its weights; (E,). `measure` is called from several threads at once."""

    goes_first: ClassVar[Literal["largest", "smallest"]]
    """Which end of the numbers is the one to remove."""

    def parts(self, projections: Sequence[str]) -> tuple[str, ...]:
        """The parts of an expert that are read."""

    def measure(self, parts: Mapping[str, np.ndarray]) -> float:
        """The number of one expert. Raises NonFiniteWeight and UnscorableWeight as `PairSignal.encode` does."""

    def memory(self, entries: int, itemsize: int) -> int:
        """Bytes that one thread takes, at most, beside the parts that were read."""


class Routed(Protocol):
    """What one forward pass shows at one MoE layer, for T tokens."""

    hidden: Any
    """(T, H): what goes into the layer."""
    logits: Any
    """(T, E): of the router."""
    chosen: Any
    """(T, k): experts by number."""
    gates: Any
    """(T, k): the weight of each chosen expert in the sum."""

    def outputs(self) -> Any:
        """(T, k, H): outputs of the chosen experts, before they are weighted; computed when asked for."""


class TokenSignal(Signal, Protocol):
    """Numbers of a layer's experts from one forward pass, as a stream: (E,) or (E, E) each."""

    def start(self, facts: LayerFacts) -> None:
        """Begin with a layer."""

    def update(self, seen: Routed) -> None:
        """Take in some tokens."""

    def finish(self) -> Mapping[str, np.ndarray]:
        """What all tokens since `start` gave, by name."""


def pairwise(compare: Callable[[Any, Any], float], rows: Sequence[Any], columns: Sequence[Any]) -> np.ndarray:
    """`PairSignal.compare` for one that compares two experts at a time."""
    return np.array([[compare(a, b) for b in columns] for a in rows], np.float64).reshape(len(rows), len(columns))


from moeits.signals.aimer import Aimer  # noqa: E402
from moeits.signals.aligned import Aligned  # noqa: E402
from moeits.signals.correlation import Correlation  # noqa: E402
from moeits.signals.gaussian import Gaussian  # noqa: E402
from moeits.signals.nearness import RouterNearness, WeightNearness  # noqa: E402
from moeits.signals.nmi import NMI  # noqa: E402
from moeits.signals.router_cosine import RouterCosine  # noqa: E402
from moeits.signals.router_norm import RouterNorm  # noqa: E402
from moeits.signals.weight_norm import WeightNorm  # noqa: E402

PAIR_SIGNALS: tuple[type[PairSignal], ...] = (
    NMI,
    RouterCosine,
    Correlation,
    Gaussian,
    Aligned,
    RouterNearness,
    WeightNearness,
)
EXPERT_SIGNALS: tuple[type[ExpertSignal], ...] = (Aimer, WeightNorm, RouterNorm)

SIGNALS: tuple[type[PairSignal] | type[ExpertSignal], ...] = (*PAIR_SIGNALS, *EXPERT_SIGNALS)
