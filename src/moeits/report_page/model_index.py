"""Results as the hub reads them off a model card: the field `model-index` of its front matter."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moeits.evaluation.results import Results

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# A key of the front matter with all that is indented, or a list, below it.
_FIELD = re.compile(r"^model-index:.*\n(?:[ -].*\n)*", re.M)
_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.S | re.M)


def with_model_index(card: str, name: str, results: Results) -> str:
    """A card whose front matter tells these results, in place of older ones; all other lines stay as they are.

    A card without front matter stays as it is.
    """
    from huggingface_hub.repocard_data import eval_results_to_model_index
    from yaml import safe_dump  # huggingface_hub brings it

    front, entries = _FRONT.match(card), list(_entries(results))
    if front is None or not entries:
        return card
    index = safe_dump({"model-index": eval_results_to_model_index(name, entries)}, sort_keys=False, allow_unicode=True)
    return f"---\n{_FIELD.sub('', front[1])}{index}---\n{card[front.end() :]}"


def _entries(results: Results) -> "Iterator[EvalResult]":
    """An entry for each number that was measured, with what it was asked with."""
    from huggingface_hub import EvalResult

    for task, row in results.tasks.items():
        for metric in ("acc", "acc_norm"):
            if row.get(metric) is not None:
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=f"{task}, {row['num_fewshot']} shots",
                    metric_type="accuracy",
                    metric_name=metric,
                    metric_value=row[metric],
                )
    if results.perplexity is not None:
        yield EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=results.perplexity["file"],
            metric_type="loss",
            metric_name="nats per token",
            metric_value=results.perplexity["nats_per_token"],
        )
