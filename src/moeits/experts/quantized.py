"""Whether the weights of a checkpoint are numbers, or codes of a quantizer."""

import re

from moeits.checkpoint.reading import FLOATS, Checkpoint, TensorInfo
from moeits.experts.codecs import quantization_of
from moeits.printable import printable

# Tables, positions and masks that models have beside their weights are of these too.
_INTEGERS = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_NEVER_CODES = ("BOOL", "I64")
_OF_A_WEIGHT = re.compile(r"(weight|_proj|_blocks|_scales|qzeros|packed)[^.]*$")

BF16_COPY = "a copy in bf16 (converted, where its makers publish none)"


def quantized_as(checkpoint: Checkpoint) -> str | None:
    """How its weights are kept, for a message; None where they are numbers."""
    odd = {info.dtype for info in checkpoint.tensors.values() if _has_codes(info)}
    quantization = quantization_of(checkpoint.config)
    if not odd and not quantization:
        return None
    method = quantization.get("quant_method")
    by = [printable(method, 40)] if isinstance(method, str) and method else []
    return ", ".join([*by, *(printable(dtype, 20) for dtype in sorted(odd))]) or "by its config.json"


def _has_codes(info: TensorInfo) -> bool:
    """Whether a tensor holds codes of weights: small floats always do, integers where they are named as weights are."""
    if info.parameters < 2 or info.dtype in (*FLOATS, *_NEVER_CODES):
        return False
    return info.dtype not in _INTEGERS or _OF_A_WEIGHT.search(info.name) is not None
