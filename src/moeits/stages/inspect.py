"""What a checkpoint or a plan holds, and what a budget would leave: from headers alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from moeits.checkpoint.fingerprints import Coverage
from moeits.checkpoint.opening import Describing
from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.limits import removed_by
from moeits.choosing.pruning_plan import FACTORS, PruningPlan
from moeits.errors import BudgetOutOfReach, PlanError, SettingError
from moeits.evidence import estimated
from moeits.experts import promises
from moeits.experts.counting import parameters_of
from moeits.experts.explaining import Explanation
from moeits.experts.explaining import explain as explained
from moeits.experts.families import architecture_of
from moeits.experts.inventory import Inventory, LayerFacts
from moeits.experts.layout import MoELayout
from moeits.experts.promises import check_not_factored, ranks_of_factors
from moeits.sizes import format_size


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One MoE layer of a checkpoint, or what a plan leaves of it."""

    layer: int
    experts: int
    experts_before: int | None = None
    """Of a plan: how many experts the layer has now; None if an edited plan does not tell."""
    top_k: int | None = None
    """Of a plan: what is left of it, where fewer experts stay; None if it does not say."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found. Sizes are of tensors, headers not counted."""

    kind: str
    """checkpoint or plan"""
    source: str
    model_type: str
    fingerprint: str | None
    """Of the checkpoint that a plan was made for; None of a checkpoint, whose tensors are not read."""
    layers: tuple[LayerRow, ...]
    parameters: int | None
    """None, as `nbytes`, in a plan that was edited so that it no longer tells."""
    nbytes: int | None
    routed_parameters: int | None
    """Parameters of routed experts, router rows not counted; None in a plan."""
    coverage: Coverage | None
    """How much of the weights that fingerprint has seen; None if an older plan does not say."""
    shards: int | None
    storage: str | None
    """How experts are stored: per-expert, fused, mixed, or as factors; None in a plan."""
    whole_layers: tuple[int, ...] = ()
    """Layers with experts that all stay, since a table of tokens chooses them; they are none of `layers`."""
    estimated: str | None = None
    """Of a plan whose scores are estimates: from how much, and how far off, in words."""
    budget: str | None = None
    """What a budget would leave, in words; None if none was given."""
    budget_experts: int | None = None
    budget_bytes: int | None = None


@overload
def inspect(
    path: str | Path,
    *,
    reduction: float | str | None = None,
    max_size: str | int | None = None,
    explain: Literal[False] = False,
    architecture: str | Path | None = None,
    revision: str | None = None,
) -> Inspection: ...


@overload
def inspect(
    path: str | Path,
    *,
    reduction: float | str | None = None,
    max_size: str | int | None = None,
    explain: Literal[True],
    architecture: str | Path | None = None,
    revision: str | None = None,
) -> Explanation: ...


def inspect(
    path: str | Path,
    *,
    reduction: float | str | None = None,
    max_size: str | int | None = None,
    explain: bool = False,
    architecture: str | Path | None = None,
    revision: str | None = None,
) -> Inspection | Explanation:
    """Look into a checkpoint, or a plan (a .json file). With a budget: how many experts it would leave, and how large.

    Of a checkpoint only config.json and headers are read; of one on the hub only they are downloaded. With `explain` it
    is said what its tensors seem to be, whether moeits knows the family or not, with a description of the family to
    start from.

    Raises CheckpointError or PlanError if the file is broken, SettingError if it is neither, BudgetOutOfReach if a
    budget leaves less than the smallest checkpoint with top_k experts in each layer.
    """
    if Path(path).suffix in (".safetensors", ".gguf", ".bin", ".pt"):
        raise SettingError(f"{path} is a file of tensors. Give the folder of a checkpoint, or a plan (.json).")
    if Path(path).name == "config.json":
        raise SettingError(
            f"{path} is a part of a checkpoint. Give its folder, {Path(path).parent}, or a plan (.json)."
        )
    if explain and not (reduction is None and max_size is None):
        raise SettingError("--explain tells of no budget: leave --reduction and --max-size out, or ask without it.")
    if explain and architecture is not None:
        raise SettingError(
            "--explain says what the names and shapes of tensors seem to mean, whatever a description says: leave "
            f"--architecture {architecture} out. Whether a checkpoint fits it, moeits inspect says without --explain."
        )
    if Path(path).is_file():
        if explain:
            raise SettingError(f"--explain is of a checkpoint, and {path} is a file. Give its folder, or a hub id.")
        if reduction is not None or max_size is not None:
            raise SettingError("A plan has its budget already: give --reduction and --max-size with a checkpoint.")
        return _inspect_plan(PruningPlan.load(path))
    describe = Describing(architecture=None if architecture is None else Path(architecture)).describe()
    checkpoint = Checkpoint.look_at(path, revision=revision, describe=describe)
    return explained(checkpoint) if explain else _inspect_checkpoint(checkpoint, reduction, max_size)


