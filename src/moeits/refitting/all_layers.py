"""A refit from the first layer to the last, and the losses at its end."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint.reading import Checkpoint
from moeits.progress import Progress
from moeits.refitting.files import FittedLayers
from moeits.refitting.settings import Fitting
from moeits.runtime import need


def fit_all(
    whole: Checkpoint,
    pruned: Checkpoint,
    windows: Any,
    fitting: Fitting,
    fitted: FittedLayers,
    beside: Path,
    most_bytes: int,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """All layers, in order; gives the losses at the end of the streams."""
    torch = need("torch", extra="load")
    from moeits.calibration.activations import Activations
    from moeits.calibration.layered import LayeredModel
    from moeits.refitting.streams import Refit

    with ExitStack() as stack:
        room = stack.enter_context(Activations(most_bytes=most_bytes // 2, beside=beside))
        models = [LayeredModel(checkpoint, device=device) for checkpoint in (whole, pruned)]
        run = Refit(
            models[0],
            models[1],
            windows,
            room,
            drifts=fitting.drifts,
            largest_ridge=fitting.largest_ridge,
            smallest_ridge=fitting.smallest_ridge,
            shared=fitting.shared,
            beside=beside,
            most_bytes=most_bytes,
        )
        count = len(models[0])
        for i in range(count):
            known = fitted.get(i)
            if known is not None:
                run.layer(i, known={e: torch.from_numpy(w) for e, w in known[1].items()})
            else:
                _fit_one(run, i, fitted, (whole, pruned))
            progress("refitting layers", i + 1, count)
        return run.losses(progress)


def _fit_one(run: Any, i: int, fitted: FittedLayers, checkpoints: Iterable[Checkpoint]) -> None:
    """Fit one layer, and keep what comes of it if the checkpoints are still what they were."""
    torch = need("torch", extra="load")
    weights: dict[int, np.ndarray] = {}

    def store(layer: int, expert: int, weight: Any) -> Any:
        weights[expert] = fitted.rounded(layer, expert, weight.cpu().numpy())
        return torch.from_numpy(weights[expert])

    fit = run.layer(i, store)
    for checkpoint in checkpoints:
        checkpoint.check_unchanged()
    if fit is not None:
        fitted.put(i, fit.facts(), weights)
