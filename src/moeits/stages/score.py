"""Checkpoint x estimator -> redundancy of every pair of experts, layer by layer (paper, eqs. 4-11)."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import NonFiniteWeight, SettingError, UnscorableWeight
from moeits.evidence import Evidence
from moeits.experts.architectures import Architecture, architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.files import check_file_output
from moeits.finished import FinishedLayers
from moeits.progress import Progress, silent
from moeits.settings import with_settings
from moeits.signals import RedundancyEstimator, estimator_named
from moeits.signals.settings import Resources, Scoring
from moeits.sizes import format_size, parse_size


@with_settings
def score(
    model: str | Path | Checkpoint,
    *,
    output: str | Path | None = None,
    scoring: Scoring,
    resources: Resources,
    revision: str | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> Evidence:
    """Measure how redundant the experts of each MoE layer are: R_ij = sum_m w_m NMI(W_m of i, W_m of j).

    Paper: eqs. 4-11; method.md, section 1. Nothing is run, only weights are read. `preset` sets the projection weights
    (`paper`: the mean; `authors-code`: the authors' program), `projection_weights` overrides them. `memory` bounds the
    encoded weights held at once. With `output` the evidence is also written there, and a killed run goes on where it
    was unless `fresh`. The result does not depend on `threads`, `memory`, sharding or layout.

    Raises CheckpointError if the checkpoint is broken or has weights that cannot be scored, SettingError for an
    argument that is out of range, OutputError if the evidence cannot be written.
    """
    checkpoint = (
        model if isinstance(model, Checkpoint) else Checkpoint.open(model, revision=revision, check=architecture_of)
    )
    layout = MoELayout.of(checkpoint)
    layout.check_scorable()
    measure = estimator_named(scoring.estimator, **({} if scoring.bins == "auto" else {"bins": scoring.bins}))
    weights = _projection_weights(layout.architecture, scoring)
    settings = {
        "preset": scoring.preset,
        **measure.settings,
        "projection_weights": weights,
        "diagonal": scoring.diagonal,
    }
    threads, memory_bytes = _thread_count(resources.threads), parse_size(resources.memory, "--memory")
    output = None if output is None else Path(output)
    if output is not None:
        check_file_output(output, inputs=[checkpoint.folder])
    key = {"estimator": scoring.estimator, **settings}
    finished = FinishedLayers(output, fingerprint=checkpoint.fingerprint, settings=key, fresh=fresh)
    with ThreadPoolExecutor(threads) as pool:
        scorer = _Scorer(checkpoint, layout, measure, weights, pool, threads, memory_bytes)
        matrices = scorer.all_layers(finished, progress)
    evidence = Evidence(
        inventory=Inventory.of(checkpoint, layout),
        estimator=scoring.estimator,
        settings=settings,
        redundancy={layer: found["redundancy"] for layer, found in matrices.items()},
        floor={layer: found["floor"] for layer, found in matrices.items()},
    )
    if output is not None:
        evidence.save(output)
        finished.remove()
    return evidence


def _projection_weights(architecture: Architecture, scoring: Scoring) -> dict[str, float]:
    names = architecture.projection_names
    if scoring.projection_weights is None:
        mean = dict.fromkeys(names, 1 / len(names))
        return dict(architecture.authors_code_weights) or mean if scoring.preset == "authors-code" else mean
    weights = {name: float(weight) for name, weight in scoring.projection_weights.items()}
    if set(weights) != set(names) or min(weights.values()) < 0 or not isclose(sum(weights.values()), 1, abs_tol=1e-9):
        raise SettingError(
            f"--projection-weights must give {', '.join(names)} weights that are not negative and sum to 1; got "
            + ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
            + "."
        )
    return {name: weights[name] for name in names}


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads


@dataclass(frozen=True)
class _Scorer:
    checkpoint: Checkpoint
    layout: MoELayout
    estimator: RedundancyEstimator
    weights: Mapping[str, float]
    pool: ThreadPoolExecutor
    threads: int
    memory_bytes: int

    def all_layers(self, finished: FinishedLayers, progress: Progress) -> dict[int, dict[str, np.ndarray]]:
        used = sum(weight > 0 for weight in self.weights.values())
        pairs = {i: used * moe.num_experts * (moe.num_experts - 1) // 2 for i, moe in self.layout.layers.items()}
        total, before = sum(pairs.values()), 0
        matrices = {}
        for layer in self.layout.layers:
            done_before = before

            def advance(done: int, done_before: int = done_before) -> None:
                progress("scoring pairs of experts", done_before + done, total)

            matrices[layer] = finished.get(layer) or self.one_layer(layer, advance)
            finished.put(layer, matrices[layer])
            before += pairs[layer]
            progress("scoring pairs of experts", before, total)
        return matrices

    def one_layer(self, layer: int, advance: Callable[[int], None]) -> dict[str, np.ndarray]:
        """R and its floor, (E, E) each, symmetric, diagonal 0."""
        count = self.layout.layers[layer].num_experts
        redundancy, floor, done = np.zeros((count, count)), np.zeros((count, count)), 0
        for projection, weight in self.weights.items():
            if weight == 0:
                continue
            expected = np.zeros((count, count))
            for rows, columns in self._tiles(layer, projection):
                compared, both = self._compare(rows, columns), {**rows, **columns}
                # The other threads compare meanwhile.
                expected[np.ix_([*both], [*both])] = self.estimator.floor([*both.values()])
                for i, js, values in compared:
                    redundancy[i, js] += weight * np.array(values)
                    done += len(js)
                    advance(done)
            floor += weight * expected
        upper = np.triu(redundancy, 1)
        return {"redundancy": upper + upper.T, "floor": floor}

    def _tiles(self, layer: int, projection: str) -> Iterator[tuple[dict[int, Any], dict[int, Any]]]:
        """Encoded experts whose pairs are to be compared: (those of the rows, those of the columns), all pairs once.

        One tile when all experts of a layer fit into the memory bound, else two blocks of experts at a time.
        """
        experts = range(self.layout.layers[layer].num_experts)
        size = self._block_size(layer, projection)
        blocks = [experts[start : start + size] for start in range(0, len(experts), size)]
        for number, block in enumerate(blocks):
            encoded = self._encode(layer, projection, block)
            yield encoded, encoded
            for other in blocks[number + 1 :]:
                yield encoded, self._encode(layer, projection, other)

    def _block_size(self, layer: int, projection: str) -> int:
        """How many experts may be encoded at a time."""
        moe = self.layout.layers[layer]
        size = self.layout.weight_size(self.checkpoint, layer, projection)
        encoded = self.estimator.encoded_bytes(size.entries)
        working = self.threads * (size.read_bytes + self.estimator.working_bytes(size.entries, size.itemsize))
        fit = (self.memory_bytes - working) // encoded
        if fit >= moe.num_experts:
            return moe.num_experts
        if fit < 2:
            least = format_size(working + 2 * encoded)
            raise SettingError(
                f"--memory {format_size(self.memory_bytes)} is too little for two experts of layer {layer} on "
                f"{self.threads} threads: give {least} or more, or fewer --threads."
            )
        return fit // 2

    def _encode(self, layer: int, projection: str, experts: Sequence[int]) -> dict[int, Any]:
        def one(expert: int) -> Any:
            try:
                return self.estimator.encode(self.layout.read(self.checkpoint, layer, expert, projection))
            except (NonFiniteWeight, UnscorableWeight, SettingError) as error:
                raise type(error)(f"{self.layout.weight_name(layer, expert, projection)}: {error}.") from None

        return dict(zip(experts, self.pool.map(one, experts), strict=True))

    def _compare(
        self, rows: Mapping[int, Any], columns: Mapping[int, Any]
    ) -> Iterator[tuple[int, list[int], list[float]]]:
        """(i, [j, ...], [redundancy, ...]) for the pairs i < j of a tile, a row at a time; begun when this returns."""

        def row(i: int) -> tuple[int, list[int], list[float]]:
            js = [j for j in columns if j > i]
            return i, js, [self.estimator.compare(rows[i], columns[j]) for j in js]

        return self.pool.map(row, rows)
