"""What a client is given, and what it says.

Nothing here needs more than numpy, for it runs in the environment of each client.
"""

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "clients"
FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v2_lite", "olmoe", "qwen3_moe")
LAYOUTS = ("unpruned", "uniform", "per-layer")
SERVED = (
    "deepseek_v3",
    "glm4_moe",
    "minimax_m2",
    "ernie4_5_moe",
    "phimoe",
    "qwen3_next",
    "dots1",
    "hunyuan_v1_moe",
    "glm4_moe_lite",
    "granitemoe",
    "gpt_oss",
    "qwen3_vl_moe",
    "qwen3_5_moe",
)
"""Further families, which servers alone are given."""
SERVERS = ("vllm",)
"""Clients that are given them."""
PADDED = ("deepseek_v3", "glm4_moe", "minimax_m2", "dots1")
"""Those of them whose unequal layers can be padded."""
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


def cases(client: str = "vllm") -> Iterator[Case]:
    """What a client is given, in the order of its file; a server by default, which is given all there is."""
    for family in (*FAMILIES, *SERVED) if client in SERVERS else FAMILIES:
        for layout in (*LAYOUTS, "padded") if family in PADDED else LAYOUTS:
            yield Case(family, layout)


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

    def in_logprobs(self) -> "Reference":
        """Its logits as log-probabilities, which servers tell; in float64, since a sum over a vocabulary in float32 is
        itself 3e-5 off."""

        def told(logits: np.ndarray) -> np.ndarray:
            exact = logits.astype(np.float64)
            return exact - np.logaddexp.reduce(exact, axis=-1, keepdims=True)

        return replace(self, logits=told(self.logits), unpruned=told(self.unpruned))

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
