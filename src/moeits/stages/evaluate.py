"""What a checkpoint can still do: lm-evaluation-harness on its tasks, and perplexity on a text."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moeits.checkpoint.opening import Source
from moeits.checkpoint.reading import Checkpoint
from moeits.errors import CheckpointError, EvaluationError, OutputError, SettingError
from moeits.evaluation.generations import generations_of
from moeits.evaluation.harness import language_model, run_task
from moeits.evaluation.perplexity import Text, perplexity_of, read_text
from moeits.evaluation.quiet import quiet
from moeits.evaluation.rehearsal import LONGEST_WINDOW, evaluating, held_by
from moeits.evaluation.results import ModelFacts, Results
from moeits.evaluation.settings import Inference, Questions
from moeits.evaluation.tasks import SEEDS, load_tasks
from moeits.experts.counting import parameters_of
from moeits.experts.families import recorded_family
from moeits.experts.layout import MoELayout
from moeits.experts.promises import ranks_of_factors
from moeits.files import check_file_output
from moeits.finished import Workplace, workplace
from moeits.foreseen import Foreseen, free_bytes, reading
from moeits.progress import Progress, silent
from moeits.runtime import load_checked, load_tokenizer, need
from moeits.settings import with_settings
from moeits.version import __version__

_NOT_TASKS = ("perplexity", "generations")


@with_settings
def evaluate(
    model: str | Path | Checkpoint,
    *,
    output: str | Path | None = None,
    questions: Questions,
    inference: Inference,
    source: Source,
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Results | Any:
    """Measure what a checkpoint can do, on tasks of lm-evaluation-harness or on a text, and keep every single item.

    Paper: sections 5.1-5.3; the defaults are its setting, five tasks with 15 examples in each prompt, batches of 40.
    `tasks` are names, or `paper` for those five, which is what runs if neither tasks nor `perplexity` is given. `limit`
    takes only the first items of each task, and the first documents of a text. With `data_dir` the data come from that
    folder and not from the hub. `perplexity` is a text file, read in windows of `window` tokens; with `parent`, which
    is then in memory too, it is also said how near the two models are there. `generate` lets a chat model answer that
    many short prompts, and counts the answers that end and that loop. `device` is one of torch's, or `split` to spread
    one model over all of them.

    With `output` the results are also written there, and a task that is finished is not run again after an
    interruption. Under `accelerate launch` the items are shared out among the processes. With `dry_run` only a
    `Foreseen` is made.

    Raises SettingError for arguments out of range, EvaluationError for data that are not there, CheckpointError,
    MissingExtra, OutputError.
    """
    if questions.perplexity is not None and inference.backend != "hf":
        raise SettingError("--perplexity needs --backend hf.")
    output, checkpoint = _writable(output), source.open(model)
    if output is not None:
        check_file_output(output, inputs=(checkpoint.folder, questions.perplexity, questions.data_dir))
    data_dir = None if questions.data_dir is None else Path(questions.data_dir)
    text = None if questions.perplexity is None else read_text(questions.perplexity, questions.limit)
    parent = None if questions.parent is None else _parent(questions.parent, checkpoint, source)
    if dry_run:
        return _foreseen(checkpoint, output, questions, inference, text, parent)
    with quiet(), TemporaryDirectory() as scratch:
        # Tasks before the model: a file that is not there should not cost the minutes of loading weights.
        tasks = load_tasks(questions.names, data_dir=data_dir, num_fewshot=questions.num_fewshot, scratch=Path(scratch))
        lm = language_model(checkpoint, inference, progress)
        output = output if lm.rank == 0 else None
        with workplace(output, fresh=fresh, progress=progress) as place:
            run = _Run(lm, checkpoint, _facts(questions, inference, lm), place)
            for task in tasks:
                run.part(task.name, partial(run_task, task, lm, limit=questions.limit), files=dict(task.files))
            _other_parts(run, lm, text, parent, questions, progress)
            return _kept(run.results(), output)


def _kept(results: Results, output: Path | None) -> Results:
    """The results, written if they were asked for so."""
    if output is not None:
        results.save(output)
    return results


def _foreseen(
    checkpoint: Checkpoint,
    output: Path | None,
    questions: Questions,
    inference: Inference,
    text: Text | None,
    parent: Checkpoint | None,
) -> Foreseen:
    models = [checkpoint, *([parent] if parent else [])]
    work, untold = evaluating(checkpoint, questions, inference, text, models=len(models))
    read = sum(each.nbytes for each in models)
    return Foreseen(
        source=checkpoint.source,
        output=None if output is None else str(output),
        reads_bytes=read,
        disk_bytes=0,
        disk_free_bytes=free_bytes(output),
        memory_bytes=held_by(checkpoint, inference, text, len(models)),
        work=(reading(read, checkpoint.shards[0], "loading the model"), *work),
        not_foreseen=untold,
    )


def _other_parts(
    run: "_Run", lm: Any, text: Text | None, parent: Checkpoint | None, questions: Questions, progress: Progress
) -> None:
    """What is measured beside the tasks."""
    if text is not None:
        size = questions.window or min(lm.max_length, LONGEST_WINDOW)
        asked = {"text": text.sha256, "window": size, **({"parent": parent.fingerprint} if parent else {})}
        run.part("perplexity", partial(_perplexity, lm, text, size, parent, progress), **asked)
    if questions.generate is not None:
        answers = partial(generations_of, lm.model, lm.tokenizer, questions.generate, progress)
        run.part("generations", answers, prompts=questions.generate)


def _facts(questions: Questions, inference: Inference, lm: Any) -> dict[str, Any]:
    """What the results are of, beside the model, the tasks and the text themselves."""
    return {
        "num_fewshot": questions.num_fewshot,
        "batch_size": inference.batch_size,
        "limit": questions.limit,
        "data": "local" if questions.data_dir else "hub",
        "backend": inference.backend,
        "dtype": str(getattr(lm.model, "dtype", inference.dtype)).removeprefix("torch."),
        "context_tokens": lm.max_length,
        "seeds": SEEDS,
        "processes": lm.world_size,
    }


class _Run:
    """One evaluation under way: its parts, each run once, kept on disk by the first of several processes."""

    def __init__(self, lm: Any, checkpoint: Checkpoint, settings: dict[str, Any], place: Workplace) -> None:
        from importlib.metadata import version

        self._lm, self._settings, self._model = lm, settings, _model_facts(checkpoint)
        self._versions = {
            "moeits": __version__,
            **{name: version(name) for name in ("lm_eval", "transformers", "torch", "datasets")},
        }
        self._finished = place.parts(
            stage="evaluate",
            model=self._model,
            shards=checkpoint.stamps,
            settings=settings,
            versions=self._versions,
        )
        self._parts: dict[str, dict[str, Any]] = {}

    def part(self, name: str, work: Callable[[], dict[str, Any] | None], **depends_on: Any) -> None:
        """Run one part, or take it from an earlier run. `work` gives its row and its samples."""
        found = self._shared(self._finished.value(name, **depends_on))
        if found is None:
            found = self._shared(work())
            assert found is not None
            self._finished.keep_value(name, found, **depends_on)
        self._parts[name] = found

    def results(self) -> Results:
        """All parts together."""
        return Results(
            model=self._model,
            settings=self._settings,
            versions=self._versions,
            tasks={name: part["row"] for name, part in self._parts.items() if name not in _NOT_TASKS},
            perplexity=self._parts["perplexity"]["row"] if "perplexity" in self._parts else None,
            generations=self._parts["generations"]["row"] if "generations" in self._parts else None,
            samples={name: part["samples"] for name, part in self._parts.items()},
        )

    def _shared(self, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the first process has, in all of them."""
        if self._lm.world_size == 1:
            return value
        found: list[Any] = need("accelerate", extra="eval").utils.broadcast_object_list([value])
        return found[0]


