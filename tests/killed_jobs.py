"""Jobs that go wrong in a worker of a cluster, which imports no more than this and moeits."""

import os
import signal
from pathlib import Path

import numpy as np

from moeits.scoring.jobs import LayerJob


def killing_its_worker(given: tuple[LayerJob, Path], layer: int) -> dict[str, np.ndarray]:
    """Score a layer, in a worker that is killed the first time that it is asked for this one."""
    job, marks = given
    mark = marks / str(layer)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job(layer)
