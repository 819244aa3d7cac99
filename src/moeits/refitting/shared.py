"""The shared expert beside the routed ones: every token passes it, so it can carry much of what is gone.

Its down projection is fitted together with theirs, as one more expert. What is fitted is the change of it, as the
target is what the routed part should give.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from moeits.calibration.layered import LiveLayer
from moeits.refitting.down_tensors import shared_down_name

# What the block adds to its routed part is a multiple of what the projection gives, up to rounding; else it is not
# where the layer adds it, as behind a norm.
_ALIKE = 1e-3


class SharedExpert:
    """A layer's shared expert at work."""

    def __init__(self, block: torch.nn.Module, down: torch.nn.Linear) -> None:
        self._block, self._down = block, down
        self._inputs = self._given = self._out = torch.empty(0)

    @classmethod
    def of(cls, live: LiveLayer) -> "SharedExpert | None":
        """None where the layer has none whose down projection is a matrix of its own."""
        name = shared_down_name(live.moe) if live.moe is not None else None
        if name is None or live.block is None or live.moe is None:
            return None
        try:
            down = live.block.get_submodule(name.removeprefix(live.moe.block).removesuffix(".weight"))
        except AttributeError:
            return None
        return cls(live.block, down) if isinstance(down, torch.nn.Linear) else None

    @property
    def width(self) -> int:
        """I of it."""
        return self._down.in_features

    @property
    def weight(self) -> torch.Tensor:
        """(H, I): the down projection."""
        return self._down.weight

    @contextmanager
    def watched(self) -> Iterator[None]:
        """At every run within, `features` are those of the last batch."""
        handles = [self._down.register_forward_hook(self._see_down), self._block.register_forward_hook(self._see_block)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see_down(self, module: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:  # noqa: ARG002
        self._inputs, self._given = args[0].flatten(0, -2), out.flatten(0, -2)

    def _see_block(self, module: Any, args: tuple[Any, ...], out: Any) -> None:  # noqa: ARG002
        self._out = (out[0] if isinstance(out, tuple) else out).flatten(0, -2)

    def features(self, routed: torch.Tensor) -> torch.Tensor | None:
        """(T, I): what goes into the down projection, times the gate that the block puts on what comes out.

        `routed` is (T, H), what the routed experts gave. None if the block adds something else to it.
        """
        given, added = self._given, self._out - routed
        if given.shape != added.shape:
            return None
        gate = (added * given).sum(1) / given.square().sum(1).clamp(min=1e-30)
        odd = (added - gate[:, None] * given).square().sum(dtype=torch.float64)
        if odd > _ALIKE**2 * added.square().sum(dtype=torch.float64):
            return None
        return self._inputs * gate[:, None]
