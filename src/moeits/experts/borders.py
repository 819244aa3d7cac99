"""Where the tensors of a quantizer can be cut between experts, and where they cannot.

Scales of a router's rows go with the rows, and one number for all experts stays as it is. What holds numbers of several
experts in one (words along the experts' axis, blocks of scales over several rows, a flat pile of codes) is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moeits.checkpoint.reading import FLOATS, TensorInfo
from moeits.errors import CheckpointError
from moeits.experts.families import Architecture
from moeits.experts.stored import parts_of

_SCALES = ("scale", "scale_inv", "scale_2", "input_scale")
_PACKED = ("qweight", "qzeros", "packed", "absmax", "blocks")
_TEXT = ".quant_state."


@dataclass(frozen=True)
class OfRouter:
    """What a quantizer keeps beside a router's weight, by names within the block."""

    rows: tuple[str, ...] = ()
    """With a row for each expert."""
    whole: tuple[str, ...] = ()
    """One number for all of them."""


def is_text(tensor: str) -> bool:
    """Whether a tensor is text that a quantizer wrote about one weight, as long as its numbers are in digits."""
    return _TEXT in tensor


def of_router(weight: str, block: str, inside: Sequence[str], tensors: Mapping[str, TensorInfo]) -> OfRouter:
    """The scales of a router's weight. Raises CheckpointError where they are not those of single experts."""
    parts = parts_of(weight, {name: name for name in inside})
    rows, whole = [], []
    for part, name in parts.items():
        info = tensors[block + name]
        if part in _PACKED:
            raise _packed_together(info.name)
        if part in _SCALES and info.parameters == 1:
            whole.append(name)
        elif part in _SCALES and info.shape[:1] == tensors[block + weight].shape[:1]:
            rows.append(name)
        elif part in _SCALES:
            raise _packed_together(info.name)
    return OfRouter(tuple(rows), tuple(whole))


def check_router_is_whole(architecture: Architecture, index: int, tensors: Mapping[str, TensorInfo]) -> None:
    """A router that is there only in a quantizer's words is not missing, but packed. Raises CheckpointError."""
    for block in architecture.blocks:
        stem = f"{block.format(layer=index)}.{architecture.router[0]}"
        parts = parts_of(stem, {name: name for name in tensors})
        if packed := next((parts[part] for part in _PACKED if part in parts), None):
            raise _packed_together(packed)


def of_all(beside: Sequence[TensorInfo], fused: Sequence[TensorInfo]) -> list[str]:
    """Which of the tensors beside fused experts are one number for all of them.

    Of a single expert one number is its own, as a scale of each expert is; as a scale of all it is the same number.
    """
    single = any(len(info.shape) > 1 and info.shape[0] == 1 for info in (*fused, *beside))
    return [info.name for info in beside if info.shape == () or (info.shape == (1,) and not single)]


def check_fused(fused: Mapping[str, str], count: int, tensors: Mapping[str, TensorInfo]) -> None:
    """Quantized fused experts lie one after the other on the first axis. Raises CheckpointError."""
    infos = [tensors[name] for name in fused.values()]
    if all(info.dtype in FLOATS for info in infos):
        return
    for info in infos:
        if info.shape[:1] != (count,):
            raise _packed_together(info.name, f" (shape {list(info.shape)} for {count} experts)")


def _packed_together(name: str, why: str = "") -> CheckpointError:
    return CheckpointError(
        f"{name} has numbers of several experts in one{why}: what was quantized across experts cannot be cut at their "
        "borders. Prune a release that keeps the experts and the rows of the router apart, in bf16 or expert by expert."
    )
