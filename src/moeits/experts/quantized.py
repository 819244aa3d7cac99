"""Whether the weights of a checkpoint are numbers, or codes of a quantizer."""

from moeits.checkpoint.reading import FLOATS, Checkpoint
from moeits.experts.codecs import quantization_of
from moeits.printable import printable

# Tables and masks that models have beside their weights.
_NO_WEIGHTS = ("I64", "BOOL")

BF16_COPY = "a copy in bf16 (converted, where its makers publish none)"


def quantized_as(checkpoint: Checkpoint) -> str | None:
    """How its weights are kept, for a message; None where they are numbers."""
    odd = {info.dtype for info in checkpoint.tensors.values() if info.parameters > 1} - {*FLOATS, *_NO_WEIGHTS}
    quantization = quantization_of(checkpoint.config)
    if not odd and not quantization:
        return None
    method = quantization.get("quant_method")
    by = [printable(method, 40)] if isinstance(method, str) and method else []
    return ", ".join([*by, *(printable(dtype, 20) for dtype in sorted(odd))]) or "by its config.json"
