"""Names of what only calibrating finds of experts, where it is more than a number of each."""

from collections.abc import Mapping
from typing import Any

# The signals that are a vector of each expert: (E, H), and (E, I) of what it hands to its down projection.
MEAN_OUTPUT = "mean-output"
INPUT_NORMS = ("input-norm", "neuron-norm", "gated-input-norm", "gated-neuron-norm")
VECTORS = (MEAN_OUTPUT, *INPUT_NORMS)

# The widths to which experts are rounded one by one, to see what that changes.
ROUNDING_BITS = (1, 2, 3, 4)


def rounding_error(bits: int) -> str:
    """The name of what a layer's output changes by if one expert is rounded to so many bits."""
    return f"rounding-error-{bits}"


SEARCHED = "moe-i2-genetic"
"""(E, E): row n has the n + 1 experts that a genetic search keeps, and nothing where it was not asked for so many."""

SPECIALISTS = "mop"
"""(E, E): row n has the n + 1 experts that MoP keeps."""

OF_TRIALS = ("reconstruction", "reconstruction-error", "drop-error", "naee", "naee-error", SEARCHED, SPECIALISTS)
"""What is found by trying out who can go, on some of the tokens."""

ALSO = {
    MEAN_OUTPUT: "mean_outputs",
    SPECIALISTS: "specialists",
    **dict.fromkeys(INPUT_NORMS, "input_norms"),
    **dict.fromkeys(map(rounding_error, ROUNDING_BITS), "rounding_errors"),
}
"""Signal -> the setting of `calibrate` that asks for it and takes no number; the others are found by itself."""


def flag_of(signal: str) -> str:
    """How calibrating is asked for a signal that it does not find by itself; else empty."""
    if signal == SEARCHED:
        return "--search-sets COUNT"
    return "--" + ALSO[signal].replace("_", "-") if signal in ALSO else ""


def seed_of_search(settings: Mapping[str, Any]) -> int | None:
    """By which seed sets were searched for, as the settings of evidence or plan say; None if they do not."""
    search = settings.get("search")
    seed = search.get("seed") if isinstance(search, Mapping) else None
    return seed if type(seed) is int else None
