"""moeits: make Mixture-of-Experts language models smaller without losing what they know.

    checkpoint -score-> evidence -plan-> plan.json -prune-> checkpoint

Each stage is a function and a command of the same name; `simplify` walks the whole line. Importing this package imports
no torch.
"""

from moeits.checkpoint import Checkpoint
from moeits.compare import Comparison, compare
from moeits.errors import MoeitsError
from moeits.evaluate import evaluate
from moeits.evaluation.results import Results
from moeits.evidence import Evidence
from moeits.heal import Healing, heal
from moeits.inspect import Inspection, inspect
from moeits.measure import Footprint, measure
from moeits.plan import plan
from moeits.prune import prune
from moeits.pruning_plan import PruningPlan
from moeits.report import report
from moeits.runtime import load
from moeits.score import score
from moeits.simplify import simplify
from moeits.sweep import sweep
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
