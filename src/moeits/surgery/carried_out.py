"""A plan carried out on headers alone: what would be written, before a byte of it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moeits.checkpoint.fingerprints import Coverage
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.writing import NewTensor
from moeits.choosing.pruning_plan import FACTORS, WHOLE_LAYERS, PruningPlan, fit
from moeits.errors import PlanError, SettingError
from moeits.experts.inventory import Inventory
from moeits.experts.layout import MoELayout
from moeits.surgery.edited import edited_tensors
from moeits.surgery.factors import Factored, as_carried_out, check_factors, factored, with_factors
from moeits.surgery.fates import new_tensors
from moeits.surgery.mtp import drops_mtp, plan_with_mtp, without_mtp
from moeits.surgery.padding import Padding, padding_of, with_padded_bytes, without_padding
from moeits.surgery.pruned_config import class_name, pruned_config
from moeits.surgery.quantization import renumbered_settings
from moeits.surgery.settings import ONE_NUMBER, Writing


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
    counts: Mapping[int, int]
    """Experts of each layer as they are written, padding among them."""
    factors: bool = False
    """Whether experts are stored as factors."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def carried_out(
    checkpoint: Checkpoint,
    moe: MoELayout,
    plan: PruningPlan,
    writing: Writing,
    coverage: Coverage | None = None,
    *,
    factors: bool = False,
) -> CarriedOut:
    """A plan of this checkpoint on its headers; `coverage` is what was read of the weights to tell them from others.

    With `factors` experts are stored as these, and counts layer by layer: so no stock class takes the checkpoint for
    one that lacks weights, which it would make up. Raises PlanError, CheckpointError or SettingError if it misfits.
    """
    drop_mtp = drops_mtp(plan, asked=writing.drop_mtp)
    if factors:
        check_factors(moe, plan, writing.layout)
    layout = _chosen_layout("per-layer" if factors else writing.layout, plan.counts, moe, drop_mtp=drop_mtp)
    inventory = Inventory.of(checkpoint, moe, coverage=coverage)
    fitted = fit(without_padding(plan), inventory, layout, only_uniform=moe.architecture.class_on_hub)
    plan = plan_with_mtp(fitted, checkpoint, moe, dropped=drop_mtp)
    others = {key: value for key, value in plan.settings.items() if key not in (WHOLE_LAYERS, FACTORS)}
    plan = replace(plan, settings=others | ({WHOLE_LAYERS: [*moe.whole]} if moe.whole else {}))
    padding = padding_of(plan, checkpoint, moe) if layout == "padded" else None
    tensors, made = _tensors(checkpoint, moe, plan, padding, drop_mtp=drop_mtp, factors=factors)
    plan = plan if made is None else as_carried_out(plan, made)
    config = pruned_config(checkpoint.config, moe, plan, layout)
    config = config if made is None else with_factors(config, moe, made.ranks)
    config, quantization_files = renumbered_settings(checkpoint, moe, plan.kept, config)
    if padding is not None:
        config["moeits"]["padding"] = {str(i): numbers for i, numbers in padding.added.items() if numbers}
        plan = with_padded_bytes(plan, sum(tensor.nbytes for tensor in tensors))
    return CarriedOut(
        plan=plan,
        layout=layout,
        config=without_mtp(config) if drop_mtp else config,
        quantization_files=quantization_files,
        tensors=tensors,
        counts=dict.fromkeys(plan.kept, padding.count) if padding else plan.counts,
        factors=factors,
    )


def _tensors(
    checkpoint: Checkpoint,
    moe: MoELayout,
    plan: PruningPlan,
    padding: Padding | None,
    *,
    drop_mtp: bool,
    factors: bool,
) -> tuple[list[NewTensor], Factored | None]:
    if factors:
        assert plan.edit is not None, "check_factors was asked before"
        made = factored(checkpoint, moe, plan.kept, plan.edit)
        others = new_tensors(checkpoint, moe, plan.kept, dropped=made.replaced)
        return [*others, *made.tensors], made
    edited = edited_tensors(checkpoint, moe, plan.kept, plan.edit)
    kept = padding.slots if padding else plan.kept
    return new_tensors(checkpoint, moe, kept, edited, dropped=moe.mtp.tensors if drop_mtp else ()), None


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


def check_layout(checkpoint: Checkpoint, moe: MoELayout, writing: Writing, counts: Mapping[int, int] | None) -> None:
    """A checkpoint of unequal counts has a class that opens it; counts that are not known yet may turn out unequal.

    Raises CheckpointError, SettingError.
    """
    if moe.architecture.class_on_hub:
        check_asked_layout(writing.layout, moe, drop_mtp=writing.drop_mtp)
    elif writing.layout not in ONE_NUMBER and (
        counts is None or _chosen_layout(writing.layout, counts, moe, drop_mtp=writing.drop_mtp) == "per-layer"
    ):
        class_name(checkpoint.config)


def check_asked_layout(layout: str, moe: MoELayout, *, drop_mtp: bool) -> None:
    on_hub = moe.architecture.class_on_hub
    if on_hub and layout == "per-layer":
        raise SettingError(
            f"--layout per-layer needs a class of transformers whose layers can be resized, and has none for "
            f"{moe.architecture.model_type}: the code that the checkpoint brings reads one number of experts. Use "
            "--layout uniform."
        )
    if layout in ONE_NUMBER or on_hub:
        _check_uniform(moe, layout if layout in ONE_NUMBER else "uniform", drop_mtp=drop_mtp)


def _check_uniform(moe: MoELayout, layout: str, *, drop_mtp: bool) -> None:
    """One number of experts and one top_k are right for all layers. Raises SettingError."""
    on_hub, uniform = moe.architecture.class_on_hub, f"--layout {layout} has one number of experts for all layers"
    otherwise = (
        "The code that the checkpoint brings reads no other, so it cannot be pruned."
        if on_hub
        else "Use --layout per-layer."
    )
    if moe.mtp.have_experts and not drop_mtp:
        raise SettingError(
            f"{uniform}, but {moe.mtp} would keep its experts, which no plan covers. Leave it out with "
            f"--drop-mtp{'' if on_hub else ', or use --layout per-layer'}."
        )
    if moe.whole:
        raise SettingError(
            f"{uniform}, but where a table of tokens chooses them, all stay (layers "
            f"{', '.join(map(str, moe.whole))}). {otherwise}"
        )
    if not _has_one_top_k(moe):
        top_ks = sorted({layer.top_k for layer in moe.layers.values()})
        raise SettingError(
            f"--layout {layout} has one top_k for all layers, but those of this checkpoint have "
            f"{' and '.join(map(str, top_ks))}. {otherwise}"
        )


def _chosen_layout(layout: str, counts: Mapping[int, int], moe: MoELayout, *, drop_mtp: bool) -> str:
    check_asked_layout(layout, moe, drop_mtp=drop_mtp)
    if layout == "auto" and moe.architecture.class_on_hub:
        return "uniform"
    if layout == "auto":
        uncut = all(count == moe.layers[i].num_experts for i, count in counts.items())
        equal = len(set(counts.values())) == 1 and (drop_mtp or not moe.mtp.have_experts) and (uncut or not moe.whole)
        return "uniform" if equal and _has_one_top_k(moe) else "per-layer"
    return layout


def _has_one_top_k(moe: MoELayout) -> bool:
    return len({layer.top_k for layer in moe.layers.values()}) == 1
