"""What all plug-ins ask: whether a config has unequal layers, whose a function is, whether a version was tried."""

import copy
import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from moeits.errors import CheckpointError

logger = logging.getLogger(__name__)

MARK = "of_moeits"
"""An attribute of the functions that were put in the place of a server's."""


def is_unequal(config: Any) -> bool:
    """Whether a config of transformers is that of a checkpoint of moeits with unequal layers."""
    ours = getattr(config, "moeits", None)
    return isinstance(ours, dict) and (hasattr(config, "num_experts_per_layer") or "per_layer_config" in ours)


def config_of_layer(config: Any, text_config: Any, layer: int) -> Any:
    """The config of one decoder layer of such a checkpoint; a layer that keeps all its experts has the common one.

    transformers makes it where the config has its `per_layer_config`, which only a model of text alone can have. In one
    that takes pictures too, the block `moeits` has it, and `text_config` is the part that the layers are built from.
    """
    if getattr(text_config, "is_heterogeneous", False):
        return text_config.per_layer_config[layer]
    single = copy.copy(text_config)
    for key, value in config.moeits["per_layer_config"].get(str(layer), {}).items():
        setattr(single, key, value)
    return single


def refuse_factors(config: Any, server: str) -> None:
    """No server has a class for experts that are stored as factors. Raises CheckpointError."""
    if (getattr(config, "moeits", None) or {}).get("factors"):
        raise CheckpointError(
            f"The experts of this checkpoint are stored as factors, which {server} has no class for. Prune its source "
            "by its plan.json without --factors."
        )


def is_ours(function: Callable[..., Any]) -> bool:
    """Whether a function is of a server as a plug-in left it, perhaps wrapped by others since."""
    return hasattr(function, MARK)


def in_place_of(stock: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function look like the one of a server that it calls, with our mark."""

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = functools.wraps(stock)(function)
        setattr(wrapped, MARK, True)
        return wrapped

    return marked


def is_within(version: str, first: tuple[int, ...], first_untried: tuple[int, ...]) -> bool:
    """Whether a version is one of those from the first on, before the first that was not tried."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(first)])
    return first <= numbers < first_untried


def spelt(first: tuple[int, ...], first_untried: tuple[int, ...]) -> str:
    """Such a range as packages write it."""
    return ",".join(sign + ".".join(map(str, each)) for sign, each in ((">=", first), ("<", first_untried)))


def warn_of_version(server: str, version: str, first: tuple[int, ...], first_untried: tuple[int, ...]) -> None:
    """Tell whoever starts a server that its plug-in was written against others."""
    if not is_within(version, first, first_untried):
        known = spelt(first, first_untried)
        logger.warning(
            "moeits' plug-in for unequal layers was written against %s %s; this is %s.", server, known, version
        )
