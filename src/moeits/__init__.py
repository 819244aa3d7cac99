"""moeits: make Mixture-of-Experts language models smaller without losing what they know.

    checkpoint -score-> evidence -plan-> plan.json -prune-> checkpoint

Each stage is a function and a command of the same name; `simplify` walks the whole line. Importing this package imports
no torch.
"""

from moeits.checkpoint.reading import Checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import MoeitsError
from moeits.evaluation.results import Results
from moeits.evidence import Evidence
from moeits.runtime import load
from moeits.stages.compare import Comparison, compare
from moeits.stages.evaluate import evaluate
from moeits.stages.heal import Healing, heal
from moeits.stages.inspect import Inspection, inspect
from moeits.stages.measure import Footprint, measure
from moeits.stages.plan import plan
from moeits.stages.prune import prune
from moeits.stages.report import report
from moeits.stages.score import score
from moeits.stages.simplify import simplify
from moeits.stages.sweep import sweep
from moeits.version import __version__

__all__ = [
    "Checkpoint",
    "Comparison",
    "Evidence",
    "Footprint",
    "Healing",
    "Inspection",
    "MoeitsError",
    "PruningPlan",
    "Results",
    "__version__",
    "compare",
    "evaluate",
    "heal",
    "inspect",
    "load",
    "measure",
    "plan",
    "prune",
    "report",
    "score",
    "simplify",
    "sweep",
]
