"""What a refit would take: one layer of it done for real, on few tokens and on twice as many."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from moeits.calibration.activations import Activations
from moeits.calibration.layered import LayeredModel
from moeits.calibration.settings import BUNDLED, Tokens
from moeits.calibration.texts import windows_of
from moeits.checkpoint.reading import Checkpoint
from moeits.foreseen import Work, line_through, sizes_up_to, timed, trying
from moeits.progress import silent
from moeits.refitting.settings import Fitting
from moeits.refitting.streams import Refit

TRIED_TOKENS = (512, 1024)
_LEAST = 256
_MOST_BYTES = 1 << 30


@torch.no_grad()
def refitting(parent: Checkpoint, pruned: Checkpoint, texts: Tokens, fitting: Fitting, device: str) -> tuple[Work, ...]:
    """The work of a refit, whichever text it is on: it is timed on the bundled one."""
    with trying():
        return _refitting(parent, pruned, texts, fitting, device)


def _refitting(
    parent: Checkpoint, pruned: Checkpoint, texts: Tokens, fitting: Fitting, device: str
) -> tuple[Work, ...]:
    models: list[LayeredModel] = []
    opening = timed(lambda: models.extend(LayeredModel(each, device=device) for each in (parent, pruned)))
    whole, left = models
    gone = [i for i, moe in whole.layout.layers.items() if left.layout.layers[i].num_experts != moe.num_experts]
    ratio = texts.held_out / texts.tokens

    def fit(count: int) -> None:
        some = replace(texts, data=BUNDLED, tokens=count, held_out=max(_LEAST, int(ratio * count)))
        windows = windows_of(parent, some, silent)
        with TemporaryDirectory() as beside, Activations(most_bytes=_MOST_BYTES, beside=Path(beside)) as room:
            run = Refit(
                whole,
                left,
                windows,
                room,
                drifts=fitting.drifts,
                largest_ridge=fitting.largest_ridge,
                smallest_ridge=fitting.smallest_ridge,
                shared=fitting.shared,
                beside=Path(beside),
                most_bytes=_MOST_BYTES,
            )
            run.layer(gone[0], lambda layer, expert, weight: weight)  # noqa: ARG005

    def judge(count: int) -> None:
        tokens = torch.zeros((1, count), dtype=torch.long)
        whole.logits(tokens, torch.zeros((1, count, whole.hidden_size)))[:, :-1].float().log_softmax(-1)

    layer = line_through(fit, sizes_up_to(texts.tokens, TRIED_TOKENS))
    loss = line_through(judge, (min(texts.window, 128), min(texts.window, 256)))
    judging = int(np.ceil(texts.held_out / texts.window))
    return (
        Work(what="reading what is in no layer, of both models", times=1, seconds_each=opening),
        Work(what=f"{texts.tokens:,} tokens fitted in a layer", times=len(gone), seconds_each=layer.at(texts.tokens)),
        Work(what="held-out loss of a window", times=3 * judging, seconds_each=loss.at(texts.window)),
    )
