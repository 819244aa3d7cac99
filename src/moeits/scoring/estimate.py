"""How long a scoring would take and what it would hold, from one encoding and one comparison timed on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeits.foreseen import timed
from moeits.scoring.layers import LayerScorer
from moeits.scoring.parts import size_of_parts, with_parts
from moeits.signals import ExpertSignal, PairSignal


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a scoring would take, by a small sample."""

    seconds: float
    """With all threads busy and files read as fast as the sample was."""
    memory_bytes: int
    """Of the weights held at once, encoded and as they are read; at most what `--memory` allows."""


def estimate(scorer: LayerScorer, signal: PairSignal | ExpertSignal) -> Estimate:
    """One pair of experts of the first layer timed, and every other taken to go as fast per entry.

    Raises what a scoring would raise for these two experts.
    """
    if not isinstance(signal, PairSignal):
        return _of_experts(scorer, signal)
    seconds = memory = 0.0
    speeds: dict[tuple[str, ...], tuple[float, float]] = {}
    for layer, moe in scorer.layout.layers.items():
        for parts in signal.passes(scorer.projections):
            if parts not in speeds:
                speeds[parts] = _timed_pair(scorer, signal, layer, parts)
            size = size_of_parts(scorer.checkpoint, scorer.layout, layer, parts)
            encoding, comparing = (each * size.entries for each in speeds[parts])
            seconds += moe.num_experts * encoding + moe.num_experts * (moe.num_experts - 1) / 2 * comparing
            held = signal.memory(size.entries, size.itemsize)
            working = scorer.engine.workers * max(size.read_bytes + held.encoding, held.comparing)
            memory = max(memory, working + moe.num_experts * held.encoded)
    return Estimate(seconds=seconds / scorer.engine.workers, memory_bytes=min(int(memory), scorer.memory_bytes))


def _timed_pair(scorer: LayerScorer, signal: PairSignal, layer: int, parts: tuple[str, ...]) -> tuple[float, float]:
    """Seconds per entry of encoding an expert, and of comparing two."""
    entries = size_of_parts(scorer.checkpoint, scorer.layout, layer, parts).entries
    last = scorer.layout.layers[layer].num_experts - 1

    def encode(expert: int) -> Any:
        return with_parts(signal.encode, scorer.checkpoint, scorer.layout, layer, expert, parts)

    # The first call of each kernel compiles it.
    first = encode(0)
    signal.compare([first], [first])
    second, encoding = _timed(lambda: encode(last))
    _, comparing = _timed(lambda: signal.compare([first], [second]))
    return encoding / entries, comparing / entries


def _of_experts(scorer: LayerScorer, signal: ExpertSignal) -> Estimate:
    seconds, memory, per_entry = 0.0, 0, None
    for layer, moe in scorer.layout.layers.items():
        parts = signal.parts(scorer.projections)
        size = size_of_parts(scorer.checkpoint, scorer.layout, layer, parts)
        if per_entry is None:

            def measure(layer: int = layer, parts: tuple[str, ...] = parts) -> Any:
                return with_parts(signal.measure, scorer.checkpoint, scorer.layout, layer, 0, parts)

            measure()
            per_entry = _timed(measure)[1] / size.entries
        seconds += moe.num_experts * size.entries * per_entry
        memory = max(memory, scorer.engine.workers * (size.read_bytes + signal.memory(size.entries, size.itemsize)))
    return Estimate(seconds=seconds / scorer.engine.workers, memory_bytes=min(memory, scorer.memory_bytes))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work gives, and its seconds where nobody else is at work."""
    values: list[Any] = []
    seconds = timed(lambda: values.append(work()))
    return values[0], seconds
