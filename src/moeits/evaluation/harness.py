"""A checkpoint as a language model of lm-evaluation-harness, which also counts the prompts that did not fit."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from math import isfinite
from typing import Any

from moeits.checkpoint.reading import Checkpoint
from moeits.devices import checked_device
from moeits.errors import EvaluationError, MissingExtra, MoeitsError
from moeits.evaluation.settings import Inference
from moeits.evaluation.tasks import LoadedTask
from moeits.experts.promises import ranks_of_factors
from moeits.progress import Progress
from moeits.runtime import context_of, load_checked, load_tokenizer, need, processes


class CutPrompts:
    """Mixed in before a harness model: how long each request is, and a report of progress.

    A request is one choice of one item: its context and its continuation. `room` is how many tokens of both together
    the model takes before the harness cuts the context from the left.
    """

    room: int
    progress: Progress
    what: str = ""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:  # noqa: ARG002
        self.tokens: dict[tuple[int, int], int] = {}
        self._asked, self._done = requests, 0
        found: list[Any] = super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[misc]
        self.progress(self.what, len(requests), len(requests))
        return found

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = True, **more: Any) -> list[Any]:  # noqa: ARG002
        for request, (_, context, continuation) in zip(self._asked, requests, strict=True):
            self.tokens[request.doc_id, request.idx] = len(context) + len(continuation)
        found: list[Any] = super()._loglikelihood_tokens(requests, disable_tqdm=True, **more)  # type: ignore[misc]
        return found

    def _model_call(self, inputs: Any, **more: Any) -> Any:
        logits = super()._model_call(inputs, **more)  # type: ignore[misc]
        self._done = min(self._done + len(inputs), len(self._asked))
        self.progress(self.what, self._done, len(self._asked))
        return logits

    def get_model_info(self) -> dict[str, Any]:
        # The harness would ask the hub about a model that it was given in memory.
        return {}


def language_model(checkpoint: Checkpoint, inference: Inference, progress: Progress) -> Any:
    """The checkpoint behind the harness's interface, unequal counts per layer included.

    Raises SettingError for a device that is not there, EvaluationError where vLLM cannot serve the checkpoint,
    MissingExtra.
    """
    model = (_with_transformers if inference.backend == "hf" else _with_vllm)(checkpoint, inference)
    model.progress = progress
    return model


def _with_transformers(checkpoint: Checkpoint, inference: Inference) -> Any:
    huggingface = need("lm_eval.models.huggingface", extra="eval")
    context_of(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    accelerator = _accelerator()
    where = str(accelerator.device) if accelerator is not None else inference.device
    if where != "split":
        where = checked_device(where)
    model = load_checked(checkpoint, dtype=inference.dtype, device_map="auto" if where == "split" else {"": where})
    counted = type("HFLM", (CutPrompts, huggingface.HFLM), {})
    made = counted(pretrained=model.eval(), tokenizer=tokenizer, batch_size=inference.batch_size)
    if accelerator is not None:
        # The harness leaves the division of work to whoever hands it a model in memory.
        made.accelerator = accelerator
        made._rank, made._world_size = accelerator.process_index, accelerator.num_processes
    made.room = made.max_length + 1
    return made


def _with_vllm(checkpoint: Checkpoint, inference: Inference) -> Any:
    """Unequal counts by the plug-in that vLLM finds where moeits is installed. Not run on a GPU."""
    if ranks_of_factors(checkpoint.config):
        raise EvaluationError("--backend vllm has no class for experts stored as factors: evaluate with --backend hf.")
    try:
        import vllm  # noqa: F401
    except ImportError:
        raise MissingExtra("--backend vllm needs vllm, which is not installed: pip install vllm") from None
    causal = need("lm_eval.models.vllm_causallms", extra="eval")
    counted = type("VLLM", (CutPrompts, causal.VLLM), {})
    settings = {"batch_size": inference.batch_size, "dtype": inference.dtype, "trust_remote_code": False}
    try:
        made = counted(pretrained=str(checkpoint.folder), **settings)
    except ValueError as error:  # also of a config that vLLM, or the plug-in, does not take
        said = str(error).partition("Value error, ")[2] or str(error)  # pydantic's way to tell it
        sentence = next(iter(said.strip().splitlines()), type(error).__name__).partition(" [type=")[0]
        raise EvaluationError(f"vLLM does not open {checkpoint.folder}: {sentence}") from error
    made.room = made.max_length - 1
    return made


def _accelerator() -> Any:
    """What `accelerate launch` made of this process, if it is one of several."""
    if processes() == 1:
        return None
    accelerate = need("accelerate", extra="eval")
    # A process may wait for the slowest one longer than the ten minutes that are usual.
    patience = accelerate.utils.InitProcessGroupKwargs(timeout=timedelta(weeks=1))
    return accelerate.Accelerator(kwargs_handlers=[patience])


# ------------------------------------------------------------------------------------------------ one task


def run_task(task: LoadedTask, model: Any, *, limit: int | None) -> dict[str, Any] | None:
    """Run one task through the harness: its `row` in the results, and its `samples` as columns.

    None in every process of several but the first. Raises EvaluationError for a row that cannot be asked.
    """
    lm_eval = need("lm_eval", extra="eval")
    model.what, model.tokens = f"evaluating {task.name}", {}
    try:
        found = lm_eval.evaluate(
            lm=model, task_dict={"tasks": {task.name: task.harness}}, limit=limit, log_samples=True
        )
    except MoeitsError:
        raise
    except Exception as error:
        _check_rows(task)
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise EvaluationError(
            f"The harness could not run {task.name} ({type(error).__name__}: {reason}). Try --limit 1, or another task."
        ) from error
    lengths = [each for part in model.gather_object(model.tokens) or [] for each in part.items()]
    if found is None:
        return None
    samples = sorted(found["samples"][task.name], key=lambda sample: sample["doc_id"])
    columns = _columns(samples)
    row = {
        **_metrics(found["results"][task.name]),
        "num_fewshot": found["n-shot"][task.name],
        "n_samples": dict(found["n-samples"][task.name]),
        "chance": _chance(columns.get("loglikelihoods", ())),
        "version": found["versions"][task.name],
        "prompts": _prompts(dict(lengths), model.room),
        "files": dict(task.files),
    }
    return {"row": row, "samples": columns}


def _check_rows(task: LoadedTask) -> None:
    """Every row can be put as a question. Raises EvaluationError; the harness does not say which row it was at."""
    harness = task.harness
    examples = harness.fewshot_docs() if harness.get_config("num_fewshot") else ()
    for what, rows in (("item", harness.eval_docs), ("example", examples)):
        for number, row in enumerate(rows, 1):
            try:
                harness.doc_to_text(row)
                harness.doc_to_target(row)
                if harness.OUTPUT_TYPE == "multiple_choice" and not list(harness.doc_to_choice(row)):
                    raise ValueError("it has no choices")
            except Exception as error:
                raise EvaluationError(
                    f"{what.capitalize()} {number} of {task.name} cannot be asked ({error!s:.120}). Its fields are not "
                    f"what the stock data set has; see {' and '.join(task.files) or 'the data set'}."
                ) from None


def _metrics(found: Mapping[str, Any]) -> dict[str, float | None]:
    """`acc,none` as `acc`; a metric behind another filter keeps the filter's name. No number is null."""
    return {
        name.removesuffix(",none"): float(value) if isinstance(value, int | float) and isfinite(value) else None
        for name, value in found.items()
        if "," in name
    }


