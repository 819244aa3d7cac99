"""Pruned checkpoint x conversations -> healed checkpoint: a short LoRA training, merged back (paper, 5.2)."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from moeits.checkpoint.opening import Source
from moeits.checkpoint.parts import HEALING_NAME
from moeits.checkpoint.reading import Checkpoint
from moeits.checkpoint.side_files import copy_side_files, side_files
from moeits.checkpoint.writing import CheckpointWriter, check_output, check_space, new_checkpoint
from moeits.choosing.pruning_plan import PruningPlan
from moeits.errors import HealingError, SettingError
from moeits.experts.families import check_stock_class, recorded_family
from moeits.experts.layout import MoELayout
from moeits.experts.quantized import BF16_COPY, quantized_as
from moeits.finished import workplace
from moeits.healing.adapter_files import ADAPTER_FOLDER, save_adapter
from moeits.healing.batches import MOST_HELD_OUT, Sequencer, TrainingData
from moeits.healing.conversations import Row, read_rows
from moeits.healing.job import HealingJob, Schedule, Trained
from moeits.healing.merging import merged_tensors
from moeits.healing.recipe import HealingRecipe, recipe_named
from moeits.healing.rehearsal import healing as healing_foreseen
from moeits.healing.run import HealingRun
from moeits.healing.settings import Made, Rows, Training
from moeits.healing.targets import check_adapter, targets_of, without_attention
from moeits.healing.template import Template
from moeits.progress import Progress, silent
from moeits.runtime import context_of, load_tokenizer, processes, quiet, text_config
from moeits.settings import Given, with_settings
from moeits.surgery.card import Afterwards, model_card
from moeits.surgery.healing_card import healed
from moeits.surgery.history import History
from moeits.surgery.pruned_config import LOADER_FILE
from moeits.surgery.written import check_written
from moeits.version import __version__

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Healing:
    """What a healing did. Losses are per held-out token, in nats; None where nothing was held out."""

    source: str
    fingerprint: str
    """Of the checkpoint that was healed."""
    recipe_name: str
    recipe: HealingRecipe
    seed: int
    data: Mapping[str, Any]
    """What became of the rows, and the fingerprint of what was trained on."""
    teacher: str | None
    trainable_parameters: int
    loss_before: float | None
    loss_after: float | None
    """With the adapter, at the best state."""
    loss_merged: float | None
    """Of the healed checkpoint as it is on disk."""
    best_step: int | None
    """The step whose state was kept, by held-out loss; None where nothing was held out: the last one."""
    curves: Mapping[str, Any]
    """Loss and learning rate while training, and the held-out loss, by step."""
    seconds: float
    """Of training, held-out losses included; after a resume, since the resume."""
    energy: Mapping[str, Any]
    """joules of the same, with the mode they were found by and, for a country, grams of CO2; or why there are none."""
    peak_memory_bytes: int
    """Of the process on a CPU, of the device on a GPU."""
    notes: tuple[str, ...]
    earlier: tuple[str, ...] = ()
    """Files that say what was done before since the pruning, oldest first (`surgery.history`)."""

    def facts(self) -> dict[str, Any]:
        """As healing.json keeps it. This is a run's own log, so it has a duration in it."""
        return {
            "format": FORMAT,
            "version": __version__,
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "recipe": self.recipe.facts(),
            "notes": list(self.notes),
        }


@with_settings
def heal(
    model: str | Path | Checkpoint,
    *,
    data: str | Path,
    output: str | Path,
    recipe: str = "paper",
    changes: Given[HealingRecipe],
    rows: Rows,
    training: Training,
    source: Source,
    teacher: str | Path | None = None,
    made: Made,
    progress: Progress = silent,
) -> Healing | Any:
    """Restore what pruning lost: a short LoRA training of router and experts, merged into an ordinary checkpoint.

    Paper: section 5.2; method.md, section 4. `recipe` is paper, authors-code, router-only or small, and every field of
    `HealingRecipe` can be given by itself. `data` is a file of conversations, instructions or texts, or a hub data set;
    `valid` another such file, or else a share `holdout` of the rows is held out. `teacher` is the unpruned model, for
    `objective="distillation"`. The healed checkpoint has the pruned one's layout, dtypes and names, and only adapted
    tensors differ. While a run is under way its state is in OUTPUT.healing; `resume` goes on from there. `energy`
    measures what the training takes, and with a `country` (ISO, three letters) its CO2. With `dry_run` a `Foreseen`
    says what it would take, and nothing is done.

    Raises HealingError if training cannot start, or must stop; CheckpointError, SettingError, OutputError as elsewhere.
    """
    checkpoint, output = source.open(model), Path(output)
    _check_room(checkpoint, output, overwrite=made.overwrite)
    plan = _plan_of(checkpoint)
    History.of(checkpoint.folder).told(HEALING_NAME)
    moe = MoELayout.of(checkpoint)
    _check_floats(checkpoint)
    check_adapter(moe.architecture, kept=made.keep_adapter)
    chosen, notes = _fit_context(recipe_named(recipe, moe.architecture).changed(changes), changes, checkpoint)
    notes += without_attention(checkpoint, chosen.targets)
    taught_by = _teacher(teacher, chosen, checkpoint, source)
    job = _job(checkpoint, moe, chosen, data=data, output=output, rows=rows, training=training, teacher=taught_by)
    if made.dry_run:
        return healing_foreseen(job, str(output))
    notes += _begun_anew(job, training)
    from moeits.healing.training import generators_restored, train

    with quiet(), generators_restored(), workplace(None if processes() > 1 else output, progress=progress):
        trained = train(job, progress)
        healing = _record(job, trained, recipe, notes)
        if not trained.is_main_process:
            return healing
        healing = _write(job, trained, healing, plan, output, made, progress=progress)
    job.run.remove()
    return healing


