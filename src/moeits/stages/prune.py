"""Checkpoint x plan -> smaller checkpoint: removed experts physically gone (paper, Algorithm 2 and section 4.2).

Every tensor has exactly one fate - copy, take, rename or drop - and all fates are known before a byte is written. No
number is recomputed, so what is kept is kept to the bit, in any dtype; unless the plan has an edit, which gives tensors
of some kept experts the fifth fate, compute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.checkpoint.fingerprints import Coverage
from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_files import copy_side_files, side_files
from moeits.checkpoint.writing import NewTensor, check_output, new_checkpoint
from moeits.choosing.pruning_plan import PruningPlan, fit
from moeits.errors import PlanError, SettingError
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.progress import Progress, silent
from moeits.scoring.rehearsal import Rehearsal, free_bytes
from moeits.settings import with_settings
from moeits.sizes import parse_size
from moeits.surgery.card import model_card
from moeits.surgery.edited import edited_tensors
from moeits.surgery.fates import new_tensors
from moeits.surgery.mtp import drops_mtp, plan_with_mtp, without_mtp
from moeits.surgery.pruned_config import LOADER_FILE, class_name, pruned_config
from moeits.surgery.quantization import renumbered_settings
from moeits.surgery.settings import Writing
from moeits.surgery.unwritten import Unwritten
from moeits.surgery.written import check_written


@with_settings
def prune(
    model: str | Path | Checkpoint,
    *,
    plan: str | Path | PruningPlan,
    output: str | Path,
    writing: Writing,
    opening: Opening,
    any_fingerprint: bool = False,
    progress: Progress = silent,
) -> PruningPlan | Rehearsal:
    """Write the checkpoint that a plan leaves: removed experts gone, everything else as it was, bit for bit.

    Paper: Algorithm 2; method.md, section 3. Returns the plan as it was carried out; with `dry_run` only what it would
    take and leave. `layout` is `per-layer` (each
    layer its own count; opened by `moeits.load` or with trust_remote_code), `uniform` (the same count everywhere,
    opened by everything; an uneven plan is evened out along its order), or `auto`: uniform if the plan's counts are
    equal, else per-layer. No plan covers the experts of layers for multi-token prediction: a uniform checkpoint is
    written without these layers (`drop_mtp`), others keep them whole. Shards are at most `max_shard_size`, by default
    as large as the source's. With `any_fingerprint` the plan may have been made for another form of this model: the
    parent of a quantised one, or the same experts fused. By `verify` every byte is compared with what the plan was made
    for, or sampled ones. The output appears under its name only when complete.

    Raises PlanError if the plan is of another checkpoint or does not fit it, CheckpointError if the checkpoint is
    broken, OutputError if the output exists, lies in the source, or cannot be written.
    """
    checkpoint = opening.open(model, check=architecture_of)
    moe = MoELayout.of(checkpoint)
    plan = plan if isinstance(plan, PruningPlan) else PruningPlan.load(plan)
    coverage = _verified(plan, checkpoint, moe, opening, any_fingerprint=any_fingerprint, progress=progress)
    made = carried_out(checkpoint, moe, plan, writing, coverage)
    shard_bytes = _shard_bytes(writing.max_shard_size, checkpoint)
    side_files(checkpoint.folder)
    if writing.dry_run:
        return _rehearsed(checkpoint, made, Path(output), overwrite=writing.overwrite)
    with new_checkpoint(
        Path(output), sources=[checkpoint.folder], nbytes=made.nbytes, overwrite=writing.overwrite, progress=progress
    ) as writer:
        left_out = copy_side_files(checkpoint.folder, writer, rewritten=made.quantization_files)
        writer.write_json("config.json", made.config)
        if made.layout == "per-layer":
            writer.copy(Path(__file__).parents[1] / LOADER_FILE, LOADER_FILE)
        writer.write_text("plan.json", made.plan.to_json())
        writer.write_text("README.md", _card(checkpoint, moe, made, left_out, writing.base_model))
        writer.write_tensors(made.tensors, max_shard_bytes=shard_bytes, progress=progress)
        _check_both_ends(checkpoint, writer.folder, moe, made.plan)
    return made.plan


@dataclass(frozen=True, kw_only=True)
class CarriedOut:
    """A plan carried out on headers alone: what would be written."""

    plan: PruningPlan
    """As it is carried out."""
    layout: str
    config: Mapping[str, Any]
    quantization_files: Mapping[str, Any]
    """Side files of a quantizer that name experts, with the new numbers."""
    tensors: Sequence[NewTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def carried_out(
    checkpoint: Checkpoint, moe: MoELayout, plan: PruningPlan, writing: Writing, coverage: Coverage | None = None
) -> CarriedOut:
    """A plan of this checkpoint on its headers; `coverage` is what was read of the weights to tell them from others.

    Raises PlanError, CheckpointError or SettingError if it misfits.
    """
    drop_mtp = drops_mtp(plan, asked=writing.drop_mtp)
    layout = _chosen_layout(writing.layout, plan.counts, moe, drop_mtp=drop_mtp)
    inventory = Inventory.of(checkpoint, moe, coverage=coverage)
    plan = plan_with_mtp(fit(plan, inventory, layout), checkpoint, moe, dropped=drop_mtp)
    config = pruned_config(checkpoint.config, moe, plan, layout)
    config, quantization_files = renumbered_settings(checkpoint, moe, plan.kept, config)
    return CarriedOut(
        plan=plan,
        layout=layout,
        config=without_mtp(config) if drop_mtp else config,
        quantization_files=quantization_files,
        tensors=_tensors(checkpoint, moe, plan, drop_mtp=drop_mtp),
    )


def _rehearsed(checkpoint: Checkpoint, made: CarriedOut, output: Path, *, overwrite: bool) -> Rehearsal:
    check_output(output, sources=[checkpoint.folder], overwrite=overwrite)
    return Rehearsal(
        source=checkpoint.source,
        output=str(output),
        experts_before=made.plan.summary["experts_before"],
        experts_kept=made.plan.summary["experts_kept"],
        bytes_before=checkpoint.nbytes,
        bytes_after=made.nbytes,
        disk_bytes=made.nbytes,
        disk_free_bytes=free_bytes(output),
    )


def unwritten(checkpoint: Checkpoint, plan: PruningPlan) -> Unwritten:
    """The checkpoint that `prune` would write, to be read without writing it. Raises what `prune` raises."""
    moe = MoELayout.of(checkpoint)
    check_plan(plan, checkpoint, moe)
    if plan.edit is not None:
        raise PlanError(
            f"The plan makes experts of several (edit {plan.edit.name}), to be read only once they are written. "
            "Prune by it first, or plan without --edit."
        )
    made = carried_out(checkpoint, moe, plan, Writing(), plan.coverage)
    return Unwritten(checkpoint, made.config, made.tensors)


def _verified(
    plan: PruningPlan,
    checkpoint: Checkpoint,
    moe: MoELayout,
    opening: Opening,
    *,
    any_fingerprint: bool,
    progress: Progress,
) -> Coverage:
    """What is known of the weights, which are those of the plan, or of another form of its model.

    Of another form there is nothing to compare. Raises PlanError as `check_plan` and `Verifying.check` do.
    """
    check_plan(plan, checkpoint, moe, any_fingerprint=any_fingerprint)
    if any_fingerprint and plan.fingerprint != checkpoint.fingerprint:
        return opening.coverage(checkpoint, progress)
    return opening.check(plan.coverage, checkpoint, source=plan.source, progress=progress)


def _tensors(checkpoint: Checkpoint, moe: MoELayout, plan: PruningPlan, *, drop_mtp: bool) -> list[NewTensor]:
    edited = edited_tensors(checkpoint, moe, plan.kept, plan.edit)
    return new_tensors(checkpoint, moe, plan.kept, edited, dropped=moe.mtp.tensors if drop_mtp else ())


def _check_both_ends(checkpoint: Checkpoint, written: Path, moe: MoELayout, plan: PruningPlan) -> None:
    """What was written fits its config, and is of the source as it was opened. Raises CheckpointError if not."""
    check_written(written, moe, plan.counts)
    checkpoint.check_unchanged()


def _card(checkpoint: Checkpoint, moe: MoELayout, made: CarriedOut, left_out: list[str], base_model: str | None) -> str:
    name, mtp_layers = base_model or checkpoint.source, str(moe.mtp) if moe.mtp.names else ""
    return model_card(name, checkpoint.folder, made.config, made.plan, left_out=left_out, mtp_layers=mtp_layers)


def check_request(checkpoint: Checkpoint, moe: MoELayout, *, output: str | Path, writing: Writing) -> None:
    """What can be wrong with a call of `prune` before there is a plan.

    Raises SettingError, CheckpointError or OutputError.
    """
    _check_layout(writing.layout, moe, drop_mtp=writing.drop_mtp)
    _shard_bytes(writing.max_shard_size, checkpoint)
    check_output(Path(output), sources=[checkpoint.folder], overwrite=writing.overwrite)
    side_files(checkpoint.folder)


def check_layout(checkpoint: Checkpoint, moe: MoELayout, writing: Writing, counts: Mapping[int, int] | None) -> None:
    """A checkpoint of unequal counts has a class that opens it; counts that are not known yet may turn out unequal.

    Raises CheckpointError.
    """
    if writing.layout != "uniform" and (
        counts is None or _chosen_layout(writing.layout, counts, moe, drop_mtp=writing.drop_mtp) == "per-layer"
    ):
        class_name(checkpoint.config)


def check_plan(plan: PruningPlan, checkpoint: Checkpoint, moe: MoELayout, *, any_fingerprint: bool = False) -> None:
    """The plan was made for these tensors, and names experts that exist. Raises PlanError where not.

    With `any_fingerprint` it may be of other tensors, but of a model of the same family and numbers of experts.
    """
    if plan.fingerprint != checkpoint.fingerprint and not any_fingerprint:
        raise PlanError(
            f"The plan was made for {plan.source} (fingerprint {plan.fingerprint[:12]}), but {checkpoint.source} has "
            f"fingerprint {checkpoint.fingerprint[:12]}. Plan again for this checkpoint, or use the other one. If the "
            "two are one model, quantised or with its experts stored in another way, say so with --any-fingerprint."
        )
    if plan.model_type != moe.architecture.model_type:
        raise PlanError(f"The plan is for a {plan.model_type} model, the checkpoint is {moe.architecture.model_type}.")
    if set(plan.kept) != set(moe.layers):
        differing = sorted(set(plan.kept) ^ set(moe.layers))
        raise PlanError(f"The plan and the checkpoint disagree on which layers have experts: {differing}.")
    for i, kept in plan.kept.items():
        if kept[-1] >= moe.layers[i].num_experts:
            raise PlanError(f"The plan keeps expert {kept[-1]} of layer {i}, which has {moe.layers[i].num_experts}.")
    for i, before in (plan.experts_before() or {}).items():
        if before != moe.layers[i].num_experts:
            raise PlanError(f"The plan is for {before} experts in layer {i}, which has {moe.layers[i].num_experts}.")


def _check_layout(layout: str, moe: MoELayout, *, drop_mtp: bool) -> None:
    if layout == "uniform" and moe.mtp.have_experts and not drop_mtp:
        raise SettingError(
            f"--layout uniform has one number of experts for all layers, but {moe.mtp} would keep its experts, which "
            "no plan covers. Leave it out with --drop-mtp, or use --layout per-layer."
        )
    if layout == "uniform" and not _has_one_top_k(moe):
        top_ks = sorted({layer.top_k for layer in moe.layers.values()})
        raise SettingError(
            f"--layout uniform has one top_k for all layers, but those of this checkpoint have "
            f"{' and '.join(map(str, top_ks))}. Use --layout per-layer."
        )


def _chosen_layout(layout: str, counts: Mapping[int, int], moe: MoELayout, *, drop_mtp: bool) -> str:
    _check_layout(layout, moe, drop_mtp=drop_mtp)
    if layout == "auto":
        equal = len(set(counts.values())) == 1 and (drop_mtp or not moe.mtp.have_experts)
        return "uniform" if equal and _has_one_top_k(moe) else "per-layer"
    return layout


def _has_one_top_k(moe: MoELayout) -> bool:
    return len({layer.top_k for layer in moe.layers.values()}) == 1


def _shard_bytes(max_shard_size: str | int | None, checkpoint: Checkpoint) -> int:
    if max_shard_size is None:
        return checkpoint.largest_shard_bytes
    asked = parse_size(max_shard_size, "--max-shard-size")
    if asked < 1:
        raise SettingError(f"--max-shard-size {max_shard_size} is out of range: give at least 1 byte, such as 5GB.")
    return asked
