"""What an evaluation found, as a file: the numbers, what they were made with, and every single item."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from moeits.errors import EvaluationError
from moeits.evidence import write_whole

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Results:
    """One model on some tasks and, if asked for, on a text. docs/evaluation.md describes every field.

    The same model, settings, data and versions give the same bytes: there is no time and no path in it.
    """

    model: Mapping[str, Any]
    """source, fingerprint, model_type, parameters, bytes, plan_sha256, experts per layer."""
    settings: Mapping[str, Any]
    """What was asked for: shots, batch size, limit, backend, dtype, context, seeds, number of processes."""
    versions: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Task -> its metrics with standard errors, shots, samples, prompts that were cut, hashes of local files."""
    perplexity: Mapping[str, Any] | None = None
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Task -> one column per fact of an item, in the order of the items; `perplexity` -> nats and tokens per unit."""

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
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EvaluationError(
                f"There are no results {path}. Make them with: moeits evaluate MODEL --output {path}"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise EvaluationError(f"{path} cannot be read as JSON: {error}.") from None
        if not isinstance(value, dict) or value.get("kind") != "results":
            raise EvaluationError(f"{path} holds no results of moeits evaluate.")
        if value.get("format") != FORMAT:
            raise EvaluationError(f"{path} has format {value.get('format')}; this moeits reads format {FORMAT}.")
        try:
            return cls(**{each.name: value[each.name] for each in fields(cls)})
        except KeyError as error:
            raise EvaluationError(f"{path} is incomplete: it has no {error}. Evaluate again.") from None
