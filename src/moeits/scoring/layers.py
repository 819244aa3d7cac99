"""Signals of one layer of a checkpoint: (E, E) of a pair signal with its floor, (E,) of an expert signal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.engines import Engine
from moeits.errors import SettingError
from moeits.evidence import error_of
from moeits.experts.layout import MoELayout
from moeits.scoring.parts import size_of_parts, with_parts
from moeits.scoring.units import Held, Limits, Unit, UnitScores, score_unit, units_of
from moeits.signals import ExpertSignal, PairSignal
from moeits.sizes import format_size


@dataclass(frozen=True, kw_only=True)
class LayerPairs:
    """A pair signal of one layer: (E, E) float64 each, symmetric, diagonal 0."""

    values: np.ndarray
    errors: np.ndarray | None
    """Standard errors; None of a signal that is exact."""
    floor: np.ndarray | None
    """None of a signal that has none."""

    def named(self, name: str) -> dict[str, np.ndarray]:
        """Values and errors, under the names by which evidence has them."""
        return {name: self.values} | ({} if self.errors is None else {error_of(name): self.errors})


@dataclass(frozen=True, kw_only=True)
class LayerScorer:
    """Signals of the layers of one checkpoint, with the means that there are."""

    checkpoint: Checkpoint
    layout: MoELayout
    engine: Engine
    memory_bytes: int

    def steps(self, signal: PairSignal | ExpertSignal, layer: int) -> int:
        """Into how many steps the progress of a layer is divided: pairs compared, or experts measured."""
        count = self.layout.layers[layer].num_experts
        if not isinstance(signal, PairSignal):
            return count
        return len(signal.passes(self.projections)) * count * (count - 1) // 2

    def measure(self, signal: ExpertSignal, layer: int, advance: Callable[[int], None]) -> np.ndarray:
        """(E,) float64: an expert signal of each expert."""
        parts = signal.parts(self.projections)
        size = size_of_parts(self.checkpoint, self.layout, layer, parts)
        each = size.read_bytes + signal.memory(size.entries, size.itemsize)
        if each > self.memory_bytes:
            raise SettingError(
                f"--memory {format_size(self.memory_bytes)} is too little for {signal.name} of an expert of layer "
                f"{layer}: give {format_size(each)} or more."
            )

        def one(expert: int) -> float:
            return with_parts(signal.measure, self.checkpoint, self.layout, layer, expert, parts)

        experts = range(self.layout.layers[layer].num_experts)
        values = []
        for value in self.engine.map(one, experts, most=self.memory_bytes // each):
            values.append(value)
            advance(1)
        return np.array(values, np.float64)

    def compare(self, signal: PairSignal, layer: int, advance: Callable[[int], None]) -> LayerPairs:
        """A pair signal of each two experts, summed over its passes."""
        count, has_floor, estimated = self.layout.layers[layer].num_experts, False, False
        upper, variance, floor = np.zeros((3, count, count))
        for parts, weight in signal.passes(self.projections).items():
            expected = np.zeros((count, count))
            for unit, scores in self._units(signal, layer, parts, advance):
                upper[np.ix_(unit.rows, unit.columns)] += weight * scores.values
                if scores.errors is not None:
                    # Passes are sampled at different entries, so their errors are independent.
                    variance[np.ix_(unit.rows, unit.columns)] += (weight * scores.errors) ** 2
                    estimated = True
                if scores.floor is not None:
                    expected[np.ix_(unit.experts, unit.experts)], has_floor = scores.floor, True
            floor += weight * expected
        return LayerPairs(
            values=upper + upper.T,
            errors=np.sqrt(variance + variance.T) if estimated else None,
            floor=floor if has_floor else None,
        )

    def _units(
        self, signal: PairSignal, layer: int, parts: tuple[str, ...], advance: Callable[[int], None]
    ) -> Iterator[tuple[Unit, UnitScores]]:
        limits = Limits(workers=self.engine.workers, memory_bytes=self.memory_bytes)
        held = Held()
        for unit in units_of(self.checkpoint, self.layout, signal, layer, parts, limits):
            yield (
                unit,
                score_unit(self.checkpoint, self.layout, signal, unit, engine=self.engine, held=held, advance=advance),
            )

    @property
    def projections(self) -> tuple[str, ...]:
        return tuple(self.layout.architecture.projection_names)
