"""A pair signal of one layer in units: two blocks of experts whose pairs are compared, encoded within a memory bound.

A unit's result is a function of the checkpoint, the signal and the unit alone, so it does not matter who computes it,
when, or in what order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.engines import Engine
from moeits.errors import SettingError
from moeits.experts.layout import MoELayout
from moeits.scoring.parts import size_of_parts, with_parts
from moeits.signals import EstimatedSignal, PairSignal
from moeits.sizes import format_size

# Columns that one thread compares with a row before it looks up: so Ctrl-C takes the time of a few pairs.
_STRIP = 16


@dataclass(frozen=True, kw_only=True)
class Unit:
    """All pairs i < j of experts, i of `rows` and j of `columns`, by one pass of a signal over one layer."""

    layer: int
    parts: tuple[str, ...]
    rows: range
    columns: range
    """The rows themselves, or experts after all of them."""

    @property
    def experts(self) -> list[int]:
        return [*self.rows, *(j for j in self.columns if j not in self.rows)]

    def strips(self) -> list[tuple[int, Sequence[int]]]:
        """Its pairs, some at a time: a row, and columns."""
        after = [(i, [j for j in self.columns if j > i]) for i in self.rows]
        return [(i, js[at : at + _STRIP]) for i, js in after for at in range(0, len(js), _STRIP)]


@dataclass(frozen=True, kw_only=True)
class UnitScores:
    """What one unit says of its pairs."""

    values: np.ndarray
    """(rows, columns) float64: 0 where it is not i < j."""
    errors: np.ndarray | None
    """(rows, columns) float64: standard errors; None where the values are exact."""
    floor: np.ndarray | None
    """(experts, experts) of `Unit.experts`; None where the signal has none."""


@dataclass
class Held:
    """The encoded experts that stay from one unit to the next, which then need not be encoded again."""

    _encoded: dict[int, Any] = field(default_factory=dict)
    _of: tuple[int, tuple[str, ...]] | None = None

    def exchange(self, unit: Unit, encode: Callable[[Sequence[int]], Iterator[Any]]) -> dict[int, Any]:
        """The experts of a unit. What it does not need is let go before anything else is encoded."""
        if self._of != (unit.layer, unit.parts):
            self._encoded, self._of = {}, (unit.layer, unit.parts)
        for expert in self._encoded.keys() - {*unit.experts}:
            del self._encoded[expert]
        missing = [expert for expert in unit.experts if expert not in self._encoded]
        self._encoded.update(zip(missing, encode(missing), strict=True))
        return self._encoded


def score_unit(
    checkpoint: Checkpoint,
    layout: MoELayout,
    signal: PairSignal,
    unit: Unit,
    *,
    engine: Engine,
    held: Held | None = None,
    advance: Callable[[int], None] | None = None,
) -> UnitScores:
    """Encode the experts of a unit, and compare its pairs; `advance` hears how many pairs have just been compared.

    `engine` and `held` change no number: the first does the work, the second spares some of it.
    """

    def encode(experts: Sequence[int]) -> Iterator[Any]:
        def one(expert: int) -> Any:
            return with_parts(signal.encode, checkpoint, layout, unit.layer, expert, unit.parts)

        return engine.map(one, experts)

    encoded = (held or Held()).exchange(unit, encode)

    estimate = signal.estimate if isinstance(signal, EstimatedSignal) else None

    def compare(strip: tuple[int, Sequence[int]]) -> np.ndarray:
        i, js = strip
        row, columns = [encoded[i]], [encoded[j] for j in js]
        return estimate(row, columns)[:, 0] if estimate else signal.compare(row, columns)

    strips = unit.strips()
    compared = engine.map(compare, strips)
    # Others compare meanwhile.
    floor = signal.floor([encoded[expert] for expert in unit.experts])
    found = np.zeros((2 if estimate else 1, len(unit.rows), len(unit.columns)))
    for (i, js), scores in zip(strips, compared, strict=True):
        found[:, unit.rows.index(i), [unit.columns.index(j) for j in js]] = scores
        if advance:
            advance(len(js))
    return UnitScores(values=found[0], errors=found[1] if estimate else None, floor=floor)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the units of a scoring may take of the machine."""

    workers: int
    memory_bytes: int


def units_of(
    checkpoint: Checkpoint,
    layout: MoELayout,
    signal: PairSignal,
    layer: int,
    parts: tuple[str, ...],
    limits: Limits,
) -> Iterator[Unit]:
    """Units that cover every pair of a layer once, none of which holds more than the limits allow.

    One unit if all experts fit. Else rows take what they can and columns come a few at a time, one for each worker:
    so the fewest experts are encoded again.
    """
    count = layout.layers[layer].num_experts
    fit = _experts_that_fit(checkpoint, layout, signal, layer, parts, limits)
    if fit >= count:
        yield Unit(layer=layer, parts=parts, rows=range(count), columns=range(count))
        return
    beside = min(limits.workers, fit // 2)
    for start in range(0, count, fit - beside):
        rows = range(start, min(start + fit - beside, count))
        yield Unit(layer=layer, parts=parts, rows=rows, columns=rows)
        for first in range(rows.stop, count, beside):
            yield Unit(layer=layer, parts=parts, rows=rows, columns=range(first, min(first + beside, count)))


def _experts_that_fit(
    checkpoint: Checkpoint,
    layout: MoELayout,
    signal: PairSignal,
    layer: int,
    parts: tuple[str, ...],
    limits: Limits,
) -> int:
    """How many encoded experts may be held at a time. Raises SettingError if not even two."""
    size = size_of_parts(checkpoint, layout, layer, parts)
    memory = signal.memory(size.entries, size.itemsize)
    working = limits.workers * max(size.read_bytes + memory.encoding, memory.comparing)
    fit = (limits.memory_bytes - working) // memory.encoded
    if fit < min(2, layout.layers[layer].num_experts):
        least = format_size(working + 2 * memory.encoded)
        raise SettingError(
            f"--memory {format_size(limits.memory_bytes)} is too little for two experts of layer {layer} on "
            f"{limits.workers} threads: give {least} or more, or fewer --threads."
        )
    return fit
