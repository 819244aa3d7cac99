"""transformers' Trainer, set up so that a run can be killed, goes on where it was, and keeps its best state.

This module imports torch and transformers; nothing imports it before a model is healed.
"""

import errno
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from moeits.checkpoint.reading import Checkpoint
from moeits.errors import HealingError, MoeitsError, OutputError
from moeits.healing.adapters import adapt, check_same_weights, check_trainable, factors_of
from moeits.healing.batches import Sequences, collate
from moeits.healing.job import HealingJob, Schedule, Trained
from moeits.healing.objective import Batch, Objective, RouterBalance, balance_of, held_out_loss, objective_of
from moeits.healing.recipe import HealingRecipe
from moeits.healing.run import HealingRun
from moeits.measurement.energy import EnergyMeter
from moeits.measurement.memory import peak_bytes
from moeits.progress import Progress
from moeits.runtime import load_checked

ADAPTER_FILE = "adapter.safetensors"
_HELD_OUT_BATCH = 8
# Less than this left on a disk, and a failed write was for want of room.
_LITTLE_SPACE = 1 << 20


class HealingTrainer(transformers.Trainer):
    """The stock Trainer with our loss; its checkpoints hold the adapter alone, the model is on disk already."""

    def __init__(
        self, *, objective: Objective, balance: RouterBalance | None, balance_weight: float, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._adapted = arguments["model"]
        self._held_out: Sequences = arguments["eval_dataset"]
        self._run = Path(arguments["args"].output_dir)
        self._objective = objective
        self._balance = balance
        self._balance_weight = balance_weight
        # Our loss is divided by all trained tokens of a step, so Trainer must not divide by the micro-batches again.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective per trained token of the whole step, plus the balance term per micro-batch.

        Raises HealingError if it is not finite.
        """
        if self._balance is not None:
            self._balance.start()
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        tokens = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"][:, 1:] >= 0).sum()
        # Processes average their gradients, and `tokens` counts those of all of them.
        loss = self._objective(inputs, logits) / tokens * self.args.world_size
        if self._balance is not None:
            share = self._balance_weight / self.args.gradient_accumulation_steps
            loss = loss + share * self._balance(inputs).to(loss.device)
        if not torch.isfinite(loss):
            raise HealingError(self._why_not_finite())
        return (loss, None) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss per held-out token, in nats."""
        batches = held_out_batches(self._held_out, self.data_collator, self.args.device)
        total, tokens = held_out_loss(self._adapted, batches)
        metrics = {"eval_loss": total / tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir) if output_dir else self._run
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name for name, parameter in self._adapted.named_parameters() if parameter.requires_grad}
        state = state_dict if state_dict is not None else self._adapted.state_dict()
        save_file({n: t.detach().cpu().contiguous() for n, t in state.items() if n in trained}, folder / ADAPTER_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        with _damage_as_a_sentence(resume_from_checkpoint):
            load_adapter(self._adapted, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _damage_as_a_sentence(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _damage_as_a_sentence(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        load_adapter(self._adapted, Path(self.state.best_model_checkpoint or ""))

    def _why_not_finite(self) -> str:
        saved = [step for step, _ in HealingRun(self._run).checkpoints()]
        kept = (
            f"The last good state, step {saved[-1]}, is kept: --resume --steps {saved[-1]} makes a checkpoint of it"
            if saved
            else "No state was saved before it"
        )
        return (
            f"The loss became NaN or infinite at step {self.state.global_step + 1}. {kept}; or start again with "
            "--fresh and a lower --learning-rate."
        )


class Reporter(transformers.TrainerCallback):
    """Tells `progress` of every step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._progress("healing", state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:
            # The last state is a candidate for the best one, whatever the rhythm of looks and checkpoints.
            control.should_evaluate = control.should_save = True


@contextmanager
def generators_restored() -> Iterator[None]:
    """The random generators of Python, NumPy and torch are as they were, whatever happens in the block."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    # Of every accelerator too: transformers seeds them all.
    devices = range(torch.accelerator.device_count()) if torch.accelerator.is_available() else ()
    kind = torch.accelerator.current_accelerator()
    with torch.random.fork_rng(devices=list(devices), device_type=kind.type if kind is not None else "cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002


def train(job: HealingJob, progress: Progress) -> Trained:
    """Train the adapters of a job, from the start or from where its run was killed.

    In a distributed run (accelerate launch) every process calls this; only the main one touches the run's folder.
    Raises HealingError if what trains is not what was asked for, or if the loss is not finite.
    """
    arguments = _arguments(job.recipe, job.schedule, job.run.folder, job.seed, len(job.data.held_out) > 0)
    # Trainer's arguments are what joins the processes; asked before that, each would think that it is the main one.
    assert arguments.device is not None
    _check_devices(arguments.n_gpu)
    state, how = accelerate.PartialState(), job.schedule
    if state.is_main_process:
        job.run.check_space(job.trainable_parameters)
        job.run.check(job.identity(), steps=job.recipe.steps, resume=how.resume, fresh=how.fresh)
    # Before the run begins: models that cannot be loaded leave nothing behind.
    model = _adapted_model(job)
    teacher = None if job.teacher is None else load_model(job.teacher, job.dtype).to(arguments.device)
    if state.is_main_process:
        job.run.begin(job.identity(), steps=job.recipe.steps, fresh=how.fresh)
    state.wait_for_everyone()
    trainer = _trainer(job, arguments, model, teacher, progress)
    loss_before = _loss_before(job, trainer, state.is_main_process)
    meter = EnergyMeter(wanted=how.energy and state.is_main_process, country=how.country)
    meter.start()
    saved = job.run.checkpoints()
    reached = [folder for step, folder in saved if step == job.recipe.steps]
    if reached:
        _restore(trainer, reached[0])
    else:
        if saved:
            check_state(saved[-1][1])
        with _full_disk_as_a_sentence(job.run):
            trainer.train(resume_from_checkpoint=str(saved[-1][1]) if saved else None)
    energy = meter.stop()
    return Trained(
        factors=factors_of(trainer.model, job.targets),
        loss_before=loss_before,
        loss_after=trainer.state.best_metric,
        best_step=trainer.state.best_global_step,
        curves=_curves(trainer.state.log_history),
        energy=energy,
        peak_memory_bytes=peak_bytes(arguments.device) or 0,
        is_main_process=state.is_main_process,
    )


def _check_devices(visible: int) -> None:
    """One process trains on one device, and holds the whole model. Raises HealingError."""
    if visible > 1:
        # Trainer would wrap the model in DataParallel, which moves weights that adapters were tied to.
        raise HealingError(
            f"{visible} GPUs are visible, and one process trains on one. Start a process for each with accelerate "
            "launch -m moeits heal ..., or show only one: CUDA_VISIBLE_DEVICES=0 moeits heal ..."
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise HealingError(
            "Healing cannot split a model among devices by FSDP yet: its adapters are read from the whole model. "
            "Configure accelerate for several GPUs without FSDP."
        )


@contextmanager
def _full_disk_as_a_sentence(run: HealingRun) -> Iterator[None]:
    """A disk that fills up while a state is saved: torch, safetensors and Python each say it in their own way."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}
        if not full and shutil.disk_usage(run.folder).free > _LITTLE_SPACE:
            raise
        saved = [step for step, _ in run.checkpoints()]
        kept = f"step {saved[-1]} is kept: make room and go on with --resume" if saved else "no state was saved before"
        raise OutputError(f"The disk of {run.folder.parent} became full while training; {kept}.") from None


# What Trainer restores; it goes on without a word where one of them is missing.
_STATE = ("optimizer.pt", "scheduler.pt", "trainer_state.json", ADAPTER_FILE)


def check_state(state: Path) -> None:
    """A saved state is whole, as far as its names and Trainer's own record go. Raises HealingError."""
    if missing := [name for name in _STATE if not (state / name).is_file()]:
        raise HealingError(f"{state} lacks {missing[0]}, so it cannot be resumed. {_without(state)}")
    with _damage_as_a_sentence(state):
        transformers.TrainerState.load_from_json(str(state / "trainer_state.json"))


@contextmanager
def _damage_as_a_sentence(state: str | Path | None) -> Iterator[None]:
    """Around the reading of a state alone: torch, pickle, json and safetensors each say it in their own way."""
    try:
        yield
    except (MoeitsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if state is None:
            raise
        raise HealingError(
            f"{state} cannot be resumed: a file of it is damaged ({type(error).__name__}). {_without(Path(state))}"
        ) from error


def _without(state: Path) -> str:
    return f"Remove {state.name} and --resume from the state before it, or start again with --fresh."


def load_model(checkpoint: Checkpoint, dtype: str) -> Any:
    """The stock model of a checkpoint; `dtype` auto is bfloat16 on a GPU and float32 on a CPU."""
    if dtype == "auto":
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    model = load_checked(checkpoint, dtype=getattr(torch, dtype))
    # Stock models add their own balance term to the loss where this is set; it means nothing for unequal layers.
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.output_router_logits = False
    return model


def _adapted_model(job: HealingJob) -> Any:
    transformers.set_seed(job.seed)
    model = load_model(job.checkpoint, job.dtype)
    check_same_weights(model, job.targets, job.checkpoint, job.moe)
    adapt(model, job.targets, job.moe, job.recipe)
    check_trainable(model, job.targets, job.recipe)
    return model


def _trainer(
    job: HealingJob, arguments: transformers.TrainingArguments, model: Any, teacher: Any, progress: Progress
) -> HealingTrainer:
    trainer = HealingTrainer(
        objective=objective_of(job.recipe, teacher),
        balance=balance_of(model, job.moe, job.recipe),
        balance_weight=job.recipe.balance,
        model=model,
        args=arguments,
        train_dataset=job.data.training,
        eval_dataset=job.data.held_out,
        data_collator=partial(collate, pad=job.pad),
        callbacks=[Reporter(progress)],
    )
    # The library never prints; whoever wants a log asks for it with report_to.
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _loss_before(job: HealingJob, trainer: HealingTrainer, is_main_process: bool) -> float | None:
    """Held-out loss of the pruned model: an adapter that was not trained yet changes nothing."""
    known = job.run.read().get("loss_before")
    if known is None and len(job.data.held_out):
        known = trainer.evaluate()["eval_loss"]
        if is_main_process:
            job.run.note(loss_before=known)
    transformers.set_seed(job.seed)
    return known


def _restore(trainer: HealingTrainer, checkpoint: Path) -> None:
    """Take over the result of a run that had done all its steps: its best state, else its last."""
    check_state(checkpoint)
    trainer.state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint
    kept = Path(best) if best and Path(best).is_dir() else checkpoint
    with _damage_as_a_sentence(kept):
        load_adapter(trainer.model, kept)


def _arguments(
    recipe: HealingRecipe, schedule: Schedule, run: Path, seed: int, has_held_out: bool
) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(run),
        # Said outright, for otherwise accelerate looks for a device and leaves the processes of a CPU run apart.
        use_cpu=not torch.accelerator.is_available(),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=round(recipe.warmup * recipe.steps),
        weight_decay=recipe.weight_decay,
        neftune_noise_alpha=recipe.neftune or None,
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, recipe.steps // 50),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if has_held_out else "no",
        eval_steps=schedule.evaluate_every,
        save_strategy="steps",
        save_steps=schedule.save_every,
        # The best state and the last one.
        save_total_limit=2,
        load_best_model_at_end=has_held_out,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        activation_checkpointing=schedule.gradient_checkpointing or None,
        activation_checkpointing_kwargs={"use_reentrant": False} if schedule.gradient_checkpointing else None,
        report_to=list(schedule.report_to) or "none",
        remove_unused_columns=False,
        disable_tqdm=True,
        # Every adapter takes part in every step: experts are stacked, and one without tokens gets a zero gradient.
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def measure_held_out(checkpoint: Checkpoint, held_out: Sequences, pad: int, dtype: str) -> float:
    """Loss per held-out token of a checkpoint on disk, in nats."""
    device = accelerate.PartialState().device
    model = load_model(checkpoint, dtype).to(device)
    total, tokens = held_out_loss(model, held_out_batches(held_out, partial(collate, pad=pad), device))
    return total / tokens


def held_out_batches(sequences: Sequences, collator: Any, device: Any) -> Iterator[Batch]:
    """The held-out sequences as batches, longest first, so that the first one tells whether they fit."""
    pairs = sorted(sequences.pairs, key=lambda pair: len(pair[0]), reverse=True)
    for start in range(0, len(pairs), _HELD_OUT_BATCH):
        batch = collator(pairs[start : start + _HELD_OUT_BATCH])
        yield {name: value.to(device) for name, value in batch.items()}


def load_adapter(model: Any, checkpoint: Path) -> None:
    """Put a saved adapter into an adapted model. Raises HealingError if it is another model's."""
    saved = load_file(checkpoint / ADAPTER_FILE)
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in own.items()}:
        raise HealingError(
            f"The adapter in {checkpoint.name} is of another checkpoint or recipe. Start again with --fresh."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def _curves(history: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Trainer's log as two curves: loss and learning rate while training, and the held-out loss."""
    training = [
        {"step": row["step"], "loss": row["loss"], "learning_rate": row["learning_rate"]}
        for row in history
        if "loss" in row
    ]
    held_out = {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}
    return {"training": training, "held_out": [{"step": step, "loss": loss} for step, loss in held_out.items()]}
