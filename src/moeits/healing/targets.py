"""Which weights a recipe asks for: found by name in the checkpoint's headers, before any model is built.

A target is one adapted module of the stock model. What its adapter must look like follows from the checkpoint alone,
so that it can be compared with what training really holds (`adapters.check_trainable`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.errors import HealingError
from moeits.experts.families import Architecture, architecture_of
from moeits.experts.finding import by_layer
from moeits.experts.layer import MoELayer
from moeits.experts.layout import MoELayout

# Modules of a decoder layer that belong to attention. Layers of some families have something else in its place.
_ATTENTION = "self_attn."
_LAYER = re.compile(r"^.*?\.\d+\.")
"""What a name begins with, up to the number of its layer."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One module that gets LoRA, and the tensors of the checkpoint that its adapter is merged into."""

    group: str
    """router, experts, attention or shared_experts"""
    module: str
    """Name of the module in the stock model."""
    weights: Mapping[str, tuple[int, int, int]]
    """Name of the weight -> (how many are stacked, rows, columns). `weight` for a module with one of its own, else the
    projections of the routed experts: gate, up, down."""
    tensor: str | None
    """Name of the checkpoint's tensor, where it is one; None for routed experts."""
    layer: int | None
    """Number of the decoder layer of a router or of routed experts, else None."""


def targets_of(checkpoint: Checkpoint, moe: MoELayout, groups: tuple[str, ...]) -> tuple[Target, ...]:
    """The targets that `groups` name. Raises HealingError if a group matches nothing in this checkpoint, or if its
    family is not one that can be healed."""
    if not can_be_healed(moe.architecture):
        raise HealingError(
            f"{moe.architecture.model_type} can be scored and pruned, but not healed by moeits yet: transformers holds "
            "its experts in another form than the one that is adapted. Heal it with a trainer of your own."
        )
    found = {
        "router": [_router(moe.architecture, checkpoint, layer) for layer in moe.layers.values()],
        "experts": [_experts(moe, checkpoint, layer) for layer in moe.layers.values()],
        "shared_experts": [
            target for layer in moe.layers.values() for target in _shared(moe.architecture, checkpoint, layer)
        ],
        "attention": list(_attention(moe.architecture, checkpoint)),
    }
    for group in groups:
        if not found[group]:
            there = ", ".join(name for name, targets in found.items() if targets)
            raise HealingError(
                f"--targets {group} matches nothing: this {moe.architecture.model_type} checkpoint has no such "
                f"weights. It has {there}."
            )
    return tuple(target for group in dict.fromkeys(groups) for target in found[group])


def can_be_healed(architecture: Architecture) -> bool:
    """Whether transformers holds the experts of a family as they are adapted here: `experts.gate_up_proj` (E, 2 I, H)
    and `experts.down_proj` (E, H, I), without biases, taken from files that have them one by one."""
    usual = {"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)}
    return bool(architecture.projections) and architecture.fused == usual and architecture.stacking == "rows"


# transformers opens them under other names than peft writes: peft finds no adapter of the experts in its own files.
_WITHOUT_ADAPTER = frozenset({"deepseek_ocr2", "unlimited_ocr"})


def check_adapter(architecture: Architecture, *, kept: bool) -> None:
    """peft can read back an adapter of the family, if it is kept. Raises HealingError."""
    if kept and architecture.model_type in _WITHOUT_ADAPTER:
        raise HealingError(
            f"{architecture.model_type} has no --keep-adapter: peft does not find its experts in the adapter again. "
            "Leave it out; the healed checkpoint has all of it merged."
        )


def without_attention(checkpoint: Checkpoint, groups: tuple[str, ...]) -> list[str]:
    """A note on the layers that `attention` does not reach, since they mix tokens in another way; else none."""
    if "attention" not in groups:
        return []
    layers = by_layer(architecture_of(checkpoint.config), checkpoint.tensors)
    reached = [layer for layer, tensors in layers.items() if any(map(_is_attention, tensors.values()))]
    if len(layers) == len(reached):
        return []
    return [
        f"--targets attention reaches {len(reached)} of {len(layers)} layers: the others mix tokens in another way, "
        "which is not trained."
    ]


def block_in_memory(architecture: Architecture, layer: int) -> str:
    """Name of the MoE block in the stock model, with its trailing dot."""
    return architecture.blocks[-1].format(layer=layer) + "."


def router_in_memory(architecture: Architecture, layer: int) -> str:
    """Name of the router in the stock model."""
    name = architecture.router_in_memory or architecture.router[0]
    return block_in_memory(architecture, layer) + name.removesuffix(".weight")


def _router(architecture: Architecture, checkpoint: Checkpoint, layer: MoELayer) -> Target:
    tensor = next(iter(layer.router))
    rows, columns = checkpoint.tensors[tensor].shape
    return Target(
        group="router",
        module=router_in_memory(architecture, layer.index),
        weights={"weight": (1, rows, columns)},
        tensor=tensor,
        layer=layer.index,
    )


def _experts(moe: MoELayout, checkpoint: Checkpoint, layer: MoELayer) -> Target:
    fused = next(iter(moe.architecture.fused))
    return Target(
        group="experts",
        module=block_in_memory(moe.architecture, layer.index) + fused.rpartition(".")[0],
        weights={
            projection: (layer.num_experts, *_expert_shape(moe.architecture, checkpoint, layer, projection))
            for projection in moe.architecture.projection_names
        },
        tensor=None,
        layer=layer.index,
    )


def _expert_shape(
    architecture: Architecture, checkpoint: Checkpoint, layer: MoELayer, projection: str
) -> tuple[int, int]:
    """(rows, columns) of one projection of one expert."""
    if layer.experts:
        rows, columns = checkpoint.tensors[layer.experts[0][architecture.projections[projection]]].shape
        return rows, columns
    name, stacked = next((n, stacked) for n, stacked in architecture.fused.items() if projection in stacked)
    _, rows, columns = checkpoint.tensors[layer.fused[name]].shape
    return rows // len(stacked), columns


def _shared(architecture: Architecture, checkpoint: Checkpoint, layer: MoELayer) -> Iterator[Target]:
    """The projections of shared experts; their gate decides how much of them is used and is none of them."""
    for tensor in layer.shared:
        inside = tensor.removeprefix(layer.block).removesuffix(".weight")
        if inside.startswith(architecture.shared) and tensor.endswith(".weight"):
            module = block_in_memory(architecture, layer.index) + inside
            yield _linear("shared_experts", module, checkpoint, tensor)


def _attention(architecture: Architecture, checkpoint: Checkpoint) -> Iterator[Target]:
    """Of the model with the experts alone: a vision tower may have attention too."""
    in_memory = architecture.blocks[-1].partition("{layer}")[0]
    for layer, tensors in by_layer(architecture, checkpoint.tensors).items():
        for tensor, info in tensors.items():
            if _is_attention(info):
                inside = _LAYER.sub("", tensor, count=1).removesuffix(".weight")
                yield _linear("attention", f"{in_memory}{layer}.{inside}", checkpoint, tensor)


def _is_attention(info: TensorInfo) -> bool:
    return f".{_ATTENTION}" in info.name and info.name.endswith(".weight") and len(info.shape) == 2


def _linear(group: str, module: str, checkpoint: Checkpoint, tensor: str) -> Target:
    rows, columns = checkpoint.tensors[tensor].shape
    return Target(group=group, module=module, weights={"weight": (1, rows, columns)}, tensor=tensor, layer=None)
