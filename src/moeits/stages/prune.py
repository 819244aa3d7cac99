"""Checkpoint x plan -> smaller checkpoint: removed experts physically gone (paper, Algorithm 2 and section 4.2).

Every tensor has exactly one fate - copy, take, rename or drop - and all fates are known before a byte is written. No
number is recomputed, so what is kept is kept to the bit, in any dtype; unless the plan has an edit, which gives tensors
of some kept experts the fifth fate, compute.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from moeits.checkpoint.fingerprints import Coverage
from moeits.checkpoint.opening import Opening
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_files import copy_side_files, side_files
from moeits.checkpoint.writing import CheckpointWriter, check_output, new_checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.edits.in_order import not_foreseen
from moeits.errors import SettingError
from moeits.experts.families import architecture_of
from moeits.experts.layout import MoELayout
from moeits.files import check_file_output, write_whole
from moeits.foreseen import copying, free_bytes
from moeits.progress import Progress, silent
from moeits.scoring.rehearsal import Rehearsal
from moeits.settings import with_settings
from moeits.sizes import parse_size
from moeits.surgery.bits import bits_file
from moeits.surgery.card import model_card
from moeits.surgery.carried_out import CarriedOut, carried_out, check_asked_layout, check_plan
from moeits.surgery.factors import check_factors_written
from moeits.surgery.pruned_config import LOADER_FILE
from moeits.surgery.settings import Writing
from moeits.surgery.written import check_written


@with_settings
def prune(
    model: str | Path | Checkpoint,
    *,
    plan: str | Path | PruningPlan,
    output: str | Path,
    writing: Writing,
    opening: Opening,
    any_fingerprint: bool = False,
    factors: bool = False,
    write_bits: str | Path | None = None,
    progress: Progress = silent,
) -> PruningPlan | Rehearsal:
    """Write the checkpoint that a plan leaves: removed experts gone, everything else as it was, bit for bit.

    Paper: Algorithm 2; method.md, section 3. Returns the plan as it was carried out; with `dry_run` only what it would
    take and leave. `layout` is `per-layer` (each layer its own count; opened by `moeits.load` or with
    trust_remote_code), `uniform` (the same count everywhere, opened by everything; an uneven plan is evened out along
    its order), or `auto`: uniform if the plan's counts are equal, else per-layer. No plan covers the experts of layers
    for multi-token prediction: a uniform checkpoint is written without these layers (`drop_mtp`), others keep them
    whole. Shards are at most `max_shard_size`, by default as large as the source's. With `any_fingerprint` the plan may
    have been made for another form of this model: the parent of a quantised one, or the same experts fused. By `verify`
    every byte is compared with what the plan was made for, or sampled ones. The output appears under its name only when
    complete. With `factors` the matrices of `--edit low-rank` are stored as two thin ones each, which only
    `moeits.load` and the code that travels with them open. `write_bits` is a file of the bits of `--edit quantize`, for
    GPTQModel (.json) or llm-compressor (.yaml).

    Raises PlanError if the plan is of another checkpoint or does not fit it, CheckpointError if the checkpoint is
    broken, OutputError if the output exists, lies in the source, or cannot be written.
    """
    plan = plan if isinstance(plan, PruningPlan) else PruningPlan.load(plan)
    checkpoint = opening.open(model, check=architecture_of, known=plan.family)
    checkpoint.known_as(plan.source, plan.fingerprint)
    moe = MoELayout.of(checkpoint)
    coverage = _verified(plan, checkpoint, moe, opening, any_fingerprint=any_fingerprint, progress=progress)
    made = carried_out(checkpoint, moe, plan, writing, coverage, factors=factors)
    shard_bytes = _shard_bytes(writing.max_shard_size, checkpoint)
    side_files(checkpoint)
    write_quantizer_file = _bits(write_bits, checkpoint, made.plan, moe, output)
    if writing.dry_run:
        return _rehearsed(checkpoint, made, Path(output), overwrite=writing.overwrite)
    with new_checkpoint(
        Path(output), sources=[checkpoint.folder], nbytes=made.nbytes, overwrite=writing.overwrite, progress=progress
    ) as writer:
        _write_all_but_tensors(writer, checkpoint, moe, made, writing.base_model)
        writer.write_tensors(made.tensors, max_shard_bytes=shard_bytes, progress=progress)
        _check_both_ends(checkpoint, writer.folder, moe, made)
    write_quantizer_file()
    return made.plan


def _write_all_but_tensors(
    writer: CheckpointWriter, checkpoint: Checkpoint, moe: MoELayout, made: CarriedOut, base_model: str | None
) -> None:
    left_out = copy_side_files(checkpoint, writer, rewritten=made.quantization_files)
    writer.write_json("config.json", made.config)
    if made.layout == "per-layer":
        writer.copy(Path(__file__).parents[1] / LOADER_FILE, LOADER_FILE)
    writer.write_text("plan.json", made.plan.to_json())
    writer.write_text("README.md", _card(checkpoint, moe, made, left_out, base_model))


def _bits(
    path: str | Path | None, checkpoint: Checkpoint, plan: PruningPlan, moe: MoELayout, output: str | Path
) -> Callable[[], None]:
    """What writes the file of bits, if one was asked for; its text is known. Raises SettingError, OutputError."""
    if path is None:
        return lambda: None
    check_file_output(Path(path), inputs=(checkpoint.folder, output))
    return partial(write_whole, Path(path), bits_file(Path(path), plan, checkpoint, moe).encode())


def _rehearsed(checkpoint: Checkpoint, made: CarriedOut, output: Path, *, overwrite: bool) -> Rehearsal:
    check_output(output, sources=[checkpoint.folder], overwrite=overwrite)
    return Rehearsal(
        source=checkpoint.source,
        output=str(output),
        reads_bytes=made.nbytes,
        writes_bytes=made.nbytes,
        work=(copying(made.nbytes, checkpoint.shards[0], output),),
        not_foreseen=not_foreseen(made.plan.edit.names) if made.plan.edit else (),
        experts_before=made.plan.summary["experts_before"],
        experts_kept=made.plan.summary["experts_kept"],
        bytes_before=checkpoint.nbytes,
        bytes_after=made.nbytes,
        disk_bytes=made.nbytes,
        disk_free_bytes=free_bytes(output),
    )


def _verified(
    plan: PruningPlan,
    checkpoint: Checkpoint,
    moe: MoELayout,
    opening: Opening,
    *,
    any_fingerprint: bool,
    progress: Progress,
) -> Coverage:
    """What is known of the weights, which are those of the plan, or of another form of its model.

    Of another form there is nothing to compare. Raises PlanError as `check_plan` and `Verifying.check` do.
    """
    check_plan(plan, checkpoint, moe, any_fingerprint=any_fingerprint)
    if any_fingerprint and plan.fingerprint != checkpoint.fingerprint:
        return opening.coverage(checkpoint, progress)
    return opening.check(plan.coverage, checkpoint, source=plan.source, progress=progress)


def _check_both_ends(checkpoint: Checkpoint, written: Path, moe: MoELayout, made: CarriedOut) -> None:
    """What was written fits its config, and is of the source as it was opened. Raises CheckpointError if not."""
    if made.factors:
        check_factors_written(written, made.tensors)
    else:
        check_written(written, moe, made.counts)
    checkpoint.check_unchanged()


def _card(checkpoint: Checkpoint, moe: MoELayout, made: CarriedOut, left_out: list[str], base_model: str | None) -> str:
    name, mtp_layers = base_model or checkpoint.source, str(moe.mtp) if moe.mtp.names else ""
    return model_card(name, checkpoint.folder, made.config, made.plan, left_out=left_out, mtp_layers=mtp_layers)


def check_request(checkpoint: Checkpoint, moe: MoELayout, *, output: str | Path, writing: Writing) -> None:
    """What can be wrong with a call of `prune` before there is a plan.

    Raises SettingError, CheckpointError or OutputError.
    """
    check_asked_layout(writing.layout, moe, drop_mtp=writing.drop_mtp)
    _shard_bytes(writing.max_shard_size, checkpoint)
    check_output(Path(output), sources=[checkpoint.folder], overwrite=writing.overwrite)
    side_files(checkpoint)


def _shard_bytes(max_shard_size: str | int | None, checkpoint: Checkpoint) -> int:
    if max_shard_size is None:
        return checkpoint.largest_shard_bytes
    asked = parse_size(max_shard_size, "--max-shard-size")
    if asked < 1:
        raise SettingError(f"--max-shard-size {max_shard_size} is out of range: give at least 1 byte, such as 5GB.")
    return asked
