"""The experts of a checkpoint: which tensor belongs to which, and the weights of each.

This is the one place where names become structure. Scoring reads experts through it, surgery gives every tensor its
fate by it, and what does not fit (a missing expert, a router of another width) is an error here, before anything else
is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec import structs

from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.errors import CheckpointError, UnscorableWeight
from moeits.experts import finding, fitting, promises
from moeits.experts.borders import is_text
from moeits.experts.counting import parameters_of
from moeits.experts.families import Architecture, architecture_of
from moeits.experts.held import Held
from moeits.experts.layer import BlockTensors, ExpertSizes, MoELayer
from moeits.experts.mtp import MtpLayers
from moeits.experts.stored import Place, Stacking, StoredWeight, WeightSize, parts_of


@dataclass(frozen=True, kw_only=True)
class MoELayout:
    """The MoE layers of a checkpoint, and what they are made of."""

    architecture: Architecture
    layers: Mapping[int, MoELayer]
    whole: tuple[int, ...] = ()
    """Layers whose experts all stay, since a table of tokens chooses them."""
    mtp: MtpLayers = field(default_factory=MtpLayers)

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, padded: bool = False) -> "MoELayout":
        """Find the experts of a checkpoint; with `padded` those that only fill up a layer may be among them.

        Raises CheckpointError where its tensors and its config disagree.
        """
        architecture = architecture_of(checkpoint.config)
        promises.check_not_factored(checkpoint.config, checkpoint.source)
        if not padded:
            promises.check_not_padded(checkpoint.config, checkpoint.source)
        config = architecture.part_of(checkpoint.config)
        by_layer = finding.by_layer(architecture, checkpoint.tensors)
        if architecture.stacking == "rows or columns":
            architecture = structs.replace(architecture, stacking=finding.stacking(architecture, by_layer))
        count = promises.num_layers(architecture, config)
        fitting.check_all_layers(count, by_layer)
        expected = promises.moe_layers(architecture, config)
        others = sorted(set(range(count)) - set(expected))
        whole = tuple(i for i in others if finding.has_table_of_tokens(architecture, i, by_layer[i]))
        for i in set(others) - set(whole):
            fitting.check_no_router(architecture, i, by_layer[i])
        parameters = parameters_of(checkpoint)
        layers = {i: _layer(architecture, config, i, by_layer[i], parameters) for i in expected}
        if not layers:
            raise CheckpointError(f"{checkpoint.source} has no MoE layer: there is nothing to simplify.")
        mtp = MtpLayers.of(architecture, count, checkpoint.tensors)
        return cls(architecture=architecture, layers=layers, whole=whole, mtp=mtp)

    def read(self, checkpoint: Checkpoint, layer: int, expert: int, projection: str) -> np.ndarray:
        """Weight of one projection of one expert, (outputs, inputs), the same for every layout.

        In its stored dtype; a packed one in the dtype in which the model computes. Raises UnscorableWeight for one that
        is packed in a way that no codec knows.
        """
        return self._stored(checkpoint, layer, expert, projection).read(checkpoint)

    def weight_size(self, checkpoint: Checkpoint, layer: int, projection: str) -> WeightSize:
        """Size of one projection of one expert, in numbers. Raises UnscorableWeight as `read` does, by headers only."""
        return self._stored(checkpoint, layer, 0, projection).size(checkpoint.config)

    def weight_name(self, layer: int, expert: int, projection: str) -> str:
        """What to call a weight in a message: its tensor's name, and the expert where the tensor holds them all."""
        parts = self._parts(layer, expert, projection)
        name = parts.get("weight") or next(iter(parts.values()))
        return name if self.layers[layer].experts else f"{name}[{expert}] ({projection})"

    def held(self, layer: int) -> dict[str, Held]:
        """What of an expert its tensors of numbers hold: of each tensor, by what follows the expert's number, or by
        the name of the one that has all experts.

        Raises UnscorableWeight for a tensor that is neither weights nor biases.
        """
        moe, family = self.layers[layer], self.architecture
        own = moe.experts[0] if moe.experts else moe.fused
        weights = {name: (projection,) for projection, name in family.projections.items()}
        found: dict[str, Held] = {}
        for weight, projections in (weights if moe.experts else family.fused).items():
            for part, name in parts_of(weight, {name: name for name in own}).items():
                if part in ("weight", "bias"):
                    stacking = "rows" if moe.experts else self._stacking
                    found[name] = Held(projections=projections, bias=part == "bias", stacking=stacking)
        if odd := sorted(own.keys() - found.keys()):
            raise UnscorableWeight(
                f"{own[odd[0]]} is neither a weight nor a bias of a projection: what an edit should do with it is not "
                "known. Plan without --edit."
            )
        return found if moe.experts else {moe.fused[name]: held for name, held in found.items()}

    def check_scorable(self, checkpoint: Checkpoint) -> None:
        """Every expert has its weights in a way that can be read. Raises UnscorableWeight where not, say for GPTQ."""
        for layer in self.layers:
            for projection in self.architecture.projection_names:
                self.weight_size(checkpoint, layer, projection)

    def _stored(self, checkpoint: Checkpoint, layer: int, expert: int, projection: str) -> StoredWeight:
        parts = self._parts(layer, expert, projection)
        tensors = {part: checkpoint.tensors[name] for part, name in parts.items()}
        stored = StoredWeight.of(tensors, self._place(layer, expert, projection))
        if stored is None:
            names = ", ".join(f"{info.name} ({info.dtype:.20})" for info in tensors.values())
            raise UnscorableWeight(
                f"{names}: experts quantized in this way can be moved but not scored. Score another release of the "
                "model (bf16, FP8, ...), and prune this one by that plan, with --any-fingerprint."
            )
        return stored

    def _parts(self, layer: int, expert: int, projection: str) -> dict[str, str]:
        """The tensors that keep a projection, by the names of their parts."""
        moe = self.layers[layer]
        if moe.experts:
            return parts_of(self.architecture.projections[projection], moe.experts[expert])
        return parts_of(self._fused_with(projection)[0], moe.fused)

    def _place(self, layer: int, expert: int, projection: str) -> Place | None:
        if self.layers[layer].experts:
            return None
        _, stacked = self._fused_with(projection)
        return Place(expert=expert, at=stacked.index(projection), of=len(stacked), stacking=self._stacking)

    @property
    def _stacking(self) -> Stacking:
        stacking = self.architecture.stacking
        assert stacking != "rows or columns", "settled when the layout was found"
        return stacking

    def _fused_with(self, projection: str) -> tuple[str, tuple[str, ...]]:
        """The fused tensor that holds a projection, and all that are stacked in it."""
        return next(item for item in self.architecture.fused.items() if projection in item[1])


