"""Names of what only calibrating finds of experts, where it is more than a number of each."""

# The signals that are a vector of each expert: (E, H), and (E, I) of what it hands to its down projection.
MEAN_OUTPUT = "mean-output"
INPUT_NORMS = ("input-norm", "neuron-norm", "gated-input-norm", "gated-neuron-norm")
VECTORS = (MEAN_OUTPUT, *INPUT_NORMS)

# The widths to which experts are rounded one by one, to see what that changes.
ROUNDING_BITS = (1, 2, 3, 4)


def rounding_error(bits: int) -> str:
    """The name of what a layer's output changes by if one expert is rounded to so many bits."""
    return f"rounding-error-{bits}"
