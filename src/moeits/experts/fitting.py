"""What does not fit is refused: tensors of no role or of two, and tensors that are not what config.json promises."""

from collections.abc import Collection, Mapping

from moeits.checkpoint.reading import TensorInfo
from moeits.errors import CheckpointError
from moeits.experts.borders import check_fused, is_text
from moeits.experts.families import Architecture
from moeits.experts.finding import belongs_to, block_name
from moeits.experts.layer import BlockTensors

Tensors = Mapping[str, TensorInfo]


def check_all_layers(count: int, by_layer: Collection[int]) -> None:
    """There are tensors of each decoder layer."""
    missing = next((i for i in range(count) if i not in by_layer), None)
    if missing is not None:
        raise CheckpointError(
            f"config.json promises {count} layers, but there are no tensors of layer {missing}. The checkpoint is "
            "incomplete, or its config.json is of another one."
        )


def check_no_router(architecture: Architecture, index: int, tensors: Tensors) -> None:
    """A layer without experts by config.json has no router."""
    if block_name(architecture, index, tensors):
        raise CheckpointError(
            f"Layer {index} has a router, but no experts by config.json. The checkpoint and its config.json are not of "
            "one model."
        )


def check_roles(architecture: Architecture, block: BlockTensors, tensors: Tensors) -> None:
    """Every tensor of a MoE block has exactly one role: its fate follows from it."""
    roles = {
        "a routed expert": {name for of in block.experts.values() for name in of.values()},
        "all routed experts": set(block.fused.values()),
        "the router": set(block.router),
        "what is shared": set(block.shared),
    }
    for name in (name for name in tensors if name.startswith(block.within)):
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


def check_experts(architecture: Architecture, index: int, count: int, block: BlockTensors, tensors: Tensors) -> None:
    """`count` whole experts, equal in shapes and dtypes, in one of the two layouts; a router as wide."""
    _check_one_layout(architecture, index, block)
    if block.experts:
        _check_no_padding(architecture, index, count, block)
        _check_each(architecture, index, count, block.experts)
    _check_expert_axes(index, count, block.router, tensors, block.extra)
    check_fused(block.fused, count, tensors)  # after the router, which tells better that config.json is of another one
    _check_expert_axes(index, count, dict.fromkeys(block.fused.values(), 0), tensors, block.extra)
    _check_weights(architecture, block, tensors)
    _check_alike(index, block.experts, tensors)


def _check_one_layout(architecture: Architecture, index: int, block: BlockTensors) -> None:
    """Experts one by one, or fused; if so, all of them."""
    experts, fused = block.experts, block.fused
    whole = all(any(belongs_to(name, own) for name in fused) for own in architecture.fused)
    if bool(experts) == bool(fused) or (fused and not whole):
        wanted = " and ".join(architecture.fused)
        raise CheckpointError(
            f"Layer {index} should have its experts either one by one or fused as {wanted}: under {block.block} there "
            f"are {len(experts)} experts and {len(fused)} fused tensors. Download the checkpoint again."
        )


def _check_no_padding(architecture: Architecture, index: int, count: int, block: BlockTensors) -> None:
    """No weights of experts that compute nothing, as transformers adds them behind the others' when it saves some."""
    others = max(block.extra.values(), default=0)
    if others and sorted(block.experts) == [*range(count + others)]:
        raise CheckpointError(
            f"Layer {index} has weights of {count + others} experts, of which the last {others} compute nothing by "
            f"config.json: transformers adds such weights when it saves a {architecture.model_type} model. Prune the "
            "release as it lies on the hub, which has none, or leave these tensors out."
        )


def _check_each(architecture: Architecture, index: int, count: int, experts: Mapping[int, Mapping[str, str]]) -> None:
    """Experts 0..count-1, with all their projections."""
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


def _check_expert_axes(
    index: int, count: int, axes: Mapping[str, int], tensors: Tensors, extras: Mapping[str, int]
) -> None:
    for name, axis in axes.items():
        shape, extra = tensors[name].shape, extras.get(name, 0)
        if len(shape) > axis and shape[axis] > count + extra and extra:
            raise CheckpointError(
                f"{name} has {shape[axis]} entries, but layer {index} has {count} experts and {extra} entries for "
                "others by config.json: it is not clear what the rest is for. Compare config.json with that of the "
                "original model."
            )
        if len(shape) <= axis or shape[axis] != count + extra:
            raise CheckpointError(
                f"{name} has shape {list(shape)}, but layer {index} has {count} experts by config.json. "
                "The checkpoint and its config.json are not of one model."
            )


def _check_weights(architecture: Architecture, block: BlockTensors, tensors: Tensors) -> None:
    """A matrix per expert and projection; in a fused tensor one of equal size for each projection stacked in it."""
    for of in block.experts.values():
        for tensor in architecture.projections.values():
            if tensor in of:
                _check_matrix(tensors[of[tensor]], axes=2, stacked=1, along=0)
    along = 1 if architecture.stacking.endswith("rows") else 2
    for name, stacked in architecture.fused.items():
        if name in block.fused:
            _check_matrix(tensors[block.fused[name]], axes=3, stacked=len(stacked), along=along)


def _check_matrix(info: TensorInfo, *, axes: int, stacked: int, along: int) -> None:
    if len(info.shape) != axes or not info.parameters or info.shape[along] % stacked:
        raise CheckpointError(
            f"{info.name} has shape {list(info.shape)}, where a weight with {axes} axes"
            + (f", the {('second', 'third')[along - 1]} made of {stacked} equal parts," if stacked > 1 else "")
            + " should be. Download the checkpoint again."
        )


def _check_alike(index: int, experts: Mapping[int, Mapping[str, str]], tensors: Tensors) -> None:
    def describe(expert: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        own = {tensor: tensors[name] for tensor, name in experts[expert].items()}
        return {tensor: (info.dtype, () if is_text(tensor) else info.shape) for tensor, info in own.items()}

    for expert in experts:
        if describe(expert) != describe(0):
            raise CheckpointError(
                f"Experts 0 and {expert} of layer {index} differ in shape or dtype. moeits compares equal experts only."
            )
