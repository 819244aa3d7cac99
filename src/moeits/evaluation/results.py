"""What an evaluation found, as a file: the numbers, what they were made with, and every single item."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from moeits.errors import EvaluationError
from moeits.files import write_whole
from moeits.notebook import html_table
from moeits.run_files import Number
from moeits.typed_json import Count, NotOfItsType, Typed, convert_typed, read_typed

FORMAT = 1
# 200,000 items of four choices are a sixth of it; read, it takes ten times as much.
_MOST_BYTES = 2**27

Columns = Mapping[str, Sequence[str | int | float | Sequence[float]]]
"""One list per fact of an item: `doc_hash`, each metric, `loglikelihoods` of its choices."""


class ModelFacts(TypedDict):
    """Which model was evaluated."""

    source: str
    fingerprint: str
    parameters: Count
    bytes: Count
    model_type: NotRequired[str]
    plan_sha256: NotRequired[str | None]
    experts: NotRequired[dict[str, Count]]


class ItemCounts(TypedDict):
    """Items of a task, and how many of them were asked."""

    original: Count
    effective: Count


class PromptCounts(TypedDict):
    """Requests and items whose prompt was cut from the left, and why."""

    requests: Count
    requests_cut: Count
    items_cut: Count
    longest_tokens: Count
    room_tokens: Count


class TaskFacts(TypedDict):
    """What is in the row of a task beside its metrics, which are numbers or null."""

    num_fewshot: Count
    n_samples: ItemCounts
    chance: Number | None
    version: Number | str | None
    prompts: PromptCounts | None
    files: NotRequired[dict[str, str]]


class PerplexityFacts(TypedDict):
    """Of a text: what was read, and the loss on it."""

    nats_per_token: Number
    bits_per_byte: Number
    file: str
    sha256: str
    window_tokens: Count
    documents: Count
    tokens: Count
    bytes: Count
    stride_tokens: NotRequired[Count]
    unit: NotRequired[str]
    parent: NotRequired[str]
    kl_to_parent: NotRequired[Number]
    same_first_choice: NotRequired[Number]


class Generations(TypedDict):
    """Of answers to short prompts: how many there are, and which shares end and loop."""

    prompts: Count
    new_tokens: Count
    """The most that an answer may have."""
    ended: Number
    looped: Number


class TextUnits(TypedDict):
    """Nats and tokens of each document, or of each window of the only one."""

    nats: list[Number]
    tokens: list[Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]]


@dataclass(frozen=True, kw_only=True)
class Results:
    """One model on some tasks and, if asked for, on a text. docs/evaluation.md describes every field.

    The same model, settings, data and versions give the same bytes: there is no time and no path in it.
    """

    model: ModelFacts
    """source, fingerprint, model_type, parameters, bytes, plan_sha256, experts per layer."""
    settings: Mapping[str, Any]
    """What was asked for: shots, batch size, limit, backend, dtype, context, seeds, number of processes."""
    versions: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Task -> its metrics with standard errors, shots, samples, prompts that were cut, hashes of local files."""
    perplexity: PerplexityFacts | None = None
    generations: Generations | None = None
    samples: Mapping[str, Columns] = field(default_factory=dict)
    """Task -> one column per fact of an item, in the order of the items; `perplexity` -> nats and tokens per unit."""

    def _repr_html_(self) -> str:
        """Each task with its accuracies, and the loss on a text, for a notebook."""
        rows = [
            (name, *("" if row.get(metric) is None else f"{row[metric]:.4f}" for metric in ("acc", "acc_norm")), "")
            for name, row in self.tasks.items()
        ]
        if self.perplexity is not None:
            rows.append((self.perplexity["file"], "", "", f"{self.perplexity['nats_per_token']:.4f}"))
        return html_table(str(self.model.get("source", "")), ("", "acc", "acc_norm", "nats per token"), rows)

    def facts(self) -> dict[str, Any]:
        """The results as the JSON value that the file holds."""
        return {"format": FORMAT, "kind": "results", **asdict(self)}

    def to_json(self) -> str:
        """The text of the file: what a person reads first, one line of samples per task last."""
        facts = self.facts()
        samples = facts.pop("samples")
        rows = ",\n".join(f"    {json.dumps(task)}: {json.dumps(columns)}" for task, columns in samples.items())
        return json.dumps(facts, indent=2).removesuffix("\n}") + ',\n  "samples": {\n' + rows + "\n  }\n}\n"

    def save(self, path: str | Path) -> None:
        """Write the file, all or nothing."""
        write_whole(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read results back. Raises EvaluationError if the file holds none, or is of a newer format."""
        results = read_typed(
            path,
            cls,
            error=EvaluationError,
            what="results of moeits evaluate",
            remedy="Evaluate again.",
            missing=f"There are no results {path}. Make them with: moeits evaluate MODEL --output {path}",
            kind="results",
            format=FORMAT,
            most_bytes=_MOST_BYTES,
        )
        try:
            _check(results)
        except NotOfItsType as error:
            raise EvaluationError(f"{path} is not results of moeits evaluate: {error}. Evaluate again.") from None
        return results


def _check(results: Results) -> None:
    """What a type cannot say: rows have metrics of any name, and the columns of a task are of one length."""
    for task, row in results.tasks.items():
        metrics = {name: value for name, value in row.items() if name not in TaskFacts.__annotations__}
        _as(row, TaskFacts, f"tasks.{task}")
        _as(metrics, dict[str, Number | None], f"tasks.{task}")
        _check_columns(task, results.samples.get(task, {}))
    if results.perplexity is not None and "perplexity" in results.samples:
        units = _as(results.samples["perplexity"], TextUnits, "samples.perplexity")
        if len(units["nats"]) != len(units["tokens"]):
            raise NotOfItsType("samples.perplexity has columns of different lengths")
        if not results.perplexity["tokens"] or not results.perplexity["bytes"]:
            raise NotOfItsType("perplexity is of a text without tokens")


def _check_columns(task: str, columns: Columns) -> None:
    for name, column in columns.items():
        where = f"samples.{task}.{name}"
        if name == "doc_hash":
            _as(column, list[str], where)
        elif name == "loglikelihoods":
            _as(column, list[list[Number]], where)
        else:
            _as(column, list[Number], where)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise NotOfItsType(f"samples.{task} has columns of different lengths, {_some(lengths)}"[:200])


def _as(value: object, of: type[Typed], where: str) -> Typed:
    try:
        return convert_typed(value, of)
    except NotOfItsType as error:
        raise NotOfItsType(f"{error} (within {where:.60})") from None


def _some(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name:.40} {length}" for name, length in list(lengths.items())[:4])
