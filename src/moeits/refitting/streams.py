"""Layer after layer with two streams: the unpruned model's, and that of the pruned one as it is refitted."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moeits.calibration.activations import Activations, batches
from moeits.calibration.layered import LayeredModel, LiveLayer
from moeits.calibration.stream import Stream
from moeits.calibration.texts import Windows
from moeits.progress import Progress
from moeits.refitting.down_tensors import SHARED
from moeits.refitting.features import Routed, down_of
from moeits.refitting.layer import LayerData, LayerFit, refit_layer
from moeits.refitting.memory import room_bytes
from moeits.refitting.shared import SharedExpert


def _put(live: LiveLayer, expert: int, down: torch.Tensor) -> None:
    if expert == SHARED:
        shared = SharedExpert.of(live)
        assert shared is not None
        shared.weight.copy_(down)
    else:
        live.experts.down_proj[expert] = down.T if live.experts.is_transposed else down


# Of one model at a time: 256 MiB.
_MOST_LOGITS = 1 << 26


def _flat(stream: torch.Tensor) -> torch.Tensor:
    return stream.reshape(-1, stream.shape[-1])


Store = Callable[[int, int, torch.Tensor], torch.Tensor]
"""(layer, expert, down projection (H, I) float32) -> the same as it will be read back from the checkpoint."""


class Refit:
    """A refit under way."""

    def __init__(
        self,
        parent: LayeredModel,
        pruned: LayeredModel,
        windows: Windows,
        room: Activations,
        *,
        drifts: Sequence[float],
        largest_ridge: float,
        smallest_ridge: float,
        shared: bool,
        beside: Path,
        most_bytes: int,
    ) -> None:
        self.windows, self.drifts = windows, drifts
        self.largest_ridge, self.smallest_ridge = largest_ridge, smallest_ridge
        self.shared, self.beside, self.most_bytes, self._room = shared, beside, most_bytes, room
        self.first = Stream.begin(parent, windows.all, room)
        self.second = Stream.begin(pruned, windows.all, room)
        self.untouched = Stream.begin(pruned, windows.held_out, room)
        shape = (*windows.all.shape, parent.hidden_size)
        self.out, self.at_hand, self.back, self.inputs = (room.array(*shape) for _ in range(4))
        self._into_shared = torch.empty(0)

    @torch.no_grad()
    def layer(
        self, i: int, store: Store | None = None, *, known: Mapping[int, torch.Tensor] | None = None
    ) -> LayerFit | None:
        """Run layer `i` in all streams, refitted if experts of it are gone; or with `known`, of an earlier run."""
        parent, pruned = self.first.model, self.second.model
        pruned_away = i in parent.layout.layers and (
            parent.layout.layers[i].num_experts != pruned.layout.layers[i].num_experts
        )
        with parent.layer(i) as whole, pruned.layer(i) as live:
            for part in self.untouched.parts():
                self.untouched.hidden[part] = self.untouched.run(live, i, part).cpu()
            for part in self.first.parts():
                self.out[part] = self.first.run(whole, i, part).cpu()
            fit = self._fit(i, whole, live, store) if pruned_away and store is not None else None
            for expert, down in (known or {}).items():
                _put(live, expert, down)
            for part in self.second.parts():
                self.second.hidden[part] = self.second.run(live, i, part).cpu()
            self.first.hidden, self.out = self.out, self.first.hidden
        return fit

    def _fit(self, i: int, whole: LiveLayer, live: LiveLayer, store: Store) -> LayerFit:
        shared = SharedExpert.of(live) if self.shared else None
        seen = self._watch(i, whole, live, shared)
        cut = self.windows.fit.size
        end = cut + self.windows.choosing.size
        of_one = torch.zeros(cut, dtype=torch.long)
        of_several = torch.from_numpy(np.repeat(self.windows.choosing_sources, self.windows.choosing.shape[1]))
        data = [self._data(seen, slice(0, cut), of_one), self._data(seen, slice(cut, end), of_several)]

        def put(expert: int, down: torch.Tensor) -> None:
            new = down.T.contiguous()
            if expert == SHARED and shared is not None:
                new += shared.weight.cpu()
            _put(live, expert, store(i, expert, new))

        width, hidden = down_of(live.experts, 0).shape
        width = max(width, shared.width if shared is not None else 0)
        most_bytes = room_bytes(self.most_bytes, width=width, hidden=hidden, tokens=cut)
        with Activations(most_bytes=most_bytes, beside=self.beside) as room:
            return refit_layer(
                i,
                live.experts,
                *data,
                drifts=self.drifts,
                largest_ridge=self.largest_ridge,
                smallest_ridge=self.smallest_ridge,
                room=room,
                put=put,
            )

    def _watch(self, i: int, whole: LiveLayer, live: LiveLayer, shared: SharedExpert | None) -> Routed:
        """What goes into the pruned layer's experts for all tokens; the targets go into their streams."""
        chosen, gates, weight = [], [], []
        with ExitStack() as stack:
            seen = stack.enter_context(live.watched())
            if shared is not None:
                stack.enter_context(shared.watched())
            for part in self.second.parts():
                with_all = self.second.run(whole, i, part).cpu()
                without = self.second.run(live, i, part).cpu()
                base = without - seen.routed.reshape(without.shape).cpu()
                self.at_hand[part], self.back[part] = with_all - base, self.out[part] - base
                self.inputs[part] = seen.hidden.reshape(without.shape).cpu()
                chosen.append(seen.chosen.cpu())
                gates.append(seen.gates.cpu())
                weight.append(1 / self.out[part].flatten(0, 1).square().mean(1).clamp(min=1e-12))
                if shared is not None and not self._take_shared(shared, seen.routed, part):
                    shared = None
        return Routed(
            hidden=_flat(self.inputs),
            chosen=torch.cat(chosen),
            gates=torch.cat(gates),
            weight=torch.cat(weight),
            shared=None if shared is None else _flat(self._into_shared),
        )

    def _take_shared(self, shared: SharedExpert, routed: torch.Tensor, part: slice) -> bool:
        """Keep the features of the shared expert for a batch; False if there are none."""
        features = shared.features(routed)
        if features is None:
            return False
        shape = (*self.windows.all.shape, shared.width)
        if self._into_shared.shape != shape:
            self._into_shared = self._room.array(*shape)
        self._into_shared[part] = features.reshape(-1, *shape[1:]).cpu()
        return True

    def _data(self, seen: Routed, some: slice, source: torch.Tensor) -> LayerData:
        routed = Routed(
            hidden=seen.hidden[some],
            chosen=seen.chosen[some],
            gates=seen.gates[some],
            weight=seen.weight[some],
            shared=None if seen.shared is None else seen.shared[some],
        )
        return LayerData(routed=routed, at_hand=_flat(self.at_hand)[some], back=_flat(self.back)[some], source=source)

    @torch.no_grad()
    def losses(self, progress: Progress) -> dict[str, Any]:
        """Nats per token of each window that judges, unpruned, pruned, refitted; how near the two are to the unpruned;
        and the nats of the windows that chose, with the source of each window."""
        tokens, rows = self.untouched.tokens, _Losses()
        parts = list(batches(*tokens.shape, tokens=min(2048, _MOST_LOGITS // self.first.model.vocabulary)))
        for done, part in enumerate(parts, 1):
            later = slice(part.start + len(self.windows.fit), part.stop + len(self.windows.fit))
            hidden = {
                "unpruned": (self.first.model, self.first.hidden[later]),
                "pruned": (self.second.model, self.untouched.hidden[part]),
                "refitted": (self.second.model, self.second.hidden[later]),
            }
            rows.take(tokens[part], hidden)
            progress("held-out loss", done, len(parts))
        cut = len(self.windows.choosing)
        return {
            "nats": {name: values[cut:] for name, values in rows.nats.items()},
            "kl_to_parent": {name: values[cut:] for name, values in rows.near.items()},
            "same_first_choice": {name: values[cut:] for name, values in rows.same.items()},
            "nats_of_choosing": {name: values[:cut] for name, values in rows.nats.items()},
            "sources": {"nats": self.windows.judged_by, "nats_of_choosing": self.windows.chosen_by},
        }


class _Losses:
    """Window by window, what three models say of it."""

    def __init__(self) -> None:
        self.nats: dict[str, list[float]] = {name: [] for name in ("unpruned", "pruned", "refitted")}
        self.near: dict[str, list[float]] = {"pruned": [], "refitted": []}
        self.same: dict[str, list[float]] = {"pruned": [], "refitted": []}

    def take(self, tokens: torch.Tensor, hidden: Mapping[str, tuple[LayeredModel, torch.Tensor]]) -> None:
        """Hidden states after the last layer, the unpruned model's first."""
        reference: torch.Tensor | None = None
        for name, (model, states) in hidden.items():
            logits = model.logits(tokens, states.to(model.device))[:, :-1].float().log_softmax(-1)
            target = tokens[:, 1:, None].to(model.device)
            self.nats[name] += (-logits.gather(2, target)[..., 0].mean(1)).tolist()
            if reference is None:
                reference = logits
            else:
                self.near[name] += ((reference.exp() * (reference - logits)).sum(-1).mean(1)).tolist()
                self.same[name] += ((reference.argmax(-1) == logits.argmax(-1)).float().mean(1)).tolist()
