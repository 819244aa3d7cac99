"""A pruning that was made, or rehearsed, and what came after it, as a person sees it."""

import json
from pathlib import Path
from typing import Any

from moeits.choosing.pruning_plan import PruningPlan
from moeits.console.foreseen import show_foreseen
from moeits.console.healing import show_healed
from moeits.console.plans import show_plan
from moeits.console.refitting import show_verdict
from moeits.scoring.rehearsal import Rehearsal


def show_pruning(made: PruningPlan | Rehearsal, arguments: dict[str, Any]) -> None:
    """A checkpoint that was written, or what writing it would take."""
    if isinstance(made, Rehearsal):
        show_foreseen(made)
    else:
        show_plan(made, arguments)


def show_simplified(made: PruningPlan | Rehearsal, arguments: dict[str, Any]) -> None:
    """As `show_pruning`; and what became of the refit or the healing that was asked for."""
    show_pruning(made, arguments)
    if isinstance(made, Rehearsal):
        return
    output = Path(arguments["output"])
    if arguments.get("refit"):
        show_verdict(_facts(output / "refit.json"))
    elif arguments.get("heal"):
        show_healed(_facts(output / "healing.json"))


def _facts(path: Path) -> dict[str, Any]:
    """What the stage has just written beside the weights."""
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts
