"""Matrices of experts written as two thin factors, by `--edit low-rank` and `prune --factors`: smaller, for one loader.

A matrix W (outputs, inputs) of rank r is stored as `left` (outputs, r) and `right` (r, inputs), whose product it is,
or as `whole` where factors would save nothing. They lie under the names that `modeling_moeits` gives them in memory,
which no conversion of transformers knows; config.json says the ranks (`moeits.factors`), for they are needed before
any tensor is read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint.reading import DTYPES, Checkpoint
from moeits.checkpoint.writing import NewTensor
from moeits.choosing.pruning_plan import FACTORS, PruningPlan
from moeits.edits import PlannedEdit
from moeits.edits.in_order import edits_in
from moeits.edits.low_rank import LowRank, factors_of
from moeits.errors import CheckpointError, NonFiniteWeight, SettingError
from moeits.experts.layout import MoELayout
from moeits.surgery.blended import HeldRows
from moeits.surgery.edited import check_numbers, matrices, shapes
from moeits.surgery.settings import ONE_NUMBER

FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v2", "olmoe", "qwen3_moe")
"""Model types whose experts are what the loader puts in their place: gate, up and down, and nothing else."""

Ranks = Mapping[int, Mapping[str, Sequence[int | None]]]
"""Decoder layer -> projection -> the rank of each expert in the new numbering; None for one that is whole."""


@dataclass(frozen=True, kw_only=True)
class Factored:
    """The experts of a checkpoint as factors."""

    tensors: Sequence[NewTensor]
    ranks: Ranks
    replaced: frozenset[str]
    """Tensors of the source that these stand for, and those of removed experts."""

    @property
    def parameters(self) -> int:
        """How many numbers they have together."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Their bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)


def check_factors(moe: MoELayout, plan: PruningPlan, layout: str) -> None:
    """The plan leaves experts that can be stored as factors, in a family that the loader knows. Raises SettingError."""
    last = plan.edit.steps[-1].name if plan.edit else None
    if last != LowRank.name:
        after = f", and this plan ends with {last}" if last else ", and this plan has no edit"
        raise SettingError(f"--factors writes what --edit {LowRank.name} makes{after}: leave --factors out.")
    if layout in ONE_NUMBER:
        raise SettingError(
            f"--layout {layout} is for loaders of stock checkpoints, and none of them reads --factors: leave one of "
            "the two out."
        )
    if moe.architecture.model_type not in FAMILIES:
        raise SettingError(
            f"--factors are known to the loader for {', '.join(FAMILIES)}, and not for "
            f"{moe.architecture.model_type}: leave --factors out, and the matrices are written whole."
        )


def factored(checkpoint: Checkpoint, moe: MoELayout, kept: Mapping[int, Sequence[int]], edit: PlannedEdit) -> Factored:
    """The kept experts as factors, known from headers; numbers are made when they are written.

    Raises SettingError for edits that cannot be, UnscorableWeight where experts are quantized.
    """
    *before, (asked, last) = edits_in(edit)
    assert isinstance(last, LowRank), "check_factors was asked before"
    layers, last_made, rows = [], _Last(), HeldRows()
    for i, experts in kept.items():
        check_numbers(checkpoint, moe.layers[i], edit.names)
        details = [asked.details.get(i, {}).get(expert, {}) for expert in experts]
        ranks = {
            name: [last.stored_rank(shape, detail) for detail in details]
            for name, shape in shapes(checkpoint, moe, i).items()
        }
        made = matrices(checkpoint, moe, i, experts, before, rows)
        layers.append(_Layer(checkpoint, moe, i, experts, ranks, made, last_made))
    owned = (own for layer in moe.layers.values() for own in (*layer.experts.values(), layer.fused))
    return Factored(
        tensors=[tensor for layer in layers for tensor in layer.tensors()],
        ranks={layer.index: layer.ranks for layer in layers},
        replaced=frozenset(name for own in owned for name in own.values()),
    )


