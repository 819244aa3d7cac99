"""What a measurement would take: its passes are known, and a few layers are timed."""

from moeits.checkpoint.reading import Checkpoint
from moeits.foreseen import Work, reading, seconds_of_checks
from moeits.measurement.settings import Workload
from moeits.timed_layers import NOT_TIMED, passes_of

# One more run of the model is spent before anything is measured, and one while its operations are counted.
_BESIDE = 2


def measuring(checkpoint: Checkpoint, workload: Workload) -> tuple[tuple[Work, ...], tuple[str, ...]]:
    """The work of one measurement, and what is not in it."""
    work = [reading(checkpoint.nbytes, checkpoint.shards[0], "counting zeros")]
    if not workload.run:
        return tuple(work), ()
    passes = passes_of(checkpoint, dtype=workload.dtype, device=workload.device)
    work.append(Work(what="starting a program of its own", times=1, seconds_each=seconds_of_checks()))
    work.append(reading(checkpoint.nbytes, checkpoint.shards[0], "loading the model"))
    prompts, steps = 2 * workload.repeats + _BESIDE, workload.repeats * workload.new_tokens
    prompt = None if passes is None else passes.seconds(workload.prompt_tokens)
    token = None if passes is None else passes.seconds(1)
    work.append(Work(what=f"prompts of {workload.prompt_tokens} tokens", times=prompts, seconds_each=prompt))
    work.append(Work(what="tokens generated one by one", times=steps, seconds_each=token))
    if workload.energy:
        work.append(Work(what="generating while energy is counted", times=1, seconds_each=workload.energy_seconds))
    untold = [] if passes else [NOT_TIMED]
    return tuple(work), tuple(untold)
