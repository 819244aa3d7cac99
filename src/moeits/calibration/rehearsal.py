"""What running a model's layers on tokens would take: one layer done for real, on few tokens and on some more."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from moeits.calibration.activations import Activations
from moeits.calibration.layered import LayeredModel
from moeits.calibration.routing import Sums, reconstruction, tried_on
from moeits.calibration.stream import Stream
from moeits.checkpoint.reading import Checkpoint
from moeits.foreseen import Work, line_through, sizes_up_to, timed, trying

TRIED_TOKENS = (1024, 4096)
TRIED_SELECTION = (256, 1024)
_ROOM = 1 << 30


@torch.no_grad()
def watching(
    checkpoint: Checkpoint, tokens: int, *, window: int, selection: int, device: str, passes: int = 1
) -> tuple[Work, ...]:
    """The work of watching the experts of every layer on so many tokens, and of trying who can go on `selection`."""
    with trying():
        return _watching(checkpoint, tokens, window, selection, device, passes)


def _watching(
    checkpoint: Checkpoint, tokens: int, window: int, selection: int, device: str, passes: int
) -> tuple[Work, ...]:
    models: list[LayeredModel] = []
    opening = timed(lambda: models.append(LayeredModel(checkpoint, device=device)))
    (model,) = models
    layers, first = len(model), min(model.layout.layers)
    moe = len(model.layout.layers)
    with TemporaryDirectory() as beside, Activations(most_bytes=_ROOM, beside=Path(beside)) as room:
        reading = timed(lambda: _read(model, first))
        with model.layer(first) as live, live.watched() as seen:
            assert live.moe is not None
            experts = live.moe.num_experts

            def watch(count: int) -> None:
                stream = Stream.begin(model, _some(model, count, window), room)
                sums = Sums(experts, sources=1)
                for part in stream.parts():
                    stream.hidden[part] = stream.run(live, first, part).cpu()
                    sums.take(live, seen, torch.zeros(stream.tokens[part].numel(), dtype=torch.long))

            def choose(count: int) -> None:
                stream = Stream.begin(model, _some(model, count, window), room)
                stream.run(live, first, slice(None))
                reconstruction(tried_on(live, seen))

            per_layer = line_through(watch, sizes_up_to(tokens, TRIED_TOKENS))
            trying = line_through(choose, sizes_up_to(selection, TRIED_SELECTION)) if selection else None
    work = [
        Work(what="reading what is in no layer", times=1, seconds_each=opening),
        Work(what="reading a layer", times=layers, seconds_each=reading),
        Work(what=f"{tokens:,} tokens through a layer", times=passes * layers, seconds_each=per_layer.at(tokens)),
    ]
    if trying is not None:
        work.append(Work(what="trying who can go from a layer", times=moe, seconds_each=trying.at(selection)))
    return tuple(work)


def _read(model: LayeredModel, layer: int) -> None:
    with model.layer(layer):
        pass


def _some(model: LayeredModel, count: int, window: int) -> np.ndarray:
    """About so many random tokens, in windows."""
    shape = (max(1, count // window), min(window, max(1, count)))
    return np.random.default_rng(0).integers(0, model.vocabulary, shape)


def held(tokens: Sequence[int], hidden: int) -> int:
    """Bytes of hidden states in float32, of streams of so many tokens."""
    return 4 * hidden * sum(tokens)