@dataclass
class _Last:
    """The factors of the expert that was made last: its tensors are written one after another."""

    of: tuple[int, int] | None = None
    made: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layer:
    """The kept experts of one layer."""

    checkpoint: Checkpoint
    moe: MoELayout
    index: int
    kept: Sequence[int]
    ranks: Mapping[str, Sequence[int | None]]
    matrices: Callable[[int], Mapping[str, np.ndarray]]
    last: _Last

    def tensors(self) -> Iterator[NewTensor]:
        """Of one expert after another."""
        sizes, block = shapes(self.checkpoint, self.moe, self.index), self.moe.architecture.blocks[-1]
        within = f"{block.format(layer=self.index)}.experts"
        for number, expert in enumerate(self.kept):
            dtypes = self._dtypes(expert)
            for name, (outputs, inputs) in sizes.items():
                rank = self.ranks[name][number]
                thin = {} if rank is None else {"left": (outputs, rank), "right": (rank, inputs)}
                for part, shape in (thin or {"whole": (outputs, inputs)}).items():
                    yield NewTensor(
                        name=f"{within}.{number}.{name}.{part}",
                        dtype=dtypes[name],
                        shape=shape,
                        nbytes=prod(shape) * DTYPES[dtypes[name]].itemsize,
                        parts=(partial(self._bytes, number, f"{name}.{part}"),),
                    )

    def _dtypes(self, expert: int) -> dict[str, str]:
        """Projection -> what its numbers are stored in."""
        own = self.moe.layers[self.index].experts.get(expert, {})
        held = self.moe.held(self.index).items()
        return {name: self.checkpoint.tensors[own.get(key, key)].dtype for key, of in held for name in of.projections}

    def _bytes(self, number: int, part: str) -> bytes:
        if self.last.of != (self.index, number):
            self.last.of, self.last.made = (self.index, number), self._made(number)
        return np.ascontiguousarray(self.last.made[part]).tobytes()

    def _made(self, number: int) -> dict[str, np.ndarray]:
        made = {}
        for name, weight in self.matrices(self.kept[number]).items():
            if (rank := self.ranks[name][number]) is None:
                made[f"{name}.whole"] = weight
            else:
                left, right = factors_of(weight.astype(np.float32), rank)
                made |= {f"{name}.left": left.astype(weight.dtype), f"{name}.right": right.astype(weight.dtype)}
        for part, numbers in made.items():
            if not np.isfinite(numbers).all():
                weight_name = self.moe.weight_name(self.index, self.kept[number], part.partition(".")[0])
                raise NonFiniteWeight(f"{weight_name} has no finite factors. Plan without --edit.")
        return made


def as_carried_out(plan: PruningPlan, factored: Factored) -> PruningPlan:
    """The plan with the sizes that factors have; `plan` has those of whole matrices."""
    whole = [plan.counts[i] * facts.sizes.parameters for i, facts in plan.layers.items()]
    whole_bytes = sum(plan.counts[i] * facts.sizes.nbytes for i, facts in plan.layers.items())
    routed = sum(facts.num_experts * facts.sizes.parameters for facts in plan.layers.values())
    summary = dict(plan.summary)
    summary["parameters_after"] += factored.parameters - sum(whole)
    summary["bytes_after"] += factored.nbytes - whole_bytes
    summary["reduction"] = (routed - factored.parameters) / routed
    before = summary["parameters_before"]
    summary["reduction_of_all"] = (before - summary["parameters_after"]) / before
    return replace(plan, summary=summary, settings={**plan.settings, FACTORS: True})


def with_factors(config: Mapping[str, Any], moe: MoELayout, ranks: Ranks) -> dict[str, Any]:
    """The config of layers with their own counts, and the ranks of their matrices.

    A stock class must not open such a checkpoint, for it would make up the weights that it does not find. It refuses
    layers that have other counts than all together, so that each layer has its count under every name that there is;
    where nobody was removed the number for all is one more, which no layer has.
    """
    keys, of_layers = moe.architecture.num_experts_keys, dict(config["per_layer_config"])
    counts = {i: len(next(iter(of_layer.values()))) for i, of_layer in ranks.items()}
    for i, count in counts.items():
        of_layers[str(i)] = {**of_layers[str(i)], **dict.fromkeys(keys, count)}
    for_all = {key: config[key] for key in keys if key in config}
    if {*counts.values()} == {*for_all.values()}:
        config = {**config, **{key: count + 1 for key, count in for_all.items()}}
    facts = {str(i): {name: [*of] for name, of in of_layer.items()} for i, of_layer in ranks.items()}
    return {**config, "per_layer_config": of_layers, "moeits": {**config["moeits"], "factors": facts}}


def check_factors_written(folder: Path, tensors: Sequence[NewTensor]) -> None:
    """The headers of what was written are those that were planned. Raises CheckpointError."""
    found = Checkpoint(folder, source="output").tensors
    planned = {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
    if planned != {name: (info.dtype, info.shape) for name, info in found.items()}:
        raise CheckpointError(
            "The new checkpoint does not have the factors that it should, so it is not kept. Please report this."
        )