def _perplexity(lm: Any, text: Text, window: int, parent: Checkpoint | None, progress: Progress) -> dict[str, Any]:
    processes = getattr(lm, "accelerator", None)
    beside = None
    if parent is not None:
        beside = load_checked(parent, dtype=lm.model.dtype, device_map={"": str(lm.model.device)}).eval()
    found = perplexity_of(
        lm.model, lm.tokenizer, text, window=window, parent=beside, processes=processes, progress=progress
    )
    if parent is not None:
        found["row"]["parent"] = parent.source
    return found


def _parent(parent: str | Path, checkpoint: Checkpoint, source: Source) -> Checkpoint:
    """The unpruned model, which speaks of the same tokens. Raises EvaluationError if it does not."""
    opened = source.described(parent, known=recorded_family(checkpoint.config))
    if load_tokenizer(opened).get_vocab() != load_tokenizer(checkpoint).get_vocab():
        raise EvaluationError(
            f"--parent {opened.source} has other tokens than {checkpoint.source}, so their predictions cannot be "
            "compared. Give the model that it was pruned from."
        )
    return opened


def _model_facts(checkpoint: Checkpoint) -> ModelFacts:
    """What was evaluated. A dense model has no experts."""
    if ranks := ranks_of_factors(checkpoint.config):
        experts = {str(layer): len(next(iter(of_layer.values()))) for layer, of_layer in ranks.items()}
    else:
        try:
            layers = MoELayout.of(checkpoint, padded=True).layers
            experts = {str(layer): moe.num_experts for layer, moe in layers.items()}
        except CheckpointError:
            experts = {}
    return {
        "source": checkpoint.source,
        "fingerprint": checkpoint.fingerprint,
        "model_type": checkpoint.config["model_type"],
        "parameters": sum(parameters_of(checkpoint).values()),
        "bytes": checkpoint.nbytes,
        "plan_sha256": (checkpoint.config.get("moeits") or {}).get("plan_sha256"),
        "experts": experts,
    }


def _writable(output: str | Path | None) -> Path | None:
    """The output as a path; an evaluation of hours should not end at a folder that is not there."""
    if output is not None and not Path(output).parent.is_dir():
        raise OutputError(f"{output} cannot be written: there is no folder {Path(output).parent}.")
    return Path(output) if output is not None else None
