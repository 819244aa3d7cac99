"""The run of a recipe, as a person sees it."""

from typing import Any

from moeits.console import out
from moeits.stages.run import Ran


def show_ran(made: Ran, _arguments: dict[str, Any]) -> None:
    """Which steps there were, and where their results are."""
    out(f"{made.model}: {', '.join(made.steps)}")
    out(f"written: {made.output} (the last checkpoint is {made.checkpoint})")
