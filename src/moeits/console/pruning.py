"""A pruning that was made, or rehearsed, and what came after it, as a person sees it."""

import json
from pathlib import Path
from typing import Any

from moeits.choosing.pruning_plan import PruningPlan
from moeits.console import out
from moeits.console.healing import show_healed
from moeits.console.plans import show_plan
from moeits.console.refitting import show_verdict
from moeits.scoring.rehearsal import Rehearsal
from moeits.sizes import format_size


def show_pruning(made: PruningPlan | Rehearsal, arguments: dict[str, Any]) -> None:
    """A checkpoint that was written, or what writing it would take."""
    if isinstance(made, Rehearsal):
        show_rehearsal(made)
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


def show_rehearsal(found: Rehearsal) -> None:
    """Sizes, disk, memory and time, each with its unit."""
    kept = "as scores decide" if found.experts_kept is None else f"{found.experts_kept:,}"
    after = "as scores decide" if found.bytes_after is None else format_size(found.bytes_after)
    out("dry run: nothing was written")
    out(f"experts      {found.experts_before:,} -> {kept}")
    out(f"tensors      {format_size(found.bytes_before)} -> {after}")
    most = "at most " if found.bytes_after is None else ""
    out(f"disk         {most}{format_size(found.disk_bytes)}; {format_size(found.disk_free_bytes)} free")
    if found.scoring_seconds is not None and found.scoring_memory_bytes is not None:
        out(
            f"scoring      {duration(found.scoring_seconds)} (an estimate, from one pair timed on this machine), "
            f"{format_size(found.scoring_memory_bytes)} of weights held at a time"
        )
    if found.watched_tokens is not None and found.watching_memory_bytes is not None:
        out(
            f"calibration  {found.watched_tokens:,} tokens through every layer, about "
            f"{format_size(found.watching_memory_bytes)} of memory; its time is not estimated"
        )


def duration(seconds: float) -> str:
    """About how long, in the unit that a person would use."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {max(1, round(seconds))} s"