def _inspect_checkpoint(
    checkpoint: Checkpoint, reduction: float | str | None, max_size: str | int | None
) -> Inspection:
    if ranks := ranks_of_factors(checkpoint.config):
        return _inspect_factors(checkpoint, ranks, asked=reduction is not None or max_size is not None)
    layout = MoELayout.of(checkpoint, padded=True)
    facts = Inventory.of(checkpoint, layout, fingerprint="").layers  # no tensor is read
    storages = {"per-expert" if moe.experts else "fused" for moe in layout.layers.values()}
    budget, experts, nbytes = _budget(facts, checkpoint.nbytes, reduction, max_size)
    before = _experts_before(checkpoint, {i: moe.num_experts for i, moe in layout.layers.items()})
    return Inspection(
        kind="checkpoint",
        source=checkpoint.source,
        model_type=layout.architecture.model_type,
        fingerprint=None,
        coverage=None,
        layers=tuple(
            LayerRow(layer=i, experts=moe.num_experts, experts_before=before.get(i), top_k=moe.top_k)
            for i, moe in layout.layers.items()
        ),
        parameters=sum(parameters_of(checkpoint).values()),
        nbytes=checkpoint.nbytes,
        routed_parameters=sum(f.num_experts * f.sizes.parameters for f in facts.values()),
        shards=len(checkpoint.shards),
        storage=storages.pop() if len(storages) == 1 else "mixed",
        whole_layers=layout.whole,
        budget=budget,
        budget_experts=experts,
        budget_bytes=nbytes,
    )


def _experts_before(checkpoint: Checkpoint, counts: Mapping[int, int]) -> Mapping[int, int]:
    """Experts of each layer before it was pruned, of the plan beside it; nothing where no plan of these counts is."""
    try:
        plan = PruningPlan.load(checkpoint.folder / "plan.json")
    except PlanError:
        return {}
    return (plan.experts_before() or {}) if plan.counts == counts else {}


def _inspect_factors(
    checkpoint: Checkpoint, ranks: Mapping[int, Mapping[str, Sequence[int | None]]], *, asked: bool
) -> Inspection:
    """Of experts that are stored as factors: sizes are those of the factors."""
    if asked:
        check_not_factored(checkpoint.config, checkpoint.source)
    family, of_one = architecture_of(checkpoint.config), re.compile(r"\.experts\.\d+\.\w+\.(?:left|right|whole)$")
    counts = {i: len(next(iter(of_layer.values()))) for i, of_layer in ranks.items()}
    top_k = {i: promises.counts(family, family.part_of(checkpoint.config), i)[1] for i in ranks}
    sizes = parameters_of(checkpoint)
    return Inspection(
        kind="checkpoint",
        source=checkpoint.source,
        model_type=family.model_type,
        fingerprint=None,
        coverage=None,
        layers=tuple(LayerRow(layer=i, experts=count, top_k=top_k[i]) for i, count in counts.items()),
        parameters=sum(sizes.values()),
        nbytes=checkpoint.nbytes,
        routed_parameters=sum(size for name, size in sizes.items() if of_one.search(name)),
        shards=len(checkpoint.shards),
        storage="as factors",
    )


def _inspect_plan(plan: PruningPlan) -> Inspection:
    before = plan.experts_before() or {}
    known = _sizes_of(plan)
    top_k = {layer: min(facts.top_k, plan.counts[layer]) for layer, facts in plan.layers.items()}
    return Inspection(
        kind="plan",
        source=plan.source,
        model_type=plan.model_type,
        fingerprint=plan.fingerprint,
        coverage=plan.coverage,
        layers=tuple(
            LayerRow(layer=i, experts=count, experts_before=before.get(i), top_k=top_k.get(i))
            for i, count in plan.counts.items()
        ),
        parameters=known.get("parameters_after"),
        nbytes=known.get("bytes_after"),
        routed_parameters=None,
        shards=None,
        storage=None,
        estimated=estimated(plan.settings, plan.summary),
    )


def _sizes_of(plan: PruningPlan) -> Mapping[str, int]:
    """Sizes of what a plan keeps, edited or not; of an edited plan of 0.1 only a checkpoint knows them."""
    if plan.inventory and not plan.settings.get(FACTORS):
        return plan.inventory.summary(plan.counts)
    return plan.summary if plan.summary.get("experts_kept") == sum(plan.counts.values()) else {}


def _budget(
    facts: Mapping[int, LayerFacts], total: int, reduction: float | str | None, max_size: str | int | None
) -> tuple[str | None, int | None, int | None]:
    """(what it would leave in words, experts left, bytes left) of a checkpoint of `total` bytes.

    Experts of equal size are assumed to be equal.
    """
    if reduction is None and max_size is None:
        return None, None, None
    if reduction is not None and max_size is not None:
        raise SettingError("Give either --reduction or --max-size.")
    before = sum(layer.num_experts for layer in facts.values())
    least = sum(layer.fewest_experts() for layer in facts.values())
    removed, each = removed_by(facts, total, reduction, max_size)
    if before - removed < least:
        raise BudgetOutOfReach(
            f"That budget is out of reach: with every layer at its floor at least {least} of {before} remain, "
            f"{format_size(total - (before - least) * each)}."
        )
    left = total - removed * each
    return (
        f"{before - removed} of {before} experts would stay ({(before - removed) / len(facts):.1f} a layer), "
        f"{format_size(left)} of tensors",
        before - removed,
        left,
    )
