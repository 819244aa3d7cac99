"""Which tensors of one checkpoint belong to which expert: an architecture's names, found in the checkpoint's headers.

This is the one place where names become structure. Scoring reads experts through it, surgery gives every tensor its
fate by it, and what does not fit (a missing expert, a router of another width) is an error here, before anything else
is done.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeits.architectures import Architecture, architecture_of
from moeits.checkpoint import Checkpoint, TensorInfo
from moeits.errors import CheckpointError

_LAYER_OF = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class ExpertSizes:
    """What one routed expert of a layer weighs, its router row apart."""

    parameters: int
    nbytes: int
    router_parameters: int
    router_nbytes: int


@dataclass(frozen=True, kw_only=True)
class MoELayer:
    """The experts of one decoder layer, by tensor name."""

    index: int
    num_experts: int
    top_k: int
    groups: int
    block: str
    """Name of the MoE block, with its trailing dot."""
    experts: Mapping[int, Mapping[str, str]]
    """Expert -> what follows its number -> tensor name. Empty in a fused layer."""
    fused: Mapping[str, str]
    """Name in the architecture -> tensor name. Empty in a layer of per-expert tensors."""
    router: tuple[str, ...]
    shared: tuple[str, ...]
    sizes: ExpertSizes

    @property
    def expert_rows(self) -> tuple[str, ...]:
        """Tensors whose axis 0 is the expert axis."""
        return (*self.router, *self.fused.values())


@dataclass(frozen=True, kw_only=True)
class MoELayout:
    """The MoE layers of a checkpoint, and what they are made of."""

    architecture: Architecture
    layers: Mapping[int, MoELayer]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "MoELayout":
        """Find the experts of a checkpoint. Raises CheckpointError where its tensors and its config disagree."""
        architecture = architecture_of(checkpoint.config)
        by_layer: dict[int, dict[str, TensorInfo]] = {}
        for name, info in checkpoint.tensors.items():
            if found := _LAYER_OF.search(name):
                by_layer.setdefault(int(found[1]), {})[name] = info
        expected = _moe_layers(architecture, checkpoint.config, by_layer)
        layers = {i: _read_layer(architecture, checkpoint.config, i, by_layer[i]) for i in expected}
        if not layers:
            raise CheckpointError(f"{checkpoint.source} has no MoE layer: there is nothing to simplify.")
        return cls(architecture=architecture, layers=layers)

    def read(self, checkpoint: Checkpoint, layer: int, expert: int, projection: str) -> np.ndarray:
        """Weight of one projection of one expert, (rows, cols), in its stored dtype; the same for every layout."""
        moe, tensor = self.layers[layer], self.architecture.projections[projection]
        if moe.experts:
            return checkpoint.read(moe.experts[expert][tensor])
        for name, stacked in self.architecture.fused.items():
            if projection in stacked:
                rows = checkpoint.tensors[moe.fused[name]].shape[1] // len(stacked)
                start = stacked.index(projection) * rows
                return checkpoint.read(moe.fused[name], (expert, slice(start, start + rows)))
        raise AssertionError(f"{self.architecture.model_type} names no fused tensor for {projection}")

    def weight_size(self, checkpoint: Checkpoint, layer: int, projection: str) -> tuple[int, int]:
        """Entries and bytes of one projection of one expert."""
        moe = self.layers[layer]
        if moe.experts:
            info = checkpoint.tensors[moe.experts[0][self.architecture.projections[projection]]]
            return info.parameters, info.nbytes
        name, stacked = next(item for item in self.architecture.fused.items() if projection in item[1])
        info, share = checkpoint.tensors[moe.fused[name]], moe.num_experts * len(stacked)
        return info.parameters // share, info.nbytes // share

    def weight_name(self, layer: int, expert: int, projection: str) -> str:
        """What to call a weight in a message: its tensor's name, and the expert where the tensor holds them all."""
        moe = self.layers[layer]
        if moe.experts:
            return moe.experts[expert][self.architecture.projections[projection]]
        return next(
            f"{moe.fused[name]}[{expert}] ({projection})"
            for name, stacked in self.architecture.fused.items()
            if projection in stacked
        )


