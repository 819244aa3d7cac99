"""The table of predicted and measured rises in docs/forecast.md, made from the files in docs/validity.

    python scripts/forecast_table.py

Predicted: forecast-MODEL.json, judged by the bundled text, and forecast-MODEL-alike.json, by other documents of the
sources by which was measured. Measured: the criteria.json of the run of that model at that size, with the same tokens,
under whatever name.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeits.criteria_file import CriteriaFile, read_criteria

FOLDER = Path(__file__).parents[1] / "docs" / "validity"
MODELS = {
    "qwen2moe": "Qwen2-MoE type",
    "mixtral": "Mixtral type",
    "deepseekv2": "DeepSeek-V2 type",
    "demo": "demo model",
}
JUDGES = {"": "the bundled text", "-alike": "text alike"}
BUDGET = 0.05
TOKENS = {"data": ["self"], "tokens": 8192, "held_out": 8192, "window": 128, "seed": 0}


@dataclass(frozen=True)
class Compared:
    """A rise as it was predicted by each judge, and as it was measured; each with its interval."""

    model: str
    reduction: float
    state: str
    predicted: tuple[Mapping[str, Any], ...]
    measured: Mapping[str, Any]

    def lies_in(self, judge: int) -> bool:
        """Whether the measured rise lies in the interval of a prediction."""
        return bool(self.predicted[judge]["low"] <= self.measured["rise"] <= self.predicted[judge]["high"])

    def below(self, judge: int) -> bool:
        """Whether it was predicted too low: the measured rise lies above the interval."""
        return bool(self.predicted[judge]["high"] < self.measured["rise"])


def runs() -> list[CriteriaFile]:
    """The comparisons that were made with these tokens, refitted as by default."""
    found = [read_criteria(file) for file in sorted(FOLDER.glob("*.json")) if _kind(file) == "criteria"]
    return [
        run for run in found if run["settings"]["tokens"] == TOKENS and run["settings"]["refit"].get("also") == "shared"
    ]


def _kind(file: Path) -> Any:
    return json.loads(file.read_text())["kind"]


def forecast_of(file: Path) -> dict[str, Any]:
    """What `moeits forecast` wrote."""
    return dict(json.loads(file.read_text()))


def comparisons() -> Iterator[Compared]:
    """All that was predicted and measured."""
    measured = {
        (run["fingerprint"], run["settings"]["keep"], row["state"]): row
        for run in runs()
        for row in run["rows"]
        if row["criterion"] == "reconstruction"
    }
    for model in MODELS:
        forecasts = [forecast_of(FOLDER / f"forecast-{model}{judge}.json") for judge in JUDGES]
        for sizes in zip(*(forecast["sizes"] for forecast in forecasts), strict=True):
            reduction = sizes[0]["reduction"]
            for state in ("pruned", "refitted"):
                row = measured[forecasts[0]["fingerprint"], 1 - reduction, state]
                predicted = tuple(size[state] for size in sizes)
                yield Compared(model, reduction, state, predicted, row)


def table() -> str:
    """Every size of every model; a predicted interval in which the measured rise does not lie is marked."""
    head = ["model", "removed", "", *(f"predicted, by {judge}" for judge in JUDGES.values()), "measured"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for each in comparisons():
        cells = [_cell(one, mark="" if each.lies_in(judge) else " *") for judge, one in enumerate(each.predicted)]
        facts = [MODELS[each.model], f"{each.reduction:.0%}", each.state, *cells, _cell(each.measured)]
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join([*lines, ""])


def _cell(found: Mapping[str, Any], mark: str = "") -> str:
    return f"{found['rise']:.3f} ({found['low']:.3f} to {found['high']:.3f}){mark}"


def verdict() -> str:
    """How often the measured rise lies in the predicted interval."""
    found = list(comparisons())
    told = []
    for judge, name in enumerate(JUDGES.values()):
        inside = sum(each.lies_in(judge) for each in found)
        below = sum(each.below(judge) for each in found)
        told.append(f"{inside} of {len(found)} where {name} judges ({below} predicted too low)")
    return f"The measured rise lies in the predicted interval in {' and '.join(told)}."


def answers() -> str:
    """How often the largest safe size is the one that measurement gives."""
    told = []
    for judge, name in enumerate(JUDGES.values()):
        same = sum(
            _safe(model, state, judge) == _safe(model, state) for model in MODELS for state in ("pruned", "refitted")
        )
        told.append(f"in {same} of {2 * len(MODELS)} where {name} judges")
    return f"The largest size that is safe by {BUDGET} nats is the measured one {' and '.join(told)}."


def _safe(model: str, state: str, judge: int | None = None) -> float | None:
    """The largest reduction up to which all of the interval is below the budget, predicted by a judge or measured."""
    safe = None
    for each in comparisons():
        if (each.model, each.state) == (model, state):
            known = each.measured if judge is None else each.predicted[judge]
            if known["high"] >= BUDGET:
                break
            safe = each.reduction
    return safe


if __name__ == "__main__":
    print(table())
    print(verdict())
    print(answers())
