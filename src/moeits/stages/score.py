"""Checkpoint x signals -> redundancy of every pair of experts, layer by layer (paper, eqs. 4-11), and what was asked
for beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.engines.threads import Threads
from moeits.evidence import SHARD, Evidence, error_of
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.files import check_file_output
from moeits.finished import FinishedParts, Workplace, workplace
from moeits.progress import Progress, silent
from moeits.scoring.layers import LayerScorer
from moeits.scoring.work_shards import Sharing, WorkShard
from moeits.settings import with_settings
from moeits.signals import EstimatedSignal, ExpertSignal, PairSignal
from moeits.signals.settings import Resources, Scoring
from moeits.sizes import parse_size


@with_settings
def score(
    model: str | Path | Checkpoint,
    *,
    output: str | Path | None = None,
    scoring: Scoring,
    resources: Resources,
    opening: Opening,
    sharing: Sharing,
    fresh: bool = False,
    progress: Progress = silent,
) -> Evidence:
    """Measure how redundant the experts of each MoE layer are: R_ij = sum_m w_m NMI(W_m of i, W_m of j).

    Paper: eqs. 4-11; method.md, section 1. Nothing is run, only weights are read. `preset` sets the projection weights
    (`paper`: the mean; `authors-code`: the authors' program), `projection_weights` overrides them. `signals` are kept
    beside the redundancy. `memory` bounds the weights held at once, encoded and as they are read, with the tables of
    the threads. With `output` the evidence is also written there, and a killed run goes on where it was unless
    `fresh`. `shard` is a share of the layers, which `gather` puts together. `verify` says by what the weights are told
    from others. The scores do not depend on `threads`, `memory`, `shard`, sharding or layout.

    Raises CheckpointError if the checkpoint is broken or has weights that cannot be scored, SettingError for an
    argument that is out of range, OutputError if the evidence cannot be written.
    """
    checkpoint = opening.open(model, check=architecture_of)
    output = None if output is None else Path(output)
    if output is not None:
        check_file_output(output, inputs=[checkpoint.folder])
    with workplace(output, fresh=fresh, progress=progress) as place:
        evidence = scored(checkpoint, place, scoring, resources, opening, progress, sharing.work_shard())
        if output is not None:
            evidence.save(output)
    return evidence


def scored(
    checkpoint: Checkpoint,
    place: Workplace,
    scoring: Scoring,
    resources: Resources,
    opening: Opening,
    progress: Progress,
    shard: WorkShard | None = None,
) -> Evidence:
    """The evidence of a checkpoint, or of a shard of it; finished layers are kept in `place`. Raises what `score`
    raises."""
    layout = MoELayout.of(checkpoint)
    chosen = tuple(layout.layers) if shard is None else shard.of_layers(tuple(layout.layers))
    layout.check_scorable(checkpoint)
    wanted = _Wanted.of(scoring, layout)
    memory_bytes = parse_size(resources.memory, "--memory")
    finished = place.parts(
        stage="score",
        fingerprint=checkpoint.told_by,
        shards=checkpoint.stamps,
        estimator=scoring.estimator,
        **wanted.settings,
    )
    with Threads(resources.threads) as engine:
        scorer = LayerScorer(checkpoint=checkpoint, layout=layout, engine=engine, memory_bytes=memory_bytes)
        layers = _all_layers(scorer, chosen, wanted, finished, progress)
    return Evidence(
        inventory=Inventory.of(checkpoint, layout, coverage=opening.coverage(checkpoint, progress)),
        estimator=scoring.estimator,
        settings=wanted.settings | ({} if shard is None else {SHARD: shard.facts()}),
        redundancy={layer: values["redundancy"] for layer, values in layers.items()},
        floor={layer: values["floor"] for layer, values in layers.items() if "floor" in values},
        signals={name: {layer: values[name] for layer, values in layers.items()} for name in wanted.names_beside()},
    )


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The signals that a scoring is asked for, set up for one model."""

    redundancy: PairSignal
    beside: tuple[PairSignal | ExpertSignal, ...]
    diagonal: str

    @classmethod
    def of(cls, scoring: Scoring, layout: MoELayout) -> "_Wanted":
        model = (tuple(layout.architecture.projection_names), layout.architecture.model_type)
        return cls(
            redundancy=scoring.redundancy().for_model(*model),
            beside=tuple(signal.for_model(*model) for signal in scoring.beside()),
            diagonal=scoring.diagonal,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of all signals, defaults included, as the evidence keeps them."""
        settings = {**self.redundancy.settings, "diagonal": self.diagonal}
        for signal in self.beside:
            settings |= signal.settings
        return settings | ({"signals": [signal.name for signal in self.beside]} if self.beside else {})

    def names_beside(self) -> list[str]:
        """What the evidence of a layer holds beside redundancy and floor."""
        errors = [error_of("redundancy")] if isinstance(self.redundancy, EstimatedSignal) else []
        for signal in self.beside:
            errors += [error_of(signal.name)] if isinstance(signal, EstimatedSignal) else []
        return [*(signal.name for signal in self.beside), *errors]

    def are_whole(self, arrays: Mapping[str, np.ndarray], experts: int) -> bool:
        """Whether these arrays can be the signals of a layer, all of them: what lies on a disk may be damaged."""
        pairs, single = (experts, experts), (experts,)
        of_experts = {each.name for each in self.beside if isinstance(each, ExpertSignal)}
        shapes = {name: single if name in of_experts else pairs for name in self.names_beside()}
        shapes |= {"redundancy": pairs} | ({"floor": pairs} if "floor" in arrays else {})
        return {name: values.shape for name, values in arrays.items()} == shapes and all(
            values.dtype == np.float64
            and np.isfinite(values).all()
            and (values.ndim == 1 or (np.array_equal(values, values.T) and not values.diagonal().any()))
            for values in arrays.values()
        )


def _all_layers(
    scorer: LayerScorer, chosen: Sequence[int], wanted: _Wanted, finished: FinishedParts, progress: Progress
) -> Mapping[int, Mapping[str, np.ndarray]]:
    """Layer -> the arrays of its signals by name."""
    signals = (wanted.redundancy, *wanted.beside)
    steps = {layer: sum(scorer.steps(signal, layer) for signal in signals) for layer in chosen}
    total, before, layers = sum(steps.values()), 0, {}
    for layer in chosen:
        done = before

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress("scoring pairs of experts", done, total)

        kept = finished.arrays(f"layer-{layer}")
        whole = kept is not None and wanted.are_whole(kept, scorer.layout.layers[layer].num_experts)
        layers[layer] = kept if kept and whole else _one_layer(scorer, wanted, layer, advance)
        if layers[layer] is not kept:
            finished.keep_arrays(f"layer-{layer}", layers[layer])
        before += steps[layer]
        progress("scoring pairs of experts", before, total)
    scorer.checkpoint.check_unchanged()
    return layers


def _one_layer(
    scorer: LayerScorer, wanted: _Wanted, layer: int, advance: Callable[[int], None]
) -> dict[str, np.ndarray]:
    pairs = scorer.compare(wanted.redundancy, layer, advance)
    arrays = pairs.named("redundancy") | ({} if pairs.floor is None else {"floor": pairs.floor})
    for signal in wanted.beside:
        if isinstance(signal, PairSignal):
            arrays |= scorer.compare(signal, layer, advance).named(signal.name)
        else:
            arrays[signal.name] = scorer.measure(signal, layer, advance)
    return arrays
