"""How many parameters the tensors of a checkpoint stand for: a word of packed integers is eight, a scale is none."""

import re
from collections.abc import Mapping

from moeits.checkpoint.reading import Checkpoint, TensorInfo
from moeits.errors import UnscorableWeight
from moeits.experts.codecs import Part, codec_of
from moeits.experts.quantized import quantized_as

# A linear module's tensors: its weight, what is named after it, or a quantizer's own names.
_OF_MODULE = re.compile(
    r"(.+)\.(?:(weight)|weight[_.](.+)|(qweight|qzeros|scales?|g_idx|input_scale|input_global_scale))"
)
# Fused experts have no module: what belongs to a tensor is named after it.
_OF_TENSOR = re.compile(r"(.+_proj)(?:_(blocks|scales|scale_inv|scale))?")


def parameters_of(checkpoint: Checkpoint) -> dict[str, int]:
    """Tensor -> the numbers of weights in it. Of a quantized weight all are counted at one of its tensors.

    Where no codec knows how a weight is packed, its tensors' own entries are counted.
    """
    counted = {name: info.parameters for name, info in checkpoint.tensors.items()}
    if quantized_as(checkpoint) is None:
        return counted
    for parts in _weights(checkpoint.tensors).values():
        entries = _entries(parts, checkpoint)
        if entries is not None:
            counted |= dict.fromkeys((info.name for info in parts.values()), 0)
            counted[_lead(parts).name] = entries
    return counted


def _weights(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Stem -> the parts of its weight, by the names of codecs, of weights that are kept in several tensors."""
    weights: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if found := _OF_MODULE.fullmatch(name) or _OF_TENSOR.fullmatch(name):
            part = next((part for part in found.groups()[1:] if part), "weight")
            weights.setdefault(found[1], {})[part] = info
    return {stem: parts for stem, parts in weights.items() if len(parts) > 1}


def _lead(parts: Mapping[str, TensorInfo]) -> TensorInfo:
    """The part with the numbers themselves: the one that most axes, or else most bytes, go to."""
    return max(parts.values(), key=lambda info: (len(info.shape), info.nbytes))


def _entries(parts: Mapping[str, TensorInfo], checkpoint: Checkpoint) -> int | None:
    """Numbers of a weight, of all experts that are fused in it; None where no codec holds it."""
    shape = _lead(parts).shape
    fused = len(shape) == (4 if "blocks" in parts else 3) and shape[0] > 0
    of = shape[0] if fused else 1
    headers = {
        part: Part(dtype=info.dtype, shape=info.shape[1:] if fused else info.shape, nbytes=info.nbytes // of)
        for part, info in parts.items()
    }
    codec = codec_of(headers)
    try:
        return None if codec is None or codec.name == "plain" else of * codec.size(headers, checkpoint.config).entries
    except UnscorableWeight:
        return None
