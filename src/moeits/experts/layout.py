"""Which tensors of one checkpoint belong to which expert: an architecture's names, found in the checkpoint's headers.

This is the one place where names become structure. Scoring reads experts through it, surgery gives every tensor its
fate by it, and what does not fit (a missing expert, a router of another width) is an error here, before anything else
is done.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.errors import CheckpointError, UnscorableWeight
from moeits.experts.architectures import Architecture, architecture_of
from moeits.experts.mtp import MtpLayers


@dataclass(frozen=True, kw_only=True)
class ExpertSizes:
    """What one routed expert of a layer weighs, its router row apart."""

    parameters: int
    nbytes: int
    router_parameters: int
    router_nbytes: int


@dataclass(frozen=True, kw_only=True)
class WeightSize:
    """What one projection of one expert weighs, and what it takes to read it."""

    entries: int
    itemsize: int
    read_bytes: int
    """Bytes held while it is read: where projections stand side by side, all of them are read at once."""


@dataclass(frozen=True, kw_only=True)
class MoELayer:
    """The experts of one decoder layer, by tensor name."""

    index: int
    num_experts: int
    top_k: int
    groups: int
    least_per_group: int
    """Experts that each group, or the layer if it has no groups, must keep."""
    block: str
    """Name of the MoE block, with its trailing dot."""
    experts: Mapping[int, Mapping[str, str]]
    """Expert -> what follows its number -> tensor name. Empty in a fused layer."""
    fused: Mapping[str, str]
    """Name in the architecture -> tensor name. Empty in a layer of per-expert tensors."""
    router: Mapping[str, int]
    """Tensor name -> the axis of the experts."""
    shared: tuple[str, ...]
    sizes: ExpertSizes

    @property
    def expert_axes(self) -> dict[str, int]:
        """Tensors that hold something of every expert -> the axis of the experts in them."""
        return {**self.router, **dict.fromkeys(self.fused.values(), 0)}


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
        by_layer = _by_layer(architecture, checkpoint.tensors)
        expected = _moe_layers(architecture, checkpoint.config, by_layer)
        layers = {i: _read_layer(architecture, checkpoint.config, i, by_layer[i]) for i in expected}
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


def per_layer_config(config: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """The settings in which single layers differ from the config: layer -> {key: value}. Empty for stock models.

    Raises CheckpointError.
    """
    try:
        own = (config.get("moeits") or {}).get("per_layer_config")
        written = config.get("per_layer_config") or own or {}
        return {int(layer): dict(values) for layer, values in written.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"per_layer_config in config.json should map layers to their settings ({error})."
        ) from None


def _by_layer(architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> dict[int, dict[str, TensorInfo]]:
    """The tensors of each decoder layer, which is wherever the architecture's blocks lie in."""
    before = {re.escape(block.split("{layer}")[0]) for block in architecture.blocks}
    layer_of = re.compile(rf"(?:{'|'.join(sorted(before))})(\d+)\.")
    by_layer: dict[int, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if found := layer_of.match(name):
            by_layer.setdefault(int(found[1]), {})[name] = info
    return by_layer


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
    """What a rule of the architecture says of a config. Raises CheckpointError where the config does not fit it."""
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
    router = {block + name: architecture.expert_axis.get(name, 0) for name in _routers(architecture) if name in inside}
    shared = tuple(block + name for name in inside if name.startswith(architecture.shared))
    _check_roles(
        architecture,
        [block + name for name in inside],
        {
            "a routed expert": {name for of in experts.values() for name in of.values()},
            "all routed experts": set(fused.values()),
            "the router": set(router),
            "what is shared": set(shared),
        },
    )
    count, top_k = _counts(architecture, config, index)
    _check_complete(architecture, block, index, count, experts, fused)
    _check_expert_axes(index, count, tensors, {**router, **dict.fromkeys(fused.values(), 0)})
    _check_weights(architecture, experts, fused, tensors)
    return MoELayer(
        index=index,
        num_experts=count,
        top_k=top_k,
        groups=_groups(architecture, config, count),
        least_per_group=_asked(architecture.least_per_group, config),
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
    weights = [name for name in (architecture.router[0], architecture.router_in_memory) if name]
    return next((block for block in blocks if any(block + name in tensors for name in weights)), None)


def _routers(architecture: Architecture) -> tuple[str, ...]:
    return tuple(name for name in (*architecture.router, architecture.router_in_memory) if name)


def _check_roles(architecture: Architecture, inside: Iterable[str], roles: Mapping[str, set[str]]) -> None:
    """Every tensor of a MoE block has exactly one role: its fate follows from it."""
    for name in inside:
        own = [role for role, names in roles.items() if name in names]
        if not own:
            raise CheckpointError(
                f"{name} is none of the tensors that a {architecture.model_type} MoE block has, so it is not clear "
                "whether it belongs to an expert. See docs/extending.md."
            )
        if len(own) > 1:
            raise CheckpointError(
                f"{name} would be of {' and of '.join(own)} by the description of {architecture.model_type}, so it is "
                "not clear what becomes of it. See docs/extending.md."
            )


def _is_fused(architecture: Architecture, name: str) -> bool:
    return any(_belongs_to(name, own) for own in architecture.fused)


def _belongs_to(name: str, own: str) -> bool:
    """A tensor itself, or what goes with it expert by expert: `_bias`, `_scale_inv`, `_blocks`, ..."""
    return name == own or name.startswith((own + "_", own + "."))


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
    own = per_layer_config(config).get(index, {})
    for values in (config, own):
        known = {key: values[key] for key in architecture.num_experts_keys if key in values}
        if any(value != values[next(iter(known))] for value in known.values()):
            raise CheckpointError(
                f"config.json gives the number of experts of layer {index} twice and not alike: "
                f"{', '.join(f'{key} {value}' for key, value in known.items())}. Leave the right one."
            )
    values = {**config, **own}
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
    whole = all(any(_belongs_to(name, own) for name in fused) for own in architecture.fused)
    if bool(experts) == bool(fused) or (fused and not whole):
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
            # A packed weight (`gate_proj.qweight`, `gate_proj.scales`) can be moved, so it only has to be there.
            if not any(name.startswith(tensor.removesuffix("weight")) for name in tensors):
                raise CheckpointError(f"Layer {index}, expert {expert} has no {tensor}. Download the checkpoint again.")


def _check_expert_axes(index: int, count: int, tensors: Mapping[str, TensorInfo], axis_of: Mapping[str, int]) -> None:
    for name, axis in axis_of.items():
        shape = tensors[name].shape
        if len(shape) <= axis or shape[axis] != count:
            raise CheckpointError(
                f"{name} has shape {list(shape)}, but layer {index} has {count} experts by config.json. "
                "The checkpoint and its config.json are not of one model."
            )


def _check_weights(
    architecture: Architecture,
    experts: Mapping[int, Mapping[str, str]],
    fused: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
) -> None:
    """A matrix per expert and projection; in a fused tensor one of equal size for each projection stacked in it."""
    for of in experts.values():
        for tensor in architecture.projections.values():
            if tensor in of:
                _check_matrix(tensors[of[tensor]], axes=2, stacked=1, along=0)
    along = 1 if architecture.stacking == "rows" else 2
    for name, stacked in architecture.fused.items():
        if name in fused:
            _check_matrix(tensors[fused[name]], axes=3, stacked=len(stacked), along=along)


def _check_matrix(info: TensorInfo, *, axes: int, stacked: int, along: int) -> None:
    if len(info.shape) != axes or not info.parameters or info.shape[along] % stacked:
        raise CheckpointError(
            f"{info.name} has shape {list(info.shape)}, where a weight with {axes} axes"
            + (f", the {('second', 'third')[along - 1]} made of {stacked} equal parts," if stacked > 1 else "")
            + " should be. Download the checkpoint again."
        )


def _sizes(
    index: int,
    count: int,
    tensors: Mapping[str, TensorInfo],
    experts: Mapping[int, Mapping[str, str]],
    fused: Mapping[str, str],
    router: Iterable[str],
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
