"""The last look at a checkpoint before it gets its name: its headers against its own config and its source."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError
from moeits.experts.borders import is_text
from moeits.experts.counting import parameters_of
from moeits.experts.layer import ExpertSizes, MoELayer
from moeits.experts.layout import MoELayout
from moeits.experts.promises import needs_loader


def check_written(folder: Path, source: MoELayout, counts: Mapping[int, int] | None = None) -> None:
    """Every count of experts, and every shape of routers and experts, is what config.json there says.

    `counts` are the experts that each layer keeps, by default all of the source. Raises CheckpointError, which says
    where it is not so.
    """
    counts = {i: layer.num_experts for i, layer in source.layers.items()} if counts is None else counts
    try:
        checkpoint = Checkpoint(folder, source="output")
        written = MoELayout.of(checkpoint, padded=True)
        _check_layers(checkpoint, written, source, counts)
        uncut = all(counts[i] == layer.num_experts for i, layer in source.layers.items())
        if (written.mtp.have_experts or written.whole) and not uncut and not needs_loader(checkpoint.config):
            what = f"layer {written.whole[0]}" if written.whole else str(written.mtp)
            raise CheckpointError(f"{what} has other experts than the one number there.")
    except CheckpointError as error:
        # Without advice about a checkpoint that someone else wrote.
        what = str(error).partition(". ")[0].rstrip(".")
        raise CheckpointError(
            f"The new checkpoint would contradict its own config, so it is not kept: {what}. Please report this."
        ) from None


def _has_sizes_as_before(layer: MoELayer, before: MoELayer, checkpoint: Checkpoint) -> bool:
    """Text about weights may have another mean length, since some of it is gone."""
    ours = _sizes_as_before(layer, before, checkpoint)
    texts = (name for own in layer.experts.values() for name in own.values() if is_text(name))
    longest = sum(checkpoint.tensors[name].nbytes for name in texts)
    return replace(ours, nbytes=0) == replace(before.sizes, nbytes=0) and (
        abs(ours.nbytes - before.sizes.nbytes) <= longest
    )


def _sizes_as_before(layer: MoELayer, before: MoELayer, checkpoint: Checkpoint) -> ExpertSizes:
    """Without what was one number for all fused experts, and is the own one of the only expert that is left."""
    alone = {*layer.fused.values()} - {*before.fused.values()}
    parameters = parameters_of(checkpoint) if alone else {}
    return replace(
        layer.sizes,
        parameters=layer.sizes.parameters - sum(parameters[name] for name in alone),
        nbytes=layer.sizes.nbytes - sum(checkpoint.tensors[name].nbytes for name in alone),
    )


def _check_layers(checkpoint: Checkpoint, written: MoELayout, source: MoELayout, counts: Mapping[int, int]) -> None:
    if differing := sorted(set(written.layers) ^ set(counts)):
        raise CheckpointError(f"by config.json not the same layers as before have experts: {differing}.")
    for i, layer in written.layers.items():
        if layer.num_experts != counts[i]:
            raise CheckpointError(
                f"layer {i} has {layer.num_experts} experts by config.json and {next(iter(layer.router))}, "
                f"where {counts[i]} are kept."
            )
        if not _has_sizes_as_before(layer, source.layers[i], checkpoint):
            raise CheckpointError(
                f"experts or router rows of {layer.block.rstrip('.')} do not have the size that they had."
            )
