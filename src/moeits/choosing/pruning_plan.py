"""Who stays: the pruning plan, the hinge between deciding and cutting. Small, readable, replayable."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, to_builtins

from moeits.checkpoint.fingerprints import Coverage
from moeits.choosing.criteria import shown_name
from moeits.choosing.elimination import steps_to
from moeits.edits import PlannedEdit
from moeits.edits.stored import ExpertId, LayerNumber, Scalar, StoredEdit, check_edit, edit_facts, read_edit
from moeits.errors import PlanError
from moeits.experts.families import Architecture
from moeits.experts.inventory import Inventory, LayerFacts
from moeits.files import write_whole
from moeits.notebook import html_table
from moeits.signals.watched import SEARCHED, seed_of_search
from moeits.typed_json import NotOfItsType, convert_typed, read_typed

FORMAT = 1
MOST_BYTES = 2**30
"""Of plan.json. Kilobytes are usual; the norms of `--edit mask` are 86 MiB for half of 128 experts in 94 layers."""

FACTORS = "factors"
"""Key of the settings of a plan that was carried out with experts stored as factors; its sizes are theirs."""

WHOLE_LAYERS = "whole_layers"
"""Key of the settings of a plan that was carried out: layers with experts that all stay, and are in no plan."""


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which experts of a checkpoint stay. `kept` is what `prune` obeys; the rest says where it came from."""

    model_type: str
    source: str
    fingerprint: str
    criterion: str
    settings: Mapping[str, Any]
    kept: Mapping[int, tuple[int, ...]]
    """Decoder layer -> original expert ids, ascending."""
    order: Mapping[int, tuple[tuple[int, float | None], ...]] = field(default_factory=dict)
    """Decoder layer -> (expert, level) in the order of removal, to the floor; level None where there is none."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[int, LayerFacts] = field(default_factory=dict)
    """What each layer was before; empty in a plan of 0.1, which did not say."""
    coverage: Coverage | None = None
    """How much of the weights the fingerprint has seen; None in a plan of 0.1."""
    edit: PlannedEdit | None = None
    """What becomes of the experts that stay; None if they stay as they are."""
    family: Architecture | None = None
    """The description that a user gave of the family; None where moeits has its own."""

    def _repr_html_(self) -> str:
        """Each layer with how many of its experts stay, for a notebook."""
        before = self.experts_before() or {}
        share = f"; P(down) {self.summary['reduction']:.2%}" if "reduction" in self.summary else ""
        kept = sum(map(len, self.kept.values()))
        caption = f"{self.source}: {kept} experts stay, chosen by {shown_name(self.criterion)}{share}"
        rows = [(layer, before.get(layer, "?"), len(ids)) for layer, ids in self.kept.items()]
        return html_table(caption, ("layer", "experts", "kept"), rows)

    def facts(self) -> dict[str, Any]:
        """The plan as the JSON value that plan.json holds."""
        return {
            "format": FORMAT,
            "model_type": self.model_type,
            "source": self.source,
            "fingerprint": self.fingerprint,
            **({} if self.coverage is None else {"coverage": self.coverage.facts()}),
            "criterion": self.criterion,
            "settings": dict(self.settings),
            "kept": {str(layer): list(experts) for layer, experts in self.kept.items()},
            "order": {str(layer): [list(step) for step in steps] for layer, steps in self.order.items()},
            "summary": dict(self.summary),
            **({"layers": {str(layer): asdict(facts) for layer, facts in self.layers.items()}} if self.layers else {}),
            **({"edit": edit_facts(self.edit)} if self.edit else {}),
            **({"family": to_builtins(self.family)} if self.family else {}),
        }

    def to_json(self) -> str:
        """The text of plan.json, the same for the same plan. Raises PlanError if it is too long to be read back."""
        lines = (f"  {json.dumps(key)}: {_json_rows(entry)}" for key, entry in self.facts().items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        if len(text) > MOST_BYTES:  # ASCII, so characters are bytes
            raise PlanError(
                f"This plan has {len(text):,} bytes, and moeits reads plans of {MOST_BYTES:,} at most: keep fewer "
                "experts, or choose an --edit with less to remember, such as mask with --mask-by magnitude."
            )
        return text

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the text of plan.json."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write plan.json, all or nothing. Raises PlanError if it could not be read back."""
        write_whole(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read a plan, as written or as edited by hand. Raises PlanError with what is wrong in it."""
        stored = read_typed(
            path,
            _Stored,
            error=PlanError,
            what="a plan",
            remedy="Make it again with moeits plan.",
            missing=f"There is no plan {path}. Make one with: moeits plan EVIDENCE --output {path}",
            format=FORMAT,
            most_bytes=MOST_BYTES,
        )
        try:
            convert_typed(stored.summary, _Summary)
            _check_kept(stored.kept, stored.layers)
            _check_drawn(stored)
            edit = read_edit(stored.edit)
            check_edit(edit, stored.kept, {layer: facts.num_experts for layer, facts in stored.layers.items()})
        except (NotOfItsType, PlanError) as error:
            raise PlanError(f"{path}: {str(error).rstrip('.')}.") from None
        return cls(
            model_type=stored.model_type,
            source=stored.source,
            fingerprint=stored.fingerprint,
            criterion=stored.criterion,
            settings=stored.settings,
            kept={layer: tuple(experts) for layer, experts in stored.kept.items()},
            order={layer: tuple(steps) for layer, steps in stored.order.items()},
            summary=stored.summary,
            layers=stored.layers,
            coverage=stored.coverage,
            edit=edit,
            family=stored.family,
        )

    @property
    def counts(self) -> dict[int, int]:
        """How many experts each layer keeps."""
        return {layer: len(experts) for layer, experts in self.kept.items()}

    @property
    def inventory(self) -> Inventory | None:
        """The checkpoint that it was made for, as far as it tells: None for an edited plan of 0.1."""
        if not self.layers or not {"parameters_before", "bytes_before"} <= self.summary.keys():
            return None
        others = [int(self.summary["parameters_before"]), int(self.summary["bytes_before"])]
        for facts in self.layers.values():
            others[0] -= facts.num_experts * (facts.sizes.parameters + facts.sizes.router_parameters)
            others[1] -= facts.num_experts * (facts.sizes.nbytes + facts.sizes.router_nbytes)
        if min(others) < 0:
            return None
        return Inventory(
            model_type=self.model_type,
            source=self.source,
            fingerprint=self.fingerprint,
            layers=self.layers,
            other_parameters=others[0],
            other_bytes=others[1],
            coverage=self.coverage,
            family=self.family,
        )

    def experts_before(self) -> dict[int, int] | None:
        """How many experts each layer had, as far as this plan tells: None if it was edited so that nobody knows."""
        if self.layers:
            return {layer: facts.num_experts for layer, facts in self.layers.items()}
        seen = {
            layer: {*kept, *(expert for expert, _ in self.order.get(layer, ()))} for layer, kept in self.kept.items()
        }
        counts = {layer: len(experts) for layer, experts in seen.items()}
        return counts if sum(counts.values()) == self.summary.get("experts_before") else None

    def follows_order(self, num_experts: Mapping[int, int]) -> bool:
        """Whether the kept experts are those that its own order leaves: not so in a plan that was edited by hand."""
        return all(
            steps_to([expert for expert, _ in self.order.get(layer, ())], kept, num_experts[layer]) is not None
            for layer, kept in self.kept.items()
        )


_Positive = Annotated[float, Meta(ge=0, le=2**63)]
_Flat = dict[str, Scalar | list[Scalar]]


class _Stored(Struct):
    """plan.json."""

    format: int
    model_type: str
    source: str
    fingerprint: str
    criterion: str
    settings: dict[str, Scalar | list[Scalar] | _Flat]
    kept: dict[LayerNumber, list[ExpertId]]
    order: dict[LayerNumber, list[tuple[ExpertId, float | None]]] = {}
    summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar | list[Scalar] | _Flat]] = {}
    layers: dict[LayerNumber, LayerFacts] = {}
    coverage: Coverage | None = None
    edit: StoredEdit | list[StoredEdit] | None = None
    family: Architecture | None = None


class _Summary(Struct):
    """What is used of `summary` by name."""

    experts_before: _Positive = 0
    experts_kept: _Positive = 0
    parameters_before: _Positive = 0
    parameters_after: _Positive = 0
    bytes_before: _Positive = 0
    bytes_after: _Positive = 0
    reduction: _Positive = 0
    reduction_of_all: _Positive = 0
    floored_layers: list[LayerNumber] = []
    layers_on_noise_floor: list[LayerNumber] = []
    unreached: dict[LayerNumber, list[ExpertId]] = {}


def _check_drawn(stored: _Stored) -> None:
    """A set that was searched for at random says by which seed. Raises PlanError."""
    if stored.criterion == SEARCHED and seed_of_search(stored.settings) is None:
        raise PlanError(
            "its experts were searched for at random, and `search` in its settings does not say by which seed, so "
            "nobody could search for them again: make it again with moeits plan"
        )


def _check_kept(kept: Mapping[int, Sequence[int]], layers: Mapping[int, LayerFacts]) -> None:
    """The experts that are kept are experts. Raises PlanError."""
    if not kept:
        raise PlanError("it keeps nothing: `kept` has no layers")
    for layer, experts in kept.items():
        if not experts or list(experts) != sorted(set(experts)):
            raise PlanError(f"kept experts of layer {layer} must be different ids in ascending order, at least one")
    if not layers:
        return
    if differing := sorted(set(kept) ^ set(layers)):
        raise PlanError(f"`kept` and `layers` do not have the same layers: {differing[:5]}")
    for layer, facts in layers.items():
        if wrong := facts.contradiction():
            raise PlanError(f"of layer {layer} it says that {wrong}")
        if kept[layer][-1] >= facts.num_experts:
            raise PlanError(
                f"it keeps expert {kept[layer][-1]} of layer {layer}, which has {facts.num_experts}: "
                f"give ids from 0 to {facts.num_experts - 1}"
            )


def fit(plan: PruningPlan, inventory: Inventory, layout: str, *, only_uniform: bool = False) -> PruningPlan:
    """The plan as it is carried out on a checkpoint: evened out if the layout asks for it, with the sizes that it has.

    A plan that was made for another copy or form of the model becomes one for this. Of another form it says which.
    `only_uniform`: no other layout can be asked for.
    Raises PlanError where the checkpoint cannot keep what the plan keeps.
    """
    settings = dict(plan.settings)
    if plan.fingerprint != inventory.fingerprint:
        settings["planned_for"] = plan.source
    plan = replace(
        plan,
        source=inventory.source,
        fingerprint=inventory.fingerprint,
        coverage=inventory.coverage,
        family=inventory.family,
        settings=settings,
    )
    if layout == "uniform" and len(set(plan.counts.values())) > 1:
        groups = lcm(*(facts.groups for facts in inventory.layers.values()))
        plan = even_out(plan, inventory.num_experts, groups=groups, only=only_uniform)
    check_groups(plan.kept, inventory.layers)
    check_edit(plan.edit, plan.kept, inventory.num_experts)
    summary = {**plan.summary, **inventory.summary(plan.counts)}
    if "floored_layers" in summary:  # of these an edit may have lifted some from their floor
        at_floor = [
            layer
            for layer, count in plan.counts.items()
            if count + len(plan.order.get(layer, ())) == inventory.layers[layer].num_experts
        ]
        summary["floored_layers"] = [layer for layer in summary["floored_layers"] if layer in at_floor]
    return replace(plan, summary=summary, layers=inventory.layers)


def even_out(plan: PruningPlan, num_experts: Mapping[int, int], *, groups: int = 1, only: bool = False) -> PruningPlan:
    """The same plan with equal counts in all layers, following its order of removal.

    Every layer gets the plan's mean count, rounded down (to a multiple of `groups`, for a router that is limited by
    them), so that the result is no larger than the plan's own. Raises PlanError if the plan has no order, or was edited
    so that its kept experts do not follow it, or says what its kept experts are made of; the sentence offers unequal
    counts, unless equal ones are the `only` ones that can be.
    """
    otherwise = "." if only else ", or use --layout per-layer."
    if plan.edit is not None and plan.edit.ties:
        what = "makes of several" if plan.edit.groups else "says how to change"
        raise PlanError(
            f"A uniform layout keeps other experts than those that this plan {what} (edit {plan.edit.names}). "
            f"Plan with --experts-per-layer{otherwise}"
        )
    count = sum(map(len, plan.kept.values())) // len(plan.kept) // groups * groups
    kept = {}
    for layer, experts in plan.kept.items():
        removed = [expert for expert, _ in plan.order.get(layer, ())]
        if steps_to(removed, experts, num_experts[layer]) is None:
            raise PlanError(
                f"A uniform layout needs the order of removal, but the experts kept in layer {layer} do not follow the "
                f"plan's order (was it edited by hand?). Plan with --experts-per-layer{otherwise}"
            )
        if count > num_experts[layer]:
            raise PlanError(
                f"A uniform layout of {count} experts is more than the {num_experts[layer]} that layer {layer} has. "
                f"Plan with --experts-per-layer{otherwise}"
            )
        if num_experts[layer] - count > len(removed):
            raise PlanError(
                f"A uniform layout of {count} experts is below the floor of layer {layer}, where the plan's order ends "
                f"with {num_experts[layer] - len(removed)}. Plan with a lower --min-experts{otherwise}"
            )
        gone = set(removed[: num_experts[layer] - count])
        kept[layer] = tuple(expert for expert in range(num_experts[layer]) if expert not in gone)
    return replace(plan, kept=kept, settings={**plan.settings, "layout": "uniform"})


def check_groups(kept: Mapping[int, Sequence[int]], layers: Mapping[int, LayerFacts]) -> None:
    """Each group of a router keeps as many experts as the others, and as many as it needs. Raises PlanError."""
    for layer, experts in kept.items():
        facts = layers[layer]
        size = facts.num_experts // facts.groups
        per_group = [sum(expert // size == group for expert in experts) for group in range(facts.groups)]
        if len(set(per_group)) > 1:
            raise PlanError(
                f"The router of layer {layer} chooses among {facts.groups} groups of experts, so each must keep as "
                f"many; this plan keeps {per_group}. Plan again, or edit the plan so that they are equal."
            )
        least = min(facts.least_per_group, size)
        if per_group[0] < least:
            of = f" in each of its {facts.groups} groups" if facts.groups > 1 else ""
            raise PlanError(
                f"The router of layer {layer} needs {least} experts{of}; this plan keeps {per_group[0]}. Plan again, "
                "or edit the plan so that there are enough."
            )


def _json_rows(value: Any) -> str:
    """JSON with one row per entry, so that a plan of 60 experts a layer stays readable and diffable."""
    if value and isinstance(value, list):
        return "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in value) + "\n  ]"
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    rows = (f"    {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items())
    return "{\n" + ",\n".join(rows) + "\n  }"
