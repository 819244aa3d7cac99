"""moeits: prune the experts of Mixture-of-Experts language models, and see what it costs.

    checkpoint -score-> evidence -plan-> plan.json -prune-> checkpoint

Each stage is a function and a command of the same name; `simplify` walks the whole line. Importing this package imports
no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moeits.version import __version__

if TYPE_CHECKING:
    from moeits.checkpoint.reading import Checkpoint
    from moeits.choosing.pruning_plan import PruningPlan
    from moeits.errors import MoeitsError
    from moeits.evaluation.results import Results
    from moeits.evidence import Evidence
    from moeits.runtime import load
    from moeits.stages.calibrate import calibrate
    from moeits.stages.compare import Comparison, compare
    from moeits.stages.compare_criteria import CriteriaComparison, compare_criteria
    from moeits.stages.evaluate import evaluate
    from moeits.stages.export import Export, export
    from moeits.stages.forecast import Forecast, forecast
    from moeits.stages.gather import gather
    from moeits.stages.heal import Healing, heal
    from moeits.stages.inspect import Inspection, inspect
    from moeits.stages.measure import Footprint, measure
    from moeits.stages.plan import plan
    from moeits.stages.prune import prune
    from moeits.stages.push import Pushed, push
    from moeits.stages.refit import Refitting, refit
    from moeits.stages.report import report
    from moeits.stages.run import Ran, run
    from moeits.stages.score import score
    from moeits.stages.simplify import simplify
    from moeits.stages.sweep import sweep

__all__ = [
    "Checkpoint",
    "Comparison",
    "CriteriaComparison",
    "Evidence",
    "Export",
    "Footprint",
    "Forecast",
    "Healing",
    "Inspection",
    "MoeitsError",
    "PruningPlan",
    "Pushed",
    "Ran",
    "Refitting",
    "Results",
    "__version__",
    "calibrate",
    "compare",
    "compare_criteria",
    "evaluate",
    "export",
    "forecast",
    "gather",
    "heal",
    "inspect",
    "load",
    "measure",
    "plan",
    "prune",
    "push",
    "refit",
    "report",
    "run",
    "score",
    "simplify",
    "sweep",
]

# Imported when asked for: a command does so under the guard of `__main__`, where Ctrl-C is one line from the start.
_HOMES = {
    "calibrate": "moeits.stages.calibrate",
    "Refitting": "moeits.stages.refit",
    "refit": "moeits.stages.refit",
    "Checkpoint": "moeits.checkpoint.reading",
    "PruningPlan": "moeits.choosing.pruning_plan",
    "MoeitsError": "moeits.errors",
    "Results": "moeits.evaluation.results",
    "Evidence": "moeits.evidence",
    "load": "moeits.runtime",
    "Comparison": "moeits.stages.compare",
    "compare": "moeits.stages.compare",
    "CriteriaComparison": "moeits.stages.compare_criteria",
    "compare_criteria": "moeits.stages.compare_criteria",
    "evaluate": "moeits.stages.evaluate",
    "Export": "moeits.stages.export",
    "export": "moeits.stages.export",
    "Forecast": "moeits.stages.forecast",
    "forecast": "moeits.stages.forecast",
    "Healing": "moeits.stages.heal",
    "gather": "moeits.stages.gather",
    "heal": "moeits.stages.heal",
    "Inspection": "moeits.stages.inspect",
    "inspect": "moeits.stages.inspect",
    "Footprint": "moeits.stages.measure",
    "measure": "moeits.stages.measure",
    "plan": "moeits.stages.plan",
    "prune": "moeits.stages.prune",
    "report": "moeits.stages.report",
    "Pushed": "moeits.stages.push",
    "push": "moeits.stages.push",
    "Ran": "moeits.stages.run",
    "run": "moeits.stages.run",
    "score": "moeits.stages.score",
    "simplify": "moeits.stages.simplify",
    "sweep": "moeits.stages.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
