"""Every matrix of a kept expert becomes the nearest one of a lower rank (MoE-I2, second stage)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np

from moeits.edits import Edit
from moeits.edits.weights import Detail, OnItsOwn
from moeits.errors import PlanError, SettingError
from moeits.evidence import Evidence
from moeits.settings import EXPERT, setting

_TIMES = "times_mean_rank"
_LITTLE = 1e-12


@dataclass(frozen=True)
class LowRank(OnItsOwn):
    """Singular values beyond a rank are dropped; the rank of an expert is floor(s * mean rank * kept experts), with s
    its share of importance ^ 0.15 among the kept experts of its layer. Importance is the change of the layer's output
    without it (`drop-error`).

    The matrices are written whole, so that any loader reads them and nothing gets smaller, or as two factors each by
    `prune --factors`. Where factors would take as much room as the matrix, from rank H I / (H + I) on, it stays as it
    is. Whole matrices of full rank are their own to rounding.
    """

    name: ClassVar[str] = "low-rank"
    weights_as_factors: ClassVar[str] = (
        "The matrices of the experts that are left are the nearest ones of a lower rank (`edit` in plan.json), stored "
        "as two thin factors where these are smaller; all other weights are those of the source, bit for bit."
    )
    weights: ClassVar[str] = (
        "The matrices of the experts that are left are the nearest ones of a lower rank (`edit` in plan.json), written "
        "whole, in as many bytes as before; all other weights are those of the source, bit for bit."
    )

    mean_rank: str = setting(
        "50%",
        help="Of --edit low-rank: the mean rank of an expert's matrices, a number, or a share of the full one.",
        panel=EXPERT,
        metavar="RANK|SHARE",
    )
    rank_power: float = setting(
        0.15, help="Of --edit low-rank: the power of importance by which ranks differ; 0: all are equal.", panel=EXPERT
    )

    def __post_init__(self) -> None:
        if not (isfinite(self.rank_power) and 0 <= self.rank_power <= 10):
            raise SettingError(f"--rank-power {self.rank_power} is out of range: give a power from 0 to 10.")
        _ = self._mean(1024)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("drop-error",) if self.rank_power else ()

    @property
    def undoes(self) -> Mapping[str, str]:
        return {"mask": "fills its zeros", "quantize": "makes other numbers of its few"}

    def _mean(self, full: int) -> float:
        """The mean rank where the full one is so large. Raises SettingError."""
        asked = self.mean_rank.strip()
        try:
            share = float(asked.removesuffix("%")) / 100 if asked.endswith("%") else float(asked)
        except ValueError:
            share = -1.0
        # A number from 1 on is a rank; 1 itself is one, and not all of them.
        mean = share * full if asked.endswith("%") or 0 < share < 1 else share
        if not (isfinite(share) and share > 0) or (asked.endswith("%") and share > 1) or (mean > 1 and share > 1e9):
            raise SettingError(
                f"--mean-rank {self.mean_rank!r:.40} is out of range: it is a rank such as 512, or a share of the full "
                "rank up to 100%, such as 50%."
            )
        return mean

    def details(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Detail]:
        if not self.needs:
            return {}
        importance = (evidence.of_experts("drop-error")[layer][list(kept)] + _LITTLE) ** self.rank_power
        times = importance / importance.sum() * len(kept)
        return {expert: {_TIMES: round(float(each), 6)} for expert, each in zip(kept, times, strict=True)}

    def rank(self, shape: tuple[int, int], detail: Detail) -> int:
        """Of a matrix of this shape in an expert. Raises SettingError or PlanError."""
        full, times = min(shape), detail.get(_TIMES, 1.0)
        if not isinstance(times, (int, float)) or not 0 <= times <= 1e6:
            raise PlanError(f"`{_TIMES}` of the plan's `edit` is not a number from 0 on: plan again.")
        mean = self._mean(full)
        if mean > full:
            raise SettingError(
                f"--mean-rank {self.mean_rank} is more than the rank of a matrix of {shape[0]} x {shape[1]}: give at "
                f"most {full}."
            )
        if (rank := int(times * mean)) < 1:
            raise SettingError(f"--mean-rank {self.mean_rank} leaves an expert with a rank of 0: give a larger one.")
        return min(rank, full)

    def check(self, projection: str, shape: tuple[int, int], detail: Detail) -> None:  # noqa: ARG002
        _ = self.rank(shape, detail)

    def changed(self, projection: str, weight: np.ndarray, detail: Detail) -> np.ndarray:  # noqa: ARG002
        rank = self.stored_rank((weight.shape[0], weight.shape[1]), detail)
        return weight if rank is None else of_rank(weight, rank)

    def stored_rank(self, shape: tuple[int, int], detail: Detail) -> int | None:
        """The same where factors save room, None where the matrix stays."""
        rank = self.rank(shape, detail)
        return rank if rank * sum(shape) < shape[0] * shape[1] else None


def of_rank(weight: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of that rank, float64, by the Frobenius norm."""
    left, values, right = _svd(weight)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def factors_of(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, rank) and (rank, inputs) float64, whose product that is; both with roots of the singular values."""
    left, values, right = _svd(weight)
    roots = np.sqrt(values[:rank])
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def _svd(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(weight.astype(np.float64), full_matrices=False)


EDIT: Edit = LowRank()