def _check_room(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> None:
    """The output can be written, with all that goes beside its tensors. Raises OutputError, CheckpointError."""
    check_output(output, sources=[checkpoint.folder], overwrite=overwrite)
    side_files(checkpoint)
    check_space(output, checkpoint.nbytes)


def _begun_anew(job: HealingJob, training: Training) -> list[str]:
    if training.goes_on and job.run.saved_nothing():
        return ["No state was saved before the interruption, so the training began anew."]
    return []


def _job(
    checkpoint: Checkpoint,
    moe: MoELayout,
    recipe: HealingRecipe,
    *,
    data: str | Path,
    output: Path,
    rows: Rows,
    training: Training,
    teacher: Checkpoint | None,
) -> HealingJob:
    """Everything decided, before any weight is loaded."""
    schedule = Schedule.of(recipe, training)
    targets = targets_of(checkpoint, moe, recipe.targets)
    run = HealingRun.beside(output)
    tokenizer = load_tokenizer(checkpoint)
    # A resumed run may be ended earlier than it was begun; its data are what it was begun with.
    whole = replace(recipe, steps=(run.steps() if training.goes_on else None) or recipe.steps)
    return HealingJob(
        checkpoint=checkpoint,
        moe=moe,
        recipe=recipe,
        targets=targets,
        data=_read_data(tokenizer, whole, data=data, rows=rows, seed=training.seed),
        pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        run=run,
        schedule=schedule,
        seed=training.seed,
        dtype=training.dtype,
        teacher=teacher,
    )


def check_healing(checkpoint: Checkpoint, *, data: str | Path, recipe: str) -> None:
    """What can be known to be wrong with a healing before there is anything to heal. Raises what `heal` raises."""
    moe = MoELayout.of(checkpoint)
    _check_floats(checkpoint)
    targets_of(checkpoint, moe, recipe_named(recipe, moe.architecture).targets)
    Template.of(load_tokenizer(checkpoint), "auto")
    if next(read_rows(data, samples=1), None) is None:
        raise HealingError("--data has no rows.")


def _check_floats(checkpoint: Checkpoint) -> None:
    """LoRA is added to weights, so they must be numbers that can be added to."""
    check_stock_class(checkpoint.config, checkpoint.source)
    if how := quantized_as(checkpoint):
        raise HealingError(
            f"{checkpoint.source} is quantized ({how}), and adapters cannot be merged into quantized weights. Prune "
            f"{BF16_COPY} by the same plan (moeits prune COPY --plan plan.json --any-fingerprint), heal that, and "
            "quantize the result."
        )


def _teacher(
    teacher: str | Path | None, recipe: HealingRecipe, student: Checkpoint, source: Source
) -> Checkpoint | None:
    """The teacher that a recipe asks for, if it speaks of the same tokens. Raises SettingError, HealingError."""
    if (recipe.objective == "distillation") != (teacher is not None):
        raise SettingError("--objective distillation and --teacher MODEL (the unpruned model) need each other.")
    if teacher is None:
        return None
    opened = source.described(teacher, known=recorded_family(student.config))
    sizes = [text_config(each).get("vocab_size") for each in (opened, student)]
    if sizes[0] != sizes[1]:
        raise HealingError(
            f"--teacher {opened.source} has a vocabulary of {sizes[0]} tokens, the pruned model {sizes[1]}. The "
            "teacher is the model that was pruned."
        )
    return opened


def _fit_context(
    recipe: HealingRecipe, changes: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[HealingRecipe, list[str]]:
    """The recipe with sequences that the model can read, and what to say about it."""
    context = context_of(checkpoint)
    if context is None or recipe.sequence_length <= context:
        return recipe, []
    if "sequence_length" in changes:
        raise SettingError(
            f"--sequence-length {recipe.sequence_length} is longer than the model's context of {context} tokens."
        )
    note = f"Sequences have {context} tokens, the model's context, instead of the recipe's {recipe.sequence_length}."
    return replace(recipe, sequence_length=context), [note]


def _read_data(tokenizer: Any, recipe: HealingRecipe, *, data: str | Path, rows: Rows, seed: int) -> TrainingData:
    sequencer = Sequencer(
        template=Template.of(tokenizer, recipe.template),
        length=recipe.sequence_length,
        packing=recipe.packing,
        answers_only=recipe.loss_on == "answer",
        most=recipe.sequences * processes(),
        seed=seed,
    )
    needed = sequencer.most / (1 if rows.valid is not None else 1 - rows.holdout)
    samples = rows.samples
    if samples is None and not recipe.packing:
        samples = ceil(needed)  # more rows than this are never trained on
    return sequencer.split(
        _rows(sequencer, data, samples, needed),
        samples=samples,
        holdout=rows.holdout,
        valid=None if rows.valid is None else _rows(sequencer, rows.valid, None, MOST_HELD_OUT),
    )


def _rows(sequencer: Sequencer, data: str | Path, samples: int | None, sequences: float) -> Iterator[Row]:
    """The rows of a file, or of a hub data set as many as are asked for or fill so many sequences."""
    rows = read_rows(data, samples=samples, seed=sequencer.seed)
    if samples is None and not Path(data).is_file():
        return sequencer.until_full(rows, sequences)
    return rows


def _record(job: HealingJob, trained: Trained, recipe_name: str, notes: list[str]) -> Healing:
    return Healing(
        source=job.checkpoint.source,
        fingerprint=job.checkpoint.fingerprint,
        recipe_name=recipe_name,
        recipe=job.recipe,
        seed=job.seed,
        data=job.data.facts(),
        teacher=None if job.teacher is None else job.teacher.source,
        trainable_parameters=job.trainable_parameters,
        loss_before=trained.loss_before,
        loss_after=trained.loss_after,
        loss_merged=None,
        best_step=trained.best_step,
        curves=trained.curves,
        seconds=round(trained.energy.seconds, 1),
        energy=asdict(trained.energy),
        peak_memory_bytes=trained.peak_memory_bytes,
        notes=tuple(notes),
        earlier=History.of(job.checkpoint.folder).before(HEALING_NAME),
    )


def _write(
    job: HealingJob,
    trained: Trained,
    healing: Healing,
    plan: PruningPlan | None,
    output: Path,
    made: Made,
    *,
    progress: Progress,
) -> Healing:
    """The healed checkpoint, with its loss measured on what was written, before it gets its name."""
    source = job.checkpoint
    tensors = merged_tensors(source, job.moe, job.targets, trained.factors, job.recipe.scale)
    with new_checkpoint(
        output, sources=[source.folder], nbytes=source.nbytes, overwrite=made.overwrite, progress=progress
    ) as writer:
        writer.write_tensors(tensors, max_shard_bytes=source.largest_shard_bytes, progress=progress)
        copy_side_files(source, writer)
        for name in (LOADER_FILE, "plan.json"):
            if (source.folder / name).is_file():
                writer.copy(source.folder / name, name)
        writer.write_json("config.json", source.config)
        check_written(writer.folder, job.moe)
        if made.keep_adapter:
            save_adapter(writer.folder / ADAPTER_FOLDER, job, trained.factors)
        healing = replace(healing, loss_merged=_loss_on_disk(job, writer))
        history = History.of(source.folder)
        history.copy(writer, HEALING_NAME)
        writer.write_json(HEALING_NAME, healing.facts())
        writer.write_text("README.md", _card(source, plan, [*history.told(HEALING_NAME), healed(healing.facts())]))
    return healing


def _card(pruned: Checkpoint, plan: PruningPlan | None, afterwards: list[Afterwards]) -> str:
    name = pruned.source if plan is None else plan.source
    return model_card(name, pruned.folder, pruned.config, plan, afterwards=afterwards)


def _plan_of(pruned: Checkpoint) -> PruningPlan | None:
    """The plan that a checkpoint was pruned by, if it carries one. Raises PlanError if that cannot be read."""
    path = pruned.folder / "plan.json"
    return PruningPlan.load(path) if path.is_file() else None


def _loss_on_disk(job: HealingJob, writer: CheckpointWriter) -> float | None:
    """Held-out loss of the checkpoint that is being written."""
    if not len(job.data.held_out):
        return None
    from moeits.healing.training import measure_held_out

    return measure_held_out(
        Checkpoint(writer.folder, source=job.checkpoint.source), job.data.held_out, job.pad, job.dtype
    )
