"""What a healing would take: its steps are known, and a step of a few layers is timed."""

from moeits.foreseen import Foreseen, Work, copying, free_bytes, reading
from moeits.healing.job import HealingJob
from moeits.timed_layers import NOT_TIMED, passes_of, weights_in

# A weight, the gradient of an adapter and the two moments of AdamW, in float32.
_OF_AN_ADAPTER = 16


def healing(job: HealingJob, output: str) -> Foreseen:
    """Of a job that was decided and not begun."""
    checkpoint, recipe = job.checkpoint, job.recipe
    dtype = "float32" if job.dtype == "auto" else job.dtype
    passes = passes_of(checkpoint, dtype=dtype, learns=True)
    tokens = job.data.facts()["tokens"] / recipe.steps
    step = None if passes is None else passes.seconds(tokens, recipe.accumulation) * passes.backward
    held_out = len(job.data.held_out) * recipe.sequence_length
    look = None if passes is None else passes.seconds(held_out)
    untold: list[str] = []
    if passes is None:
        untold.insert(0, NOT_TIMED)
    if job.teacher is not None:
        untold.insert(0, "The teacher's passes are not in the seconds.")
    return Foreseen(
        source=checkpoint.source,
        output=output,
        reads_bytes=2 * checkpoint.nbytes,
        writes_bytes=checkpoint.nbytes,
        disk_bytes=checkpoint.nbytes + 3 * _OF_AN_ADAPTER * job.trainable_parameters // 4,
        disk_free_bytes=free_bytes(output),
        memory_bytes=weights_in(checkpoint, dtype) + _OF_AN_ADAPTER * job.trainable_parameters,
        work=(
            reading(checkpoint.nbytes, checkpoint.shards[0]),
            Work(what=f"steps of {tokens:,.0f} tokens", times=recipe.steps, seconds_each=step),
            Work(what="looks at the held-out loss", times=_looks(job), seconds_each=look),
            copying(checkpoint.nbytes, checkpoint.shards[0], output),
        ),
        not_foreseen=tuple(untold),
    )


def _looks(job: HealingJob) -> int:
    """Before, on the way, merged in memory and merged on disk."""
    return 3 + job.recipe.steps // job.schedule.evaluate_every if len(job.data.held_out) else 0
