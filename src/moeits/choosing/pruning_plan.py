"""Who stays: the pruning plan, the hinge between deciding and cutting. Small, readable, replayable."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from moeits.choosing.elimination import steps_to
from moeits.errors import PlanError
from moeits.evidence import Evidence
from moeits.experts.layout import ExpertSizes
from moeits.files import write_whole

FORMAT = 1


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

    def facts(self) -> dict[str, Any]:
        """The plan as the JSON value that plan.json holds."""
        return {
            "format": FORMAT,
            "model_type": self.model_type,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "criterion": self.criterion,
            "settings": dict(self.settings),
            "kept": {str(layer): list(experts) for layer, experts in self.kept.items()},
            "order": {str(layer): [list(step) for step in steps] for layer, steps in self.order.items()},
            "summary": dict(self.summary),
        }

    def to_json(self) -> str:
        """The text of plan.json, the same for the same plan."""
        lines = (f"  {json.dumps(key)}: {_json_rows(entry)}" for key, entry in self.facts().items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the text of plan.json."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write plan.json, all or nothing."""
        write_whole(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read a plan, as written or as edited by hand. Raises PlanError with what is wrong in it."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls._from_json(value)
        except FileNotFoundError:
            raise PlanError(f"There is no plan {path}. Make one with: moeits plan EVIDENCE --output {path}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise PlanError(f"{path} cannot be read as JSON: {error}.") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, PlanError):
                raise PlanError(f"{path}: {error}") from None
            raise PlanError(f"{path} is no plan: {type(error).__name__} {error}.") from None

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> "PruningPlan":
        if value["format"] != FORMAT:
            raise PlanError(f"it has format {value['format']}; this moeits reads format {FORMAT}.")
        kept = {int(layer): tuple(experts) for layer, experts in value["kept"].items()}
        for layer, experts in kept.items():
            ids = all(type(expert) is int and expert >= 0 for expert in experts)
            if not experts or not ids or list(experts) != sorted(set(experts)):
                raise PlanError(
                    f"kept experts of layer {layer} must be different ids in ascending order, at least one."
                )
        return cls(
            model_type=str(value["model_type"]),
            source=str(value["source"]),
            fingerprint=str(value["fingerprint"]),
            criterion=str(value["criterion"]),
            settings=dict(value["settings"]),
            kept=kept,
            order={int(layer): _read_steps(layer, steps) for layer, steps in value.get("order", {}).items()},
            summary=_read_summary(value.get("summary", {})),
        )

    def experts_before(self) -> dict[int, int] | None:
        """How many experts each layer had, as far as this plan tells: None if it was edited so that nobody knows."""
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


def _read_steps(layer: str, steps: Any) -> tuple[tuple[int, float | None], ...]:
    """One layer of `order`: pairs of an expert and its level. Raises PlanError."""
    read = tuple((expert, level) for expert, level in steps)
    for expert, level in read:
        if type(expert) is not int or expert < 0 or not (level is None or _is_number(level)):
            raise PlanError(
                f"the order of layer {layer} must be pairs of an expert and a number, not {[expert, level]}."
            )
    return read


def _read_summary(summary: Any) -> dict[str, Any]:
    """`summary`, in which what is used by name is of its kind. Raises PlanError."""
    read = dict(summary)
    for name in _NUMBERS & read.keys():
        if not _is_number(read[name]) or read[name] < 0:
            raise PlanError(f"summary.{name} must be a number from 0 on, not {read[name]!r}.")
    for name in _LAYERS & read.keys():
        if not isinstance(read[name], list) or not all(type(layer) is int for layer in read[name]):
            raise PlanError(f"summary.{name} must be a list of layers, not {read[name]!r}.")
    return read


_NUMBERS = {f"{what}_{when}" for what in ("parameters", "bytes") for when in ("before", "after")}
_NUMBERS |= {"experts_before", "experts_kept", "reduction", "reduction_of_all"}
_LAYERS = {"floored_layers", "layers_on_noise_floor"}


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and isfinite(value)


def summarize(evidence: Evidence, kept: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """Sizes before and after: experts, parameters, bytes, and the removed shares (method.md, section 2)."""
    layers = evidence.layers

    def routed(count: Mapping[int, int], of: Callable[[ExpertSizes], int]) -> int:
        return sum(count[layer] * of(facts.sizes) for layer, facts in layers.items())

    before = {layer: facts.num_experts for layer, facts in layers.items()}
    after = {layer: len(experts) for layer, experts in kept.items()}
    all_before = evidence.other_parameters + routed(before, lambda size: size.parameters + size.router_parameters)
    all_after = evidence.other_parameters + routed(after, lambda size: size.parameters + size.router_parameters)
    routed_before, routed_after = (routed(count, lambda size: size.parameters) for count in (before, after))
    return {
        "experts_before": sum(before.values()),
        "experts_kept": sum(after.values()),
        "parameters_before": all_before,
        "parameters_after": all_after,
        "bytes_before": evidence.other_bytes + routed(before, lambda size: size.nbytes + size.router_nbytes),
        "bytes_after": evidence.other_bytes + routed(after, lambda size: size.nbytes + size.router_nbytes),
        "reduction": (routed_before - routed_after) / routed_before,
        "reduction_of_all": (all_before - all_after) / all_before,
    }


def even_out(plan: PruningPlan, num_experts: Mapping[int, int], *, groups: int = 1) -> PruningPlan:
    """The same plan with equal counts in all layers, following its order of removal.

    Every layer gets the plan's mean count, rounded down (to a multiple of `groups`, for a router that is limited by
    them), so that the result is no larger than the plan's own. Raises PlanError if the plan has no order, or was edited
    so that its kept experts do not follow it.
    """
    count = sum(map(len, plan.kept.values())) // len(plan.kept) // groups * groups
    kept = {}
    for layer, experts in plan.kept.items():
        removed = [expert for expert, _ in plan.order.get(layer, ())]
        if steps_to(removed, experts, num_experts[layer]) is None:
            raise PlanError(
                f"A uniform layout needs the order of removal, but the experts kept in layer {layer} do not follow the "
                "plan's order (was it edited by hand?). Use --layout per-layer, or plan with --experts-per-layer."
            )
        if count > num_experts[layer]:
            raise PlanError(
                f"A uniform layout of {count} experts is more than the {num_experts[layer]} that layer {layer} has. "
                "Use --layout per-layer, or plan with --experts-per-layer."
            )
        if num_experts[layer] - count > len(removed):
            raise PlanError(
                f"A uniform layout of {count} experts is below the floor of layer {layer}, where the plan's order ends "
                f"with {num_experts[layer] - len(removed)}. Use --layout per-layer, or plan with a lower --min-experts."
            )
        gone = set(removed[: num_experts[layer] - count])
        kept[layer] = tuple(expert for expert in range(num_experts[layer]) if expert not in gone)
    return replace(plan, kept=kept, settings={**plan.settings, "layout": "uniform"})


def check_groups(kept: Mapping[int, Sequence[int]], evidence: Evidence) -> None:
    """Each group of a router keeps as many experts as the others, and as many as it needs. Raises PlanError."""
    for layer, experts in kept.items():
        facts = evidence.layers[layer]
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
    """JSON with one row per entry of a mapping, so that a plan of 60 experts a layer stays readable and diffable."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    rows = (f"    {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items())
    return "{\n" + ",\n".join(rows) + "\n  }"
