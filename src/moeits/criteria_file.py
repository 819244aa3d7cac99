"""criteria.json: several criteria at one size, as a file, and what a table or a plot shows of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from moeits.choosing.criteria import shown_name
from moeits.errors import EvaluationError, MoeitsError
from moeits.run_files import Number
from moeits.typed_json import Count, read_typed


class CostOfRow(TypedDict):
    """What making a row took, with what it shares with others charged in full."""

    seconds: Number
    joules: Number | None
    peak_bytes: Count | None
    tokens: Count
    data: list[str]


class CriteriaRow(TypedDict):
    """One model of a comparison of criteria. `low` to `high` is the 95 % interval of its rise over the unpruned one."""

    name: str
    criterion: str
    seed: int | None
    state: str
    nats_per_token: Number
    rise: Number
    low: Number
    high: Number
    accepted: bool | None
    cost: CostOfRow


class TextOfCriteria(TypedDict):
    """What they were judged on, and the unpruned model's loss there."""

    file: str
    sha256: str
    documents: Count
    tokens: Count
    window_tokens: Count
    nats_per_token: Number


class CriteriaFile(TypedDict):
    """criteria.json: several criteria at one size."""

    source: str
    model_type: str
    fingerprint: str
    settings: dict[str, Any]
    experts_before: Count
    experts_kept: Count
    text: TextOfCriteria | None
    """None while there are no rows."""
    rows: list[CriteriaRow]


def read_criteria(path: Path, *, error: type[MoeitsError] = EvaluationError) -> CriteriaFile:
    """A criteria.json. Raises `error` if it is not one."""
    return read_typed(
        path,
        CriteriaFile,
        error=error,
        what="a comparison that moeits compare-criteria wrote",
        remedy="Start again with --fresh.",
        kind="criteria",
        format=1,
    )


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row as it is shown: one choice in one state, or the mean over the seeds of a random one."""

    label: str
    state: str
    loss: float
    rise: float
    low: float
    high: float
    """The 95 % interval of the rise; of several seeds from the least to the most."""
    refused: bool
    """Whether a refit was refused; of several seeds in most of them."""
    seconds: float
    joules: float | None
    peak_bytes: int | None
    tokens: int
    data: tuple[str, ...]


def shown_rows(rows: Iterable[CriteriaRow]) -> list[ShownRow]:
    """In the order of the file, the seeds of one criterion and state together."""
    groups: dict[tuple[str, str], list[CriteriaRow]] = {}
    for row in rows:
        groups.setdefault((row["criterion"], row["state"]), []).append(row)
    return [_shown(group) for group in groups.values()]


def _shown(group: list[CriteriaRow]) -> ShownRow:
    first, count = group[0], len(group)
    rises, costs = [row["rise"] for row in group], [row["cost"] for row in group]
    joules = [cost["joules"] for cost in costs]
    known = [each for each in joules if each is not None]
    several, name = count > 1, shown_name(first["criterion"])
    return ShownRow(
        label=f"{name}, {count} seeds" if several else name,
        state=first["state"],
        loss=sum(row["nats_per_token"] for row in group) / count,
        rise=sum(rises) / count,
        low=min(rises) if several else first["low"],
        high=max(rises) if several else first["high"],
        refused=2 * sum(row["accepted"] is False for row in group) > count,
        seconds=sum(cost["seconds"] for cost in costs) / count,
        joules=sum(known) / count if len(known) == count else None,
        peak_bytes=max((peak for cost in costs if (peak := cost["peak_bytes"]) is not None), default=None),
        tokens=costs[0]["tokens"],
        data=tuple(costs[0]["data"]),
    )
