"""What a refit holds, known from shapes alone.

`--memory` is for what grows with the tokens: half for the streams through the layers, half for the regression of a
layer. What does not fit is on disk, but for what is worked on at the moment: so much a half must have.
Beside it are the weights that are run: embeddings and heads of both models, and one layer of each, in float32.
"""

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CalibrationError
from moeits.experts.families import architecture_of
from moeits.experts.finding import by_layer
from moeits.experts.layout import MoELayout
from moeits.refitting.down_tensors import SHARED, down_shape, shared_down_name
from moeits.sizes import format_size

# Rows of tokens, and rows and columns of squares, that are worked on at a time.
ROWS = BLOCK = 512
# An interpreter's own needs vary by more.
_NOT_COUNTED = 64 << 20
_FLOAT = 4


def least_bytes(width: int, hidden: int, tokens: int) -> int:
    """Of the regression of one layer, (I, H) each expert, beside all that may be on disk.

    A fitted weight is there three and a half times on its way into its layer and to disk, the columns of a square's
    block six times, with the copies that a triangular solution makes.
    """
    weights = 4 * width * hidden
    rows = ROWS * (5 * width + 5 * hidden)
    squares = 6 * BLOCK * max(min(tokens, 32768), width)
    return _FLOAT * (weights + rows + squares)


def check_memory(checkpoint: Checkpoint, tokens: int, most_bytes: int) -> None:
    """The regression of every layer fits half of `--memory`. Raises CalibrationError with what would do."""
    layout = MoELayout.of(checkpoint)
    for i, moe in layout.layers.items():
        hidden, width = down_shape(checkpoint, layout, i, 0)
        if shared_down_name(moe) is not None:
            width = max(width, down_shape(checkpoint, layout, i, SHARED)[1])
        least = least_bytes(width, hidden, tokens)
        if least > max(most_bytes // 2, _NOT_COUNTED):
            raise CalibrationError(
                f"--memory {format_size(most_bytes)} is too little to fit one expert of layer {i} ({width} x {hidden}) "
                f"on {tokens} tokens, which takes {format_size(least)} of half of it. Give {format_size(2 * least)} "
                "or more."
            )


def room_bytes(most_bytes: int, *, width: int, hidden: int, tokens: int) -> int:
    """What the arrays of a layer's regression may take of half of `--memory`."""
    return max(0, most_bytes // 2 - least_bytes(width, hidden, tokens))


def needed_bytes(checkpoint: Checkpoint, tokens: int, most_bytes: int, *, refit: bool) -> int:
    """About what of `--memory` is used, on so many tokens: hidden states, and of a refit the regression of a layer.

    A refit has three streams of hidden states and five more arrays of their size.
    """
    layout = MoELayout.of(checkpoint)
    hidden, width = down_shape(checkpoint, layout, next(iter(layout.layers)), 0)
    states = _FLOAT * hidden * tokens * (8 if refit else 1)
    return min(most_bytes, states + (least_bytes(width, hidden, tokens) if refit else 0))


def held_bytes(checkpoint: Checkpoint, most_bytes: int, *, refit: bool) -> int:
    """About what is there while a checkpoint is calibrated layer by layer, or what is left of it is refitted.

    In float32: what is in no layer and the largest layer, of one model or of two, and the fitted down projections of
    that layer; and `--memory`. Of several models in one that is more than what text goes through.
    """
    layers = by_layer(architecture_of(checkpoint.config), checkpoint.tensors)
    each = [sum(info.parameters for info in tensors.values()) for tensors in layers.values()]
    largest = _FLOAT * max(each, default=0)
    rest = _FLOAT * (sum(info.parameters for info in checkpoint.tensors.values()) - sum(each))
    return most_bytes + (2 * rest + 7 * largest // 3 if refit else rest + largest)
