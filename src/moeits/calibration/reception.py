"""Which of the sets that were found for three layers in a row go together: MoE-I2's KT-Reception Field.

Every combination is sent through the model's own decoder layers, with attention, norms and what is between the MoE
layers, and the one is taken whose output is nearest to the unpruned model's. That fits a model of which one layer is in
memory: after the first layer of a field there are as many streams as candidates, after the second their product, and of
the third only the error is kept. So a field takes 3 + 9 + 27 runs of a layer, and room for twelve streams.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from moeits.calibration.activations import Activations, batches
from moeits.calibration.genetic import Members
from moeits.calibration.layered import LiveLayer
from moeits.calibration.routing import Router
from moeits.calibration.stream import Stream

LAYERS = 3
"""MoE layers of a field."""


class ReceptionField:
    """The choice for each MoE layer, made as the first `windows` of an unpruned stream go through the model.

    Each field begins from the unpruned stream; the last one may have fewer layers.
    """

    def __init__(self, stream: Stream, windows: int, layers: Sequence[int], room: Activations) -> None:
        self.chosen: dict[int, Members] = {}
        self._stream, self._room = stream, room
        self._shape = (windows, *stream.hidden.shape[1:])
        self._last = {each for at, each in enumerate(layers) if at % LAYERS == LAYERS - 1 or each == layers[-1]}
        self._own: list[int] = []
        self._streams: dict[tuple[Members, ...], torch.Tensor] = {}
        self._spare: list[torch.Tensor] = []

    def before(self, live: LiveLayer) -> None:
        """Called before the unpruned stream goes through a layer: a field may begin here."""
        if live.moe is not None and not self._streams:
            self._streams[()] = self._copy_of(self._stream.hidden[: self._shape[0]])

    def after(self, live: LiveLayer, i: int, candidates: Sequence[Members]) -> None:
        """Called when it is through, with the candidates of an MoE layer."""
        if live.moe is None:
            for hidden in self._streams.values():
                self._run(live, i, hidden, into=hidden)
            return
        self._own.append(i)
        if i in self._last:
            self._close(live, i, candidates)
            return
        grown: dict[tuple[Members, ...], torch.Tensor] = {}
        for before, hidden in self._streams.items():
            for members in candidates:
                grown[*before, members] = self._free()
                with only(live, members):
                    self._run(live, i, hidden, into=grown[*before, members])
            self._spare.append(hidden)
        self._streams = grown

    def _close(self, live: LiveLayer, i: int, candidates: Sequence[Members]) -> None:
        """The last layer of a field: of all combinations that of least error, the first of several."""
        errors: dict[tuple[Members, ...], float] = {}
        wanted = self._stream.hidden
        for before, hidden in self._streams.items():
            for members in candidates:
                with only(live, members):
                    errors[*before, members] = sum(
                        float((self._stream.run(live, i, part, hidden).cpu() - wanted[part]).double().square().sum())
                        for part in self._parts()
                    )
            self._spare.append(hidden)
        best = min(errors, key=lambda members: errors[members])
        self.chosen.update(zip(self._own, best, strict=True))
        self._own, self._streams = [], {}

    def _run(self, live: LiveLayer, i: int, hidden: torch.Tensor, *, into: torch.Tensor) -> None:
        for part in self._parts():
            into[part] = self._stream.run(live, i, part, hidden).cpu()

    def _parts(self) -> Iterator[slice]:
        return batches(self._shape[0], self._shape[1])

    def _free(self) -> torch.Tensor:
        return self._spare.pop() if self._spare else self._room.array(*self._shape)

    def _copy_of(self, hidden: torch.Tensor) -> torch.Tensor:
        free = self._free()
        free[:] = hidden
        return free


@contextmanager
def only(live: LiveLayer, members: Members) -> Iterator[None]:
    """Within the block the layer chooses among these experts alone, as it will when the others are gone."""
    assert live.moe is not None
    experts = live.moe.num_experts
    # Copied before there is a hook on the router, which a copy would have as well.
    asked = Router(live.router, torch.zeros(0, experts))

    def choose_again(_: object, args: tuple[Any, ...], kwargs: dict[str, Any], out: tuple[Any, ...]) -> tuple[Any, ...]:
        logits, gates, _, *others = out
        again = asked.given(logits.float().reshape(-1, experts), (*args, *kwargs.values())[1:])
        new, chosen = again.chosen(members)
        return (logits, new.to(gates), chosen.to(logits.device), *others)

    handle = live.router.register_forward_hook(choose_again, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