def per_layer_config(config: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """The settings in which single layers differ from the config: layer -> {key: value}. Empty for stock models."""
    try:
        own = (config.get("moeits") or {}).get("per_layer_config")
        written = config.get("per_layer_config") or own or {}
        return {int(layer): dict(values) for layer, values in written.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"per_layer_config in config.json should map layers to their settings ({error})."
        ) from None


def _moe_layers(
    architecture: Architecture, config: Mapping[str, Any], by_layer: Mapping[int, Mapping[str, TensorInfo]]
) -> list[int]:
    """Which layers have experts by config.json. The tensors must agree: no layer missing, none with a router beside."""
    count = config.get("num_hidden_layers")
    if type(count) is not int or count < 1:
        raise CheckpointError(f"config.json should give num_hidden_layers as a number from 1 on; it has {count!r}.")
    missing = next((i for i in range(count) if i not in by_layer), None)
    if missing is not None:
        raise CheckpointError(
            f"config.json promises {count} layers, but there are no tensors of layer {missing}. The checkpoint is "
            "incomplete, or its config.json is of another one."
        )
    expected = [i for i in range(count) if _asked(architecture.is_moe_layer, config, i)]
    for i in sorted(set(range(count)) - set(expected)):
        if _block(architecture, i, by_layer[i]):
            raise CheckpointError(
                f"Layer {i} has a router, but no experts by config.json. The checkpoint and its config.json are not of "
                "one model."
            )
    return expected


def _asked(rule: Callable[..., Any], config: Mapping[str, Any], *of: int) -> Any:
    """What a rule of the architecture says of a config. Raises CheckpointError where the config is no input for it."""
    try:
        return rule(config, *of)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json does not say which layers of this {config['model_type']} model have experts, and in which "
            f"groups ({error}). Download this file again."
        ) from None


def _read_layer(
    architecture: Architecture, config: Mapping[str, Any], index: int, tensors: Mapping[str, TensorInfo]
) -> MoELayer:
    block = _block(architecture, index, tensors)
    if block is None:
        raise CheckpointError(
            f"Layer {index} should be a MoE layer by config.json, but there is no "
            f"{architecture.blocks[0].format(layer=index)}.{architecture.router[0]}. The checkpoint is incomplete, or "
            "its config.json is of another one."
        )
    inside = {name.removeprefix(block): info for name, info in tensors.items() if name.startswith(block)}
    experts = _per_expert(architecture, block, inside)
    fused = {name: block + name for name in inside if _is_fused(architecture, name)}
    router = tuple(block + name for name in architecture.router if name in inside)
    shared = tuple(block + name for name in inside if name.startswith(architecture.shared))
    known = {*fused.values(), *router, *shared}.union(*(of.values() for of in experts.values()))
    for name in inside:
        if block + name not in known:
            raise CheckpointError(
                f"{block}{name} is none of the tensors that a {architecture.model_type} MoE block has, so it is not "
                "clear whether it belongs to an expert. See docs/extending.md."
            )
    count, top_k = _counts(architecture, config, index)
    _check_complete(architecture, block, index, count, experts, fused)
    _check_rows(index, count, {name: tensors[name] for name in (*router, *fused.values())})
    _check_weights(architecture, experts, fused, tensors)
    return MoELayer(
        index=index,
        num_experts=count,
        top_k=top_k,
        groups=_groups(architecture, config, count),
        block=block,
        experts=experts,
        fused=fused,
        router=router,
        shared=shared,
        sizes=_sizes(index, count, tensors, experts, fused, router),
    )


def _block(architecture: Architecture, index: int, tensors: Mapping[str, TensorInfo]) -> str | None:
    """The MoE block of a layer: the name under which its router is found, if it is."""
    blocks = (block.format(layer=index) + "." for block in architecture.blocks)
    return next((block for block in blocks if block + architecture.router[0] in tensors), None)


def _is_fused(architecture: Architecture, name: str) -> bool:
    """A fused tensor of the architecture, or what goes with one row by row: `_bias`, `_scale_inv`, `_blocks`, ..."""
    return any(name == own or name.startswith((own + "_", own + ".")) for own in architecture.fused)


