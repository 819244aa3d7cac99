"""Checkpoint x signals -> redundancy of every pair of experts, layer by layer (paper, eqs. 4-11), and what was asked
for beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.devices import checked_device
from moeits.engines.ray import RayCluster
from moeits.engines.threads import Threads
from moeits.evidence import SHARD, Evidence
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.files import check_file_output
from moeits.finished import FinishedParts, Workplace, workplace
from moeits.foreseen import Foreseen
from moeits.progress import Progress, silent
from moeits.scoring.jobs import LayerJob, score_layer
from moeits.scoring.layers import LayerScorer
from moeits.scoring.rehearsal import rehearse_scoring
from moeits.scoring.wanted import Wanted
from moeits.scoring.work_shards import Sharing
from moeits.settings import with_settings
from moeits.signals.on_device import on_device
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
    dry_run: bool = False,
    progress: Progress = silent,
) -> Evidence | Any:
    """Measure how redundant the experts of each MoE layer are: R_ij = sum_m w_m NMI(W_m of i, W_m of j).

    Paper: eqs. 4-11; method.md, section 1. Nothing is run, only weights are read. `preset` sets the projection weights
    (`paper`: the mean; `authors-code`: the authors' program), `projection_weights` overrides them. `signals` are kept
    beside the redundancy. `memory` bounds the weights held at once, encoded and as they are read, with the tables of
    the threads. With `output` the evidence is also written there, and a killed run goes on where it was unless `fresh`.
    `shard` is a share of the layers, which `gather` puts together; with `engine` ray a cluster scores layer by layer,
    each on `threads` cores within `memory`. `device` counts the pairs on a device of torch, which then holds the
    encoded weights too. `verify` says by what the weights are told from others. The scores do not depend on `threads`,
    `memory`, `shard`, `engine`, `device`, sharding or layout. With `dry_run` a `Foreseen` says what it would take, and
    nothing is done.

    Raises CheckpointError if the checkpoint is broken or has weights that cannot be scored, SettingError for an
    argument that is out of range, OutputError if the evidence cannot be written.
    """
    checkpoint = opening.open(model, check=architecture_of)
    output = None if output is None else Path(output)
    if output is not None:
        check_file_output(output, inputs=[checkpoint.folder])
    if dry_run:
        return _foreseen(checkpoint, output, scoring, resources, sharing)
    with workplace(output, fresh=fresh, progress=progress) as place:
        evidence = scored(checkpoint, place, scoring, resources, opening, progress, sharing)
        if output is not None:
            evidence.save(output)
    return evidence


def _foreseen(
    checkpoint: Checkpoint, output: Path | None, scoring: Scoring, resources: Resources, sharing: Sharing
) -> Foreseen:
    layout, shard = MoELayout.of(checkpoint), sharing.work_shard()
    layout.check_scorable(checkpoint)
    parse_size(resources.memory, "--memory")
    _wanted(scoring, layout, sharing)
    layers = tuple(layout.layers)
    share = 1.0 if shard is None else len(shard.of_layers(layers)) / len(layers)
    found = rehearse_scoring(checkpoint, scoring, resources, output=output, share=share)
    if sharing.engine != "ray" and sharing.device is None:
        return found
    where = "a cluster" if sharing.engine == "ray" else f"the device {sharing.device}"
    return replace(found, not_foreseen=(f"The seconds are those of this machine's threads, not of {where}.",))


def scored(
    checkpoint: Checkpoint,
    place: Workplace,
    scoring: Scoring,
    resources: Resources,
    opening: Opening,
    progress: Progress,
    sharing: Sharing = Sharing(),  # noqa: B008 - frozen
) -> Evidence:
    """The evidence of a checkpoint, or of a shard of it; finished layers are kept in `place`. Raises what `score`
    raises."""
    layout, shard = MoELayout.of(checkpoint), sharing.work_shard()
    chosen = tuple(layout.layers) if shard is None else shard.of_layers(tuple(layout.layers))
    layout.check_scorable(checkpoint)
    wanted = _wanted(scoring, layout, sharing)
    memory_bytes = parse_size(resources.memory, "--memory")
    finished = place.parts(
        stage="score",
        fingerprint=checkpoint.told_by,
        shards=checkpoint.stamps,
        estimator=scoring.estimator,
        **wanted.settings,
    )
    if sharing.engine == "ray":
        job = LayerJob.of(checkpoint, opening, scoring, threads=resources.threads or 1, memory_bytes=memory_bytes)
        counts = {layer: layout.layers[layer].num_experts for layer in chosen}
        layers = _on_a_cluster(job, sharing.address, counts, wanted, finished, progress)
    else:
        with Threads(resources.threads) as engine:
            scorer = LayerScorer(checkpoint=checkpoint, layout=layout, engine=engine, memory_bytes=memory_bytes)
            layers = _all_layers(scorer, chosen, wanted, finished, progress)
    checkpoint.check_unchanged()
    return Evidence(
        inventory=Inventory.of(checkpoint, layout, coverage=opening.coverage(checkpoint, progress)),
        estimator=scoring.estimator,
        settings=wanted.settings | ({} if shard is None else {SHARD: shard.facts()}),
        redundancy={layer: values["redundancy"] for layer, values in layers.items() if wanted.redundancy},
        floor={layer: values["floor"] for layer, values in layers.items() if "floor" in values},
        signals={name: {layer: values[name] for layer, values in layers.items()} for name in wanted.names_beside()},
    )


def _wanted(scoring: Scoring, layout: MoELayout, sharing: Sharing) -> Wanted:
    """What is measured, and where its pairs are counted. Raises SettingError."""
    wanted = Wanted.of(scoring, layout)
    if sharing.device is None:
        return wanted
    return replace(wanted, redundancy=on_device(wanted.redundancy, checked_device(sharing.device)))


def _all_layers(
    scorer: LayerScorer, chosen: Sequence[int], wanted: Wanted, finished: FinishedParts, progress: Progress
) -> Mapping[int, Mapping[str, np.ndarray]]:
    """Layer -> the arrays of its signals by name."""
    steps = {layer: sum(scorer.steps(signal, layer) for signal in wanted.signals) for layer in chosen}
    total, before, layers = sum(steps.values()), 0, {}
    for layer in chosen:
        done = before

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress("scoring pairs of experts", done, total)

        kept = finished.arrays(f"layer-{layer}")
        whole = kept is not None and wanted.are_whole(kept, scorer.layout.layers[layer].num_experts)
        layers[layer] = kept if kept and whole else score_layer(scorer, wanted, layer, advance)
        if layers[layer] is not kept:
            finished.keep_arrays(f"layer-{layer}", layers[layer])
        before += steps[layer]
        progress("scoring pairs of experts", before, total)
    return layers


def _on_a_cluster(
    job: LayerJob,
    address: str | None,
    counts: Mapping[int, int],
    wanted: Wanted,
    finished: FinishedParts,
    progress: Progress,
) -> Mapping[int, Mapping[str, np.ndarray]]:
    """Layer -> the arrays of its signals by name; `counts`: layer -> experts."""
    found = {}
    for layer, count in counts.items():
        kept = finished.arrays(f"layer-{layer}")
        if kept is not None and wanted.are_whole(kept, count):
            found[layer] = kept
    if missing := [layer for layer in counts if layer not in found]:
        with RayCluster(address, cores=job.threads) as cluster:
            for layer, arrays in zip(missing, cluster.map(job, missing), strict=True):
                finished.keep_arrays(f"layer-{layer}", arrays)
                found[layer] = arrays
                progress("scoring layers", len(found), len(counts))
    return {layer: found[layer] for layer in counts}
