"""What a client is given, and what it says.

Nothing here needs more than numpy, for it runs in the environment of each client.
"""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "clients"
FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v2_lite", "olmoe", "qwen3_moe")
LAYOUTS = ("unpruned", "uniform", "per-layer")
PROMPT, CHOICES = "It was a truth universally", (" acknowledged", " denied by the king", " 42")
WRITTEN = 12
"""Tokens that a text is continued by."""


@dataclass(frozen=True)
class Case:
    """One checkpoint: a family, unpruned or pruned to a layout."""

    family: str
    layout: str

    @property
    def name(self) -> str:
        return f"{self.family}-{self.layout}"

    def folder(self, models: Path) -> Path:
        return models / self.name


@dataclass(frozen=True)
class Reference:
    """What a checkpoint should compute, by stock transformers."""

    tokens: np.ndarray
    """(2, length): two texts."""
    logits: np.ndarray
    """(2, length, vocabulary), float32."""
    written: np.ndarray
    """How the first text goes on, greedily."""
    unpruned: np.ndarray
    """The logits of the unpruned model: how far off a client would be that opened another model."""
    after_prompt: np.ndarray
    """The tokens with which PROMPT goes on, greedily."""
    loglikelihoods: np.ndarray
    """Of each of CHOICES after PROMPT."""

    def write(self, case: Case, models: Path) -> None:
        np.savez_compressed(models / f"{case.name}.npz", **asdict(self))

    @classmethod
    def read(cls, case: Case, models: Path) -> "Reference":
        with np.load(models / f"{case.name}.npz") as file:
            return cls(**{name: file[name] for name in file.files})


@dataclass
class Row:
    """What one client made of one checkpoint."""

    family: str
    layout: str
    max_difference: float | None = None
    """Between its logits and the reference's; None where it gives none."""
    largest_logit: float | None = None
    unpruned_difference: float | None = None
    """Between the reference's logits and those of the unpruned model."""
    same_text: bool | None = None
    """Whether it goes on with the reference's tokens, greedily."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else was seen."""
    error: str | None = None
    """The client's own, where it stopped."""


def compared(case: Case, reference: Reference, logits: Any, written: Any = None) -> Row:
    """A row of logits, which may be of the first text alone, and of what was written."""
    found = np.asarray(logits, dtype=np.float32).reshape(-1, *reference.logits.shape[1:])
    expected = reference.logits[: len(found)]
    row = Row(case.family, case.layout)
    row.max_difference = _rounded(np.abs(found - expected).max())
    row.largest_logit = _rounded(np.abs(expected).max())
    row.unpruned_difference = _rounded(np.abs(expected - reference.unpruned[: len(found)]).max())
    if written is not None:
        row.same_text = np.asarray(written).tolist() == reference.written.tolist()
    return row


def _rounded(value: Any) -> float:
    return float(f"{float(value):.2g}")


def last_line(error: BaseException) -> str:
    """A client's own error, as short as it can be told, without a path of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    told = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    words = [word for word in told.split() if not word.startswith(("/", "'/", "`/"))]
    return f"{type(error).__name__}: {' '.join(words)}"[:240]


def write_result(client: str, packages: Sequence[str], command: str, rows: Sequence[Row]) -> Path:
    """docs/clients/CLIENT.json."""
    versions: Mapping[str, str] = {name: importlib.metadata.version(name) for name in packages}
    result = {
        "client": client,
        "versions": {"python": platform.python_version(), **versions},
        "command": command,
        "rows": [{key: value for key, value in asdict(row).items() if value not in (None, {})} for row in rows],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{client}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
