"""What a refit asks of its checkpoints, of its tokens and of the memory."""

from moeits.checkpoint.opening import Verifying
from moeits.checkpoint.parts import REFIT_NAME
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_files import side_files
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import CalibrationError, PlanError
from moeits.experts.families import check_stock_class
from moeits.experts.layout import MoELayout
from moeits.experts.quantized import BF16_COPY, quantized_as
from moeits.progress import Progress
from moeits.refitting.memory import check_memory
from moeits.sizes import parse_size
from moeits.surgery.as_pruned import check_as_pruned
from moeits.surgery.history import History

TOKENS_OF_AN_EXPERT = 4
"""An expert is sent so many on average, at the least, or it is not fitted."""


def check_pair(pruned: Checkpoint, parent: Checkpoint, verifying: Verifying, progress: Progress) -> None:
    """The parent is what the plan was made for, and the pruned checkpoint what the plan left.

    Raises PlanError if not, CalibrationError for weights that cannot be fitted, CheckpointError for files beside them
    that could not be copied.
    """
    side_files(pruned)
    History.of(pruned.folder).told(REFIT_NAME)
    for checkpoint in (pruned, parent):
        check_floats(checkpoint)
    path = pruned.folder / "plan.json"
    if not path.is_file():
        raise PlanError(
            f"{pruned.source} has no plan.json, so moeits did not prune it. Give the pruned checkpoint first, and "
            "what it was pruned from as --parent."
        )
    plan = PruningPlan.load(path)
    if plan.fingerprint != parent.fingerprint:
        raise PlanError(
            f"{pruned.source} was pruned from {plan.source} (fingerprint {plan.fingerprint[:12]}), but {parent.source} "
            f"has fingerprint {parent.fingerprint[:12]}. Give the checkpoint that it was pruned from as --parent."
        )
    verifying.check(plan.coverage, parent, source=plan.source, progress=progress)
    check_as_pruned(pruned, parent, plan, full=verifying.reads_all(pruned), progress=progress)


def check_can_be_fitted(checkpoint: Checkpoint, tokens: int, memory: str | int) -> None:
    """Its weights can be fitted on so many tokens within `--memory`: all that headers tell, before any token is made.

    Raises CalibrationError, with what would do.
    """
    check_floats(checkpoint)
    _check_enough(tokens, MoELayout.of(checkpoint))
    check_memory(checkpoint, tokens, parse_size(memory, "--memory"))


def check_floats(checkpoint: Checkpoint) -> None:
    """Its weights are numbers that can be fitted. Raises CalibrationError."""
    check_stock_class(checkpoint.config, checkpoint.source)
    if how := quantized_as(checkpoint):
        raise CalibrationError(
            f"{checkpoint.source} is quantized ({how}), and a refit computes new weights. Prune {BF16_COPY} by the "
            "same plan with --any-fingerprint, refit that, and quantize the result."
        )


def _check_enough(tokens: int, layout: MoELayout) -> None:
    """An expert is sent four tokens on average at the least. Raises CalibrationError."""
    need_most = max(TOKENS_OF_AN_EXPERT * moe.num_experts // moe.top_k for moe in layout.layers.values())
    if tokens < need_most:
        raise CalibrationError(f"{tokens} tokens are too few for a fit: give --tokens {need_most} or more.")
