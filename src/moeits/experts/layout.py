"""The experts of a checkpoint: which tensor belongs to which, and the weights of each.

This is the one place where names become structure. Scoring reads experts through it, surgery gives every tensor its
fate by it, and what does not fit (a missing expert, a router of another width) is an error here, before anything else
is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.errors import CheckpointError, UnscorableWeight
from moeits.experts import finding, fitting, promises
from moeits.experts.families import Architecture, architecture_of
from moeits.experts.layer import BlockTensors, ExpertSizes, MoELayer
from moeits.experts.mtp import MtpLayers


@dataclass(frozen=True, kw_only=True)
class WeightSize:
    """What one projection of one expert weighs, and what it takes to read it."""

    entries: int
    itemsize: int
    read_bytes: int
    """Bytes held while it is read: where projections stand side by side, all of them are read at once."""


@dataclass(frozen=True, kw_only=True)
class MoELayout:
    """The MoE layers of a checkpoint, and what they are made of."""

    architecture: Architecture
    layers: Mapping[int, MoELayer]
    mtp: MtpLayers = field(default_factory=MtpLayers)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "MoELayout":
        """Find the experts of a checkpoint. Raises CheckpointError where its tensors and its config disagree."""
        architecture = architecture_of(checkpoint.config)
        by_layer = finding.by_layer(architecture, checkpoint.tensors)
        count = promises.num_layers(checkpoint.config)
        fitting.check_all_layers(count, by_layer)
        expected = promises.moe_layers(architecture, checkpoint.config)
        for i in sorted(set(range(count)) - set(expected)):
            fitting.check_no_router(architecture, i, by_layer[i])
        layers = {i: _layer(architecture, checkpoint.config, i, by_layer[i]) for i in expected}
        if not layers:
            raise CheckpointError(f"{checkpoint.source} has no MoE layer: there is nothing to simplify.")
        mtp = MtpLayers.of(architecture, checkpoint.config, checkpoint.tensors)
        return cls(architecture=architecture, layers=layers, mtp=mtp)

    def read(self, checkpoint: Checkpoint, layer: int, expert: int, projection: str) -> np.ndarray:
        """Weight of one projection of one expert, (outputs, inputs), in its stored dtype; the same for every layout."""
        moe, architecture = self.layers[layer], self.architecture
        if moe.experts:
            return checkpoint.read(moe.experts[expert][architecture.projections[projection]])
        name, stacked = self._fused_with(projection)
        at, parts = stacked.index(projection), len(stacked)
        if architecture.stacking == "rows":
            rows = checkpoint.tensors[moe.fused[name]].shape[1] // parts
            return checkpoint.read(moe.fused[name], (expert, slice(at * rows, (at + 1) * rows)))
        whole = checkpoint.read(moe.fused[name], (expert,))
        width = whole.shape[1] // parts
        own = slice(at * width, (at + 1) * width) if architecture.stacking == "columns" else slice(at, None, parts)
        return np.ascontiguousarray(whole[:, own].T)

    def weight_size(self, checkpoint: Checkpoint, layer: int, projection: str) -> WeightSize:
        """Size of one projection of one expert."""
        moe = self.layers[layer]
        if moe.experts:
            info, share = checkpoint.tensors[moe.experts[0][self.architecture.projections[projection]]], 1
        else:
            name, stacked = self._fused_with(projection)
            info, share = checkpoint.tensors[moe.fused[name]], moe.num_experts * len(stacked)
        beside = 0 if moe.experts or self.architecture.stacking == "rows" else info.nbytes // moe.num_experts
        entries, nbytes = info.parameters // share, info.nbytes // share
        return WeightSize(entries=entries, itemsize=nbytes // entries, read_bytes=nbytes + beside)

    def weight_name(self, layer: int, expert: int, projection: str) -> str:
        """What to call a weight in a message: its tensor's name, and the expert where the tensor holds them all."""
        moe = self.layers[layer]
        if moe.experts:
            return moe.experts[expert][self.architecture.projections[projection]]
        return f"{moe.fused[self._fused_with(projection)[0]]}[{expert}] ({projection})"

    def check_scorable(self) -> None:
        """Every expert has its weights as matrices. Raises UnscorableWeight where they are packed, say by GPTQ."""
        for layer, moe in self.layers.items():
            wanted = self.architecture.projections.values() if moe.experts else self.architecture.fused
            found = moe.experts[0] if moe.experts else moe.fused
            if missing := next((name for name in wanted if name not in found), None):
                stem = missing.removesuffix("weight")
                instead = ", ".join(name for name in found if name.startswith(stem))
                raise UnscorableWeight(
                    f"Layer {layer} has its experts quantized ({instead} instead of {missing}): such weights can be "
                    "moved but not scored. Score the bf16 checkpoint that this one was made from, and prune this one "
                    "by that plan, with --any-fingerprint."
                )

    def _fused_with(self, projection: str) -> tuple[str, tuple[str, ...]]:
        """The fused tensor that holds a projection, and all that are stacked in it."""
        return next(item for item in self.architecture.fused.items() if projection in item[1])


def _layer(
    architecture: Architecture, config: Mapping[str, Any], index: int, tensors: Mapping[str, TensorInfo]
) -> MoELayer:
    block = finding.block_tensors(architecture, index, tensors)
    fitting.check_roles(architecture, block, tensors)
    count, top_k = promises.counts(architecture, config, index)
    fitting.check_experts(architecture, index, count, block, tensors)
    groups, least_per_group = promises.groups(architecture, config, count)
    return MoELayer(
        **vars(block),
        index=index,
        num_experts=count,
        top_k=top_k,
        groups=groups,
        least_per_group=least_per_group,
        sizes=_sizes(block, count, tensors),
    )


def _sizes(block: BlockTensors, count: int, tensors: Mapping[str, TensorInfo]) -> ExpertSizes:
    of_experts, of = (block.experts[0].values(), 1) if block.experts else (block.fused.values(), count)
    weights, rows = [tensors[name] for name in of_experts], [tensors[name] for name in block.router]
    return ExpertSizes(
        parameters=sum(info.parameters for info in weights) // of,
        nbytes=sum(info.nbytes for info in weights) // of,
        router_parameters=sum(info.parameters for info in rows) // count,
        router_nbytes=sum(info.nbytes for info in rows) // count,
    )
