"""The scoring of a layer as a job for any process that can open the same weights: a function of what it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.streamed import Streamed
from moeits.engines.threads import Threads
from moeits.errors import CheckpointError, SettingError
from moeits.experts.layout import MoELayout
from moeits.scoring.layers import LayerScorer
from moeits.scoring.wanted import Wanted
from moeits.signals import PairSignal
from moeits.signals.settings import Scoring
from moeits.version import __version__


@dataclass(frozen=True, kw_only=True)
class LayerJob:
    """What to score of any layer; called with one, it gives the arrays of its signals by name."""

    model: str
    """A folder that every machine sees, or a hub id."""
    opening: Opening
    told_by: str
    scoring: Scoring
    threads: int
    memory_bytes: int
    moeits: str = __version__

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, opening: Opening, scoring: Scoring, *, threads: int, memory_bytes: int
    ) -> "LayerJob":
        """A job on a checkpoint that this process has opened."""
        model, streams = str(checkpoint.folder.absolute()), isinstance(checkpoint, Streamed)
        if isinstance(checkpoint, Streamed):
            model, _, commit = checkpoint.source.partition("@")
        return cls(
            model=model,
            opening=Opening(
                revision=commit if isinstance(checkpoint, Streamed) else None,
                stream=streams,
                architecture=opening.architecture and opening.architecture.absolute(),
            ),
            told_by=checkpoint.told_by,
            scoring=scoring,
            threads=threads,
            memory_bytes=memory_bytes,
        )

    def __call__(self, layer: int) -> dict[str, np.ndarray]:
        checkpoint = _opened(self)
        layout = MoELayout.of(checkpoint)
        with Threads(self.threads) as engine:
            scorer = LayerScorer(checkpoint=checkpoint, layout=layout, engine=engine, memory_bytes=self.memory_bytes)
            arrays = score_layer(scorer, Wanted.of(self.scoring, layout), layer, lambda _: None)
        checkpoint.check_unchanged()
        return arrays


def score_layer(
    scorer: LayerScorer, wanted: Wanted, layer: int, advance: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """The arrays of all signals of a layer, by name."""
    arrays: dict[str, np.ndarray] = {}
    if wanted.redundancy is not None:
        pairs = scorer.compare(wanted.redundancy, layer, advance)
        arrays = pairs.named("redundancy") | ({} if pairs.floor is None else {"floor": pairs.floor})
    for signal in wanted.beside:
        if isinstance(signal, PairSignal):
            arrays |= scorer.compare(signal, layer, advance).named(signal.name)
        else:
            arrays[signal.name] = scorer.measure(signal, layer, advance)
    return arrays


@lru_cache(maxsize=1)
def _opened(job: LayerJob) -> Checkpoint:
    """Opened once by each process. Raises SettingError, CheckpointError where it is not what the job is about."""
    if job.moeits != __version__:
        raise SettingError(f"The cluster has moeits {__version__}, and this machine {job.moeits}. Install one version.")
    checkpoint = job.opening.open(job.model)
    if checkpoint.told_by != job.told_by:
        raise CheckpointError(
            f"A machine of the cluster sees other weights at {job.model}. Give all of them one disk, or --stream."
        )
    return checkpoint