def _columns(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One list per fact, in the order of the items."""
    first = samples[0]["filter"]
    items = [sample for sample in samples if sample["filter"] == first]
    columns: dict[str, Any] = {"doc_hash": [item["doc_hash"][:16] for item in items]}
    for name in sorted(items[0]["metrics"]):
        values = [item[name] for item in items]
        if all(isinstance(value, int | float) for value in values):
            columns[name] = [float(value) for value in values]
    if all(isinstance(answer, tuple | list) for item in items for answer in item["filtered_resps"]):
        columns["loglikelihoods"] = [[round(float(answer[0]), 6) for answer in i["filtered_resps"]] for i in items]
    return columns


def _chance(loglikelihoods: Iterable[list[float]]) -> float | None:
    """Accuracy of a guess: the mean of one over the number of choices; None where there are no choices."""
    shares = [1 / len(choices) for choices in loglikelihoods]
    return sum(shares) / len(shares) if shares else None


def _prompts(lengths: Mapping[tuple[int, int], int], room: int) -> dict[str, int] | None:
    """How many requests, and items, had their context cut from the left; None if the task has no such requests."""
    if not lengths:
        return None
    cut = [key for key, tokens in lengths.items() if tokens > room]
    return {
        "requests": len(lengths),
        "requests_cut": len(cut),
        "items_cut": len({item for item, _ in cut}),
        "longest_tokens": max(lengths.values()),
        "room_tokens": room,
    }
