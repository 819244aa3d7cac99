"""Evidence x criterion x budget -> who stays."""

from collections.abc import Sequence
from pathlib import Path

from moeits.choosing.planner import Planner
from moeits.choosing.pruning_plan import PruningPlan
from moeits.choosing.settings import Budget, Choice
from moeits.evidence import Evidence, merged
from moeits.files import check_file_output
from moeits.settings import with_settings


@with_settings
def plan(
    evidence: str | Path | Evidence | Sequence[str | Path | Evidence],
    *,
    output: str | Path | None = None,
    budget: Budget,
    choice: Choice,
) -> PruningPlan:
    """Decide which experts stay, by exactly one of `tau`, `reduction`, `max_size`, `experts_per_layer` and `like`.

    Paper: Algorithm 3; method.md, section 2. `reduction` is the share of routed-expert parameters to remove at least;
    `max_size` bounds the bytes of tensors written; both solve for the largest tau that meets them. No layer keeps fewer
    experts than `min_experts`, by default its top_k. With `output` the plan is also written there.

    Several files of `evidence` of one checkpoint are taken together. Other criteria than `moeits` share removals out
    among layers by an `allocation`; counts are multiples of `multiple_of`.

    Raises SettingError for an argument that is out of range, BudgetOutOfReach if floors are reached first,
    EvidenceError for broken evidence, OutputError if the plan cannot be written.
    """
    several = [evidence] if isinstance(evidence, (str, Path, Evidence)) else list(evidence)
    if output is not None:
        check_file_output(Path(output), inputs=(*several, budget.like))
    read = [each if isinstance(each, Evidence) else Evidence.load(each) for each in several]
    made = Planner(merged(read), choice).plan(budget=budget)
    if output is not None:
        made.save(output)
    return made
