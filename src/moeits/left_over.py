"""What `simplify` has beside its output until that is made: the pruned checkpoint, and what a killed run left of it."""

import os
import shlex
from pathlib import Path

from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.writing import check_output
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import OutputError, PlanError
from moeits.finished import Workplace
from moeits.surgery.history import History


def is_left_over(pruned: Path, wanted: PruningPlan, output: str | Path, place: Workplace) -> bool:
    """Whether a run that was killed while it refitted has left the checkpoint that is wanted.

    Such a run has written down before that it would make it; one that somebody else made is not ours to remove. Raises
    OutputError if that, or another one, is there.
    """
    begun = place.parts(stage="simplify", plan=wanted.to_json())
    if not os.path.lexists(pruned):
        begun.keep_value("pruned", {"begun": True})
        return False
    if begun.value("pruned") is None or PruningPlan.load(pruned / "plan.json").to_json() != wanted.to_json():
        raise OutputError(_go_on_refitting(pruned, output))
    return True


def _go_on_refitting(pruned: Path, output: str | Path) -> str:
    go_on = shlex.join(["moeits", "refit", str(pruned), "--parent", "MODEL", "--output", str(output)])
    return f"{pruned} is left over from an earlier run. Remove it to begin again, or go on with: {go_on}"


def beside(output: Path) -> Path:
    """Where the pruned checkpoint lies until what is made from it is done."""
    return output.with_name(output.name + ".pruned")


def check_room_for_refit(checkpoint: Checkpoint, pruned: Path, output: Path, *, overwrite: bool) -> None:
    """Nothing of an interrupted refit is in the way. Raises OutputError, which says how to go on."""
    if os.path.lexists(pruned):
        try:
            left = PruningPlan.load(pruned / "plan.json").fingerprint
        except PlanError:
            left = None
        if left != checkpoint.fingerprint or History.of(pruned).names:
            raise OutputError(_go_on_refitting(pruned, output))
        return
    check_output(pruned, sources=[checkpoint.folder], overwrite=overwrite)


def check_room_for_healing(
    checkpoint: Checkpoint, pruned: Path, output: Path, data: str | Path, recipe: str, *, overwrite: bool
) -> None:
    """Nothing of an interrupted healing is in the way. Raises OutputError, which says how to go on with it."""
    check_output(pruned, sources=[checkpoint.folder], overwrite=True)
    healing = output.with_name(output.name + ".healing")
    if os.path.lexists(pruned) and not (overwrite and not healing.exists()):
        go_on = ["moeits", "heal", str(pruned), "--data", str(data), "--recipe", recipe, "--output", str(output)]
        go_on += ["--resume"] if healing.exists() else []
        both = f" and {healing}" if healing.exists() else ""
        raise OutputError(
            f"{pruned} is left over from an earlier run. Remove it{both} to begin again, or go on with: "
            + shlex.join(go_on)
        )
    if healing.exists():
        raise OutputError(f"{healing} is left over from an earlier healing. Remove it to begin again.")
