"""The least important weights of every kept expert become zeros (Wanda, MoE-Pruner)."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moeits.edits import Edit
from moeits.edits.weights import Detail, OnItsOwn
from moeits.errors import PlanError, SettingError
from moeits.evidence import Evidence
from moeits.settings import EXPERT, setting

_NORMS = {
    "moe-pruner": ("gated-input-norm", "gated-neuron-norm"),
    "wanda": ("input-norm", "neuron-norm"),
    "magnitude": (),
}
_PARTS = ("hidden", "neurons")
"""Of what a plan has norms: the inputs of gate and up, and those of down."""


@dataclass(frozen=True)
class Mask(OnItsOwn):
    """In every output row the weights with the smallest |W| * norm of their input are 0, the first ones on ties.

    The norm is over the tokens that chose the expert, of the input (`wanda`) or of the input times the gate
    (`moe-pruner`), both of the unpruned model; of an expert that no token chose |W| alone decides. What is not as
    published: MoE-Pruner watches each layer behind the masked ones before it, and distils afterwards. Nothing gets
    smaller or faster by zeros alone.
    """

    name: ClassVar[str] = "mask"
    weights: ClassVar[str] = (
        "Of the weights of those experts that are left the least important ones are zeros (`edit` in plan.json); all "
        "other weights are those of the source, bit for bit."
    )

    sparsity: str = setting(
        "0.5",
        help="Of --edit mask: the share of zeros in every row, or N:M for N of every M weights that stay, such as 2:4.",
        panel=EXPERT,
        metavar="SHARE|N:M",
    )
    mask_by: str = setting(
        "moe-pruner",
        help="Of --edit mask: what importance is besides |W|: norms of gated inputs, of inputs, or nothing.",
        panel=EXPERT,
        choices=tuple(_NORMS),
    )

    def __post_init__(self) -> None:
        if self.mask_by not in _NORMS:
            raise SettingError(f"--mask-by {self.mask_by!r:.40} is not one of {', '.join(_NORMS)}.")
        _ = self.pattern

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return _NORMS[self.mask_by]

    @property
    def pattern(self) -> tuple[float, int]:
        """The share of zeros, and of how many weights of a row it is each time: 0 for the whole row."""
        asked = self.sparsity.strip()
        try:
            if ":" in asked:
                stay, of = map(int, asked.split(":"))
                share, each = (1 - stay / of, of) if 0 < stay < of else (-1.0, 0)
            else:
                share, each = float(asked.removesuffix("%")) / (100 if asked.endswith("%") else 1), 0
        except (ValueError, ArithmeticError):
            share, each = -1.0, 0
        if not 0 < share < 1 or each > 1024:
            raise SettingError(
                f"--sparsity {self.sparsity!r:.40} is out of range: it is a share of zeros between 0 and 1, such as "
                "0.5, or N:M with fewer that stay than there are, such as 2:4."
            )
        return share, each

    def details(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Detail]:
        norms = [evidence.known(name)[layer] for name in self.needs]
        return {
            expert: {part: _text(of[expert]) for part, of in zip(_PARTS, norms, strict=False)}
            for expert in kept
            if norms and norms[0][expert].any()
        }

    def check(self, projection: str, shape: tuple[int, int], detail: Detail) -> None:
        _, each = self.pattern
        if each and shape[1] % each:
            raise SettingError(
                f"--sparsity {self.sparsity} is of every {each} weights of a row, and rows of {projection} have "
                f"{shape[1]}: give a number that divides them, or a share."
            )
        if detail and len(_norms(detail, projection)) != shape[1]:
            raise PlanError(f"The norms in `edit` are not those of {shape[1]} inputs of {projection}: plan again.")

    def changed(self, projection: str, weight: np.ndarray, detail: Detail) -> np.ndarray:
        share, each = self.pattern
        scores = np.abs(weight)
        if detail:
            scores = scores * _norms(detail, projection)
        groups = scores.reshape(-1, each or weight.shape[1])
        zeros = int(round(groups.shape[1] * share, 9))
        least = np.argsort(groups, axis=1, kind="stable")[:, :zeros]
        stays = np.ones(groups.shape, bool)
        np.put_along_axis(stays, least, False, axis=1)
        return np.where(stays.reshape(weight.shape), weight, 0)


def _text(norms: np.ndarray) -> str:
    """Norms as a plan keeps them: half floats, the largest 1, for only their ratios count."""
    return b64encode((norms / (norms.max() or 1)).astype("<f2").tobytes()).decode()


def _norms(detail: Detail, projection: str) -> np.ndarray:
    """Raises PlanError for what is not a text of norms."""
    try:
        norms = np.frombuffer(b64decode(detail[_PARTS[projection == "down"]], validate=True), "<f2")
    except (KeyError, TypeError, ValueError):
        raise PlanError("The norms in `edit` are not those that moeits plan writes: plan again.") from None
    if not (np.isfinite(norms).all() and (norms >= 0).all()):
        raise PlanError("The norms in `edit` are not numbers from 0 on: plan again.")
    return norms.astype(np.float32)


EDIT: Edit = Mask()