def _layer(
    architecture: Architecture,
    config: Mapping[str, Any],
    index: int,
    tensors: Mapping[str, TensorInfo],
    parameters: Mapping[str, int],
) -> MoELayer:
    block = finding.block_tensors(architecture, index, tensors, promises.extra_rows(architecture, config))
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
        sizes=_sizes(block, count, tensors, parameters),
    )


def _sizes(
    block: BlockTensors, count: int, tensors: Mapping[str, TensorInfo], parameters: Mapping[str, int]
) -> ExpertSizes:
    """What one expert takes; `parameters` of each tensor are those that it stands for, where it is packed.

    Text about a weight has another length in each expert, of which the mean is taken.
    """
    of_experts, of = (block.experts[0].values(), 1) if block.experts else (block.fused.values(), count)
    texts = [name for own in block.experts.values() for name in own.values() if is_text(name)]
    rows = [(name, count + block.extra.get(name, 0)) for name in block.router]
    return ExpertSizes(
        parameters=sum(parameters[name] for name in of_experts) // of,
        nbytes=sum(tensors[name].nbytes for name in of_experts if not is_text(name)) // of
        + sum(tensors[name].nbytes for name in texts) // count,
        router_parameters=sum(parameters[name] // entries for name, entries in rows),
        router_nbytes=sum(tensors[name].nbytes // entries for name, entries in rows),
    )
