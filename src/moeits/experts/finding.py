"""The experts of one layer, found by the architecture's names in the headers of the checkpoint's tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from moeits.checkpoint.reading import TensorInfo
from moeits.errors import CheckpointError
from moeits.experts.borders import check_router_is_whole, of_all, of_router
from moeits.experts.families import Architecture
from moeits.experts.layer import BlockTensors


def by_layer(architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> dict[int, dict[str, TensorInfo]]:
    """The tensors of each decoder layer, which is wherever the architecture's blocks lie in."""
    before = {re.escape(block.split("{layer}")[0]) for block in architecture.blocks}
    layer_of = re.compile(rf"(?:{'|'.join(sorted(before))})(\d+)\.")
    found: dict[int, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if layer := layer_of.match(name):
            found.setdefault(int(layer[1]), {})[name] = info
    return found


def stacking(architecture: Architecture, layers: Mapping[int, Mapping[str, TensorInfo]]) -> Literal["rows", "columns"]:
    """How the fused experts of a checkpoint are stacked: the widths in the middle of an expert must be the same.

    Rows are (E, 2 I, H) and (E, H, I), columns (E, H, 2 I) and (E, I, H); which is which, I and 2 I tell apart.
    """
    first, last = (next(iter(architecture.fused)), [*architecture.fused][-1])
    for index, tensors in layers.items():
        block = block_name(architecture, index, tensors)
        found = [tensors[f"{block}{name}"].shape for name in (first, last) if f"{block}{name}" in tensors]
        if len(found) == 2 and all(len(shape) == 3 for shape in found):
            return "columns" if found[0][1] == found[1][2] else "rows"
    return "rows"


def block_tensors(
    architecture: Architecture, index: int, tensors: Mapping[str, TensorInfo], extra: Mapping[str, int]
) -> BlockTensors:
    """Which tensors of a layer are an expert's, the router's and shared. Raises CheckpointError if it has no router.

    `extra`: entries of the router's tensors that are not of a routed expert, by name in the architecture.
    """
    block = _only_block(architecture, index, tensors)
    within = tuple(block + part for part in architecture.within)
    inside = [name.removeprefix(block) for name in tensors if name.startswith(within)]
    weight, *others = architecture.router
    routers = [name for name in (weight, architecture.router_in_memory, *others) if name in inside]
    fused = [name for name in inside if any(belongs_to(name, own) for own in architecture.fused)]
    beside = [tensors[block + name] for name in fused if name not in architecture.fused]
    whole = of_all(beside, [tensors[block + name] for name in fused if name in architecture.fused])
    shared = [name for name in inside if name.startswith(architecture.shared)]
    scales = of_router(routers[0], block, [name for name in inside if name not in {*others, *shared}], tensors)
    return BlockTensors(
        block=block,
        within=within,
        experts=_per_expert(architecture, block, inside),
        fused={name: block + name for name in fused if block + name not in whole},
        router={block + name: architecture.expert_axis.get(name, 0) for name in (*routers, *scales.rows)},
        shared=(*(block + name for name in (*shared, *scales.whole)), *whole),
        extra={block + name: extra[name] for name in routers if extra.get(name)}
        | {block + name: extra[routers[0]] for name in scales.rows if extra.get(routers[0])},
    )


def block_name(architecture: Architecture, index: int, tensors: Mapping[str, TensorInfo]) -> str | None:
    """The MoE block of a layer: the name under which its router is found, if it is."""
    return next(iter(_block_names(architecture, index, tensors)), None)


def _only_block(architecture: Architecture, index: int, tensors: Mapping[str, TensorInfo]) -> str:
    """The MoE block of a layer with experts. Raises CheckpointError if there is none, or a second one."""
    found = _block_names(architecture, index, tensors)
    if len(found) > 1:
        one, other = (name.removesuffix(".") for name in found[:2])
        raise CheckpointError(
            f"Layer {index} has a MoE block under {one} and another under {other}, and config.json counts the experts "
            f"of one: the description of {architecture.model_type} should name the blocks of one model only."
        )
    if not found:
        check_router_is_whole(architecture, index, tensors)
        raise CheckpointError(
            f"Layer {index} should be a MoE layer by config.json, but there is no "
            f"{architecture.blocks[0].format(layer=index)}.{architecture.router[0]}. The checkpoint is incomplete, or "
            "its config.json is of another one."
        )
    return found[0]


def _block_names(architecture: Architecture, index: int, tensors: Mapping[str, TensorInfo]) -> list[str]:
    blocks = dict.fromkeys(block.format(layer=index) + "." for block in architecture.blocks)
    weights = [name for name in (architecture.router[0], architecture.router_in_memory) if name]
    return [block for block in blocks if any(block + name in tensors for name in weights)]


def has_table_of_tokens(architecture: Architecture, index: int, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the experts of a layer are chosen by a table of tokens, and not by its router."""
    block = block_name(architecture, index, tensors)
    return bool(architecture.table_of_tokens) and f"{block}{architecture.table_of_tokens}" in tensors


def belongs_to(name: str, own: str) -> bool:
    """A tensor itself, or what goes with it expert by expert: `_bias`, `_scale_inv`, `_blocks`, ..."""
    return name == own or name.startswith((own + "_", own + "."))


def _per_expert(architecture: Architecture, block: str, inside: Iterable[str]) -> dict[int, dict[str, str]]:
    before, after = architecture.expert.split("{expert}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after).replace(r"\{tensor\}", "(.+)"))
    experts: dict[int, dict[str, str]] = {}
    for name in inside:
        if found := pattern.fullmatch(name):
            experts.setdefault(int(found[1]), {})[found[2]] = block + name
    return dict(sorted(experts.items()))
