"""Evidence x criterion x budget -> who stays."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from moeits.choosing.criteria import criterion_named
from moeits.choosing.elimination import EliminationOrder
from moeits.choosing.planner import Planner
from moeits.choosing.pruning_plan import PruningPlan
from moeits.choosing.settings import Budget, Choice
from moeits.evidence import Evidence, merged
from moeits.files import check_file_output, write_whole
from moeits.settings import with_settings
from moeits.weighing import reweighed, weights_of


@with_settings
def plan(
    evidence: str | Path | Evidence | Sequence[str | Path | Evidence],
    *,
    output: str | Path | None = None,
    write_order: str | Path | None = None,
    weights: str | None = None,
    budget: Budget,
    choice: Choice,
) -> PruningPlan:
    """Decide which experts stay, by exactly one of `tau`, `reduction`, `max_size`, `experts_per_layer` and `like`.

    Paper: Algorithm 3; method.md, section 2. `reduction` is the share of routed-expert parameters to remove at least;
    `max_size` bounds the bytes of tensors written; both solve for the largest tau that meets them. No layer keeps fewer
    experts than `min_experts`, by default its top_k. With `output` the plan is also written there.

    Several files of `evidence` of one checkpoint are taken together. Other criteria than `moeits` share removals out
    among layers by an `allocation`; counts are multiples of `multiple_of`. `write_order` is a JSONL file for the order
    of each layer's experts, {"<layer>": [best, ..., worst]}. `weights` weigh the sources that were calibrated on anew.

    Raises SettingError for an argument that is out of range, BudgetOutOfReach if floors are reached first,
    EvidenceError for broken evidence, OutputError if the plan cannot be written.
    """
    several = [evidence] if isinstance(evidence, (str, Path, Evidence)) else list(evidence)
    if output is not None:
        check_file_output(Path(output), inputs=(*several, budget.like, choice.protect))
    if write_order is not None:
        check_file_output(Path(write_order), inputs=(*several, budget.like, choice.protect, output))
    read = [each if isinstance(each, Evidence) else Evidence.load(each) for each in several]
    known = merged(read)
    if weights is not None:
        known = reweighed(known, weights_of(weights), criterion_named(choice.criterion).needs)
    planner = Planner(known, choice)
    made = planner.plan(budget=budget)
    if write_order is not None:
        write_whole(Path(write_order), _lines_of(planner.orders).encode())
    if output is not None:
        made.save(output)
    return made


def _lines_of(orders: Mapping[int, EliminationOrder]) -> str:
    """Layer by layer, whoever stays longest first."""
    return "".join(
        json.dumps({str(layer): [*order.kept_after(len(order.removed)), *reversed(order.removed)]}) + "\n"
        for layer, order in orders.items()
    )