def _per_expert(architecture: Architecture, block: str, inside: Mapping[str, TensorInfo]) -> dict[int, dict[str, str]]:
    before, after = architecture.expert.split("{expert}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after).replace(r"\{tensor\}", "(.+)"))
    experts: dict[int, dict[str, str]] = {}
    for name in inside:
        if found := pattern.fullmatch(name):
            experts.setdefault(int(found[1]), {})[found[2]] = block + name
    return dict(sorted(experts.items()))


def _counts(architecture: Architecture, config: Mapping[str, Any], index: int) -> tuple[int, int]:
    """Number of experts and top-k of one layer, by the config and its per-layer settings."""
    key = architecture.num_experts_key(config)
    if key is None:
        raise CheckpointError(
            f"config.json has no {' or '.join(architecture.num_experts_keys)}: this {architecture.model_type} "
            "checkpoint does not say how many experts it has."
        )
    values = {**config, **per_layer_config(config).get(index, {})}
    count, top_k = values.get(key), values.get(architecture.top_k_key)
    if type(count) is not int or type(top_k) is not int or not 1 <= top_k <= count:
        raise CheckpointError(
            f"config.json should give {key} and {architecture.top_k_key} as numbers, the second from 1 to the first; "
            f"for layer {index} it has {count!r} and {top_k!r}."
        )
    return count, top_k


def _groups(architecture: Architecture, config: Mapping[str, Any], count: int) -> int:
    groups = _asked(architecture.groups, config)
    if groups < 1 or count % groups:
        raise CheckpointError(f"config.json puts {count} experts into {groups} groups, which cannot be of equal size.")
    return groups


def _check_complete(
    architecture: Architecture,
    block: str,
    index: int,
    count: int,
    experts: Mapping[int, Mapping[str, str]],
    fused: Mapping[str, str],
) -> None:
    """All experts 0..count-1 with all their projections, in exactly one of the two layouts."""
    if bool(experts) == bool(fused) or (fused and not fused.keys() >= architecture.fused.keys()):
        wanted = " and ".join(architecture.fused)
        raise CheckpointError(
            f"Layer {index} should have its experts either one by one or fused as {wanted}: under {block} there are "
            f"{len(experts)} experts and {len(fused)} fused tensors. Download the checkpoint again."
        )
    if not experts:
        return
    missing = next((expert for expert in range(count) if expert not in experts), None)
    if missing is not None or len(experts) != count:
        raise CheckpointError(
            f"Layer {index} should have {count} experts by config.json, but its tensors hold {len(experts)}"
            + (f", and expert {missing} is not among them" if missing is not None else "")
            + ". The checkpoint is incomplete, or its config.json is of another one."
        )
    for expert, tensors in experts.items():
        for tensor in architecture.projections.values():
            if tensor not in tensors:
                raise CheckpointError(f"Layer {index}, expert {expert} has no {tensor}. Download the checkpoint again.")


def _check_rows(index: int, count: int, tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if not info.shape or info.shape[0] != count:
            raise CheckpointError(
                f"{name} has shape {list(info.shape)}, but layer {index} has {count} experts by config.json. "
                "The checkpoint and its config.json are not of one model."
            )


def _check_weights(
    architecture: Architecture,
    experts: Mapping[int, Mapping[str, str]],
    fused: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
) -> None:
    """A matrix per expert and projection; in a fused tensor one of equal height for each projection stacked in it."""
    for of in experts.values():
        for tensor in architecture.projections.values():
            _check_matrix(tensors[of[tensor]], axes=2, stacked=1)
    for name, stacked in architecture.fused.items():
        if name in fused:
            _check_matrix(tensors[fused[name]], axes=3, stacked=len(stacked))


def _check_matrix(info: TensorInfo, *, axes: int, stacked: int) -> None:
    if len(info.shape) != axes or not info.parameters or info.shape[-2] % stacked:
        raise CheckpointError(
            f"{info.name} has shape {list(info.shape)}, where a weight with {axes} axes"
            + (f", the second made of {stacked} equal parts," if stacked > 1 else "")
            + " should be. Download the checkpoint again."
        )


def _sizes(
    index: int,
    count: int,
    tensors: Mapping[str, TensorInfo],
    experts: Mapping[int, Mapping[str, str]],
    fused: Mapping[str, str],
    router: tuple[str, ...],
) -> ExpertSizes:
    """Sizes of one expert, which must be those of every expert of the layer."""

    def describe(expert: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {tensor: (tensors[name].dtype, tensors[name].shape) for tensor, name in experts[expert].items()}

    for expert in experts:
        if describe(expert) != describe(0):
            raise CheckpointError(
                f"Experts 0 and {expert} of layer {index} differ in shape or dtype. moeits compares equal experts only."
            )
    own = [tensors[name] for name in experts[0].values()] if experts else [tensors[name] for name in fused.values()]
    share = 1 if experts else count
    rows = [tensors[name] for name in router]
    return ExpertSizes(
        parameters=sum(info.parameters for info in own) // share,
        nbytes=sum(info.nbytes for info in own) // share,
        router_parameters=sum(info.parameters for info in rows) // count,
        router_nbytes=sum(info.nbytes for info in rows) // count,
    )
