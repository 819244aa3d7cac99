"""Whether an entry can describe a family at all: what the types of its keys do not say, known before any checkpoint."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeits.experts.families import Architecture


def check_entry(architecture: "Architecture") -> None:
    """Names have the places of numbers that they need, and numbers are ones that can be. Raises ValueError."""
    _check_blocks(architecture)
    _check_projections(architecture)
    _check_router(architecture)
    if architecture.least < 1:
        raise ValueError(f"least_experts is {architecture.least}, and should be 1 or more")
    for name in filter(None, (architecture.auto_class, architecture.model_class)):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,199}", name):
            raise ValueError(f"{name!r:.60} is not the name of a class")


def _check_blocks(architecture: "Architecture") -> None:
    for block in architecture.blocks:
        if block.count("{layer}") != 1 or _has_braces(block.replace("{layer}", "")):
            raise ValueError(f"the block {block!r:.60} should have {{layer}} in it once, and no other braces")
    if not architecture.blocks or not architecture.router or not architecture.num_experts_keys:
        raise ValueError("blocks, router and num_experts_keys should have at least one name each")
    if not architecture.within:
        raise ValueError('within should have at least one name; [""] is the whole block')


def _check_projections(architecture: "Architecture") -> None:
    expert, rest = architecture.expert, architecture.expert.replace("{expert}", "").replace("{tensor}", "")
    if (
        expert.count("{expert}") != 1
        or expert.count("{tensor}") != 1
        or expert.index("{expert}") > expert.index("{tensor}")
        or _has_braces(rest)
    ):
        raise ValueError(
            f"expert {expert!r:.60} should have {{expert}} in it once, and then {{tensor}} once, and no other braces"
        )
    stacked = architecture.projection_names
    if not all(architecture.fused.values()) or not stacked or len({*stacked}) != len(stacked):
        raise ValueError("fused should name every projection once, and one or more at each tensor")
    if architecture.projections and {*architecture.projections} != {*stacked}:
        raise ValueError(f"projections are {', '.join(architecture.projections)}, in fused {', '.join(stacked)}")


def _check_router(architecture: "Architecture") -> None:
    """What is said of single tensors of the router is of those that it has."""
    for key, of in (("expert_axis", architecture.expert_axis), ("extra_rows", architecture.extra_rows)):
        for name, number in of.items():
            if name not in (*architecture.router, architecture.router_in_memory):
                raise ValueError(f"{key} is of {name!r:.60}, which is not among the names of router")
            if isinstance(number, int) and number < 0:
                raise ValueError(f"{key} of {name!r:.60} is {number}, and should be 0 or more")


def _has_braces(text: str) -> bool:
    return bool({*"{}"} & {*text})
