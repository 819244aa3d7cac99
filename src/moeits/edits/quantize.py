"""Every kept expert's weights rounded to few bits, more for those that matter more (MC's allocation)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor, gcd, isfinite
from typing import ClassVar

import numpy as np

from moeits.edits import Edit
from moeits.edits.weights import Detail, OnItsOwn
from moeits.errors import PlanError, SettingError
from moeits.evidence import Evidence
from moeits.settings import EXPERT, setting
from moeits.signals.watched import ROUNDING_BITS, rounding_error

MOST_BITS = 8
_BITS = 2.5
_GROUP, _SMALLEST_GROUP = 128, 16
_FREQUENCY_POWER, _GATE_POWER, _ERROR_POWER = 1.0, 1.5, 2.0


@dataclass(frozen=True)
class Quantize(OnItsOwn):
    """Round to nearest, with a scale and a zero for every 128 weights of a row; one bit is a sign and a mean size.

    Bits are shared out among the kept experts of each layer as in Mixture Compressor (MC): the least sum of frequency *
    (sum of gates)^1.5 * error^2 of at most `bits` an expert on average, found exactly, with an expert at the largest
    width and one at the next. Error is the change of the layer's output if one expert alone is rounded. Weights are
    written as the numbers that they stand for, in the dtype that they had: nothing gets smaller, and only the quality
    can be judged. Not as published: MC then quantizes by GPTQ. Its program raises errors to 1, and declares 2.
    """

    name: ClassVar[str] = "quantize"
    weights: ClassVar[str] = (
        "The weights of the experts that are left are rounded to few bits (`edit` in plan.json) and written as the "
        "numbers that these stand for, in as many bytes as before; all other weights are those of the source, bit for "
        "bit."
    )

    bits: float | None = setting(
        None,
        help="Of --edit quantize: at most so many bits a weight, on average; 2.5, or those of a single width.",
        panel=EXPERT,
    )
    bit_widths: str = setting(
        "1,2,3",
        help="Of --edit quantize: how many bits an expert may have; one number: the same for all.",
        panel=EXPERT,
    )

    def __post_init__(self) -> None:
        widths = self.widths
        if not (isfinite(self.most) and widths[0] <= self.most <= MOST_BITS):
            raise SettingError(
                f"--bits {self.most} is met by no width of --bit-widths {self.bit_widths}: give a number from "
                f"{widths[0]} to {MOST_BITS}, or smaller widths."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Ascending. Raises SettingError."""
        try:
            widths = tuple(sorted({int(each) for each in self.bit_widths.split(",")}))
        except ValueError:
            widths = ()
        known = ROUNDING_BITS if len(widths) > 1 else range(1, MOST_BITS + 1)
        if not widths or not set(widths) <= set(known):
            raise SettingError(
                f"--bit-widths {self.bit_widths!r:.40} is out of range: it is one number from 1 to {MOST_BITS}, or "
                f"several of {', '.join(map(str, ROUNDING_BITS))}, such as 1,2,3."
            )
        return widths

    @property
    def undoes(self) -> Mapping[str, str]:
        """With two bits or more 0 stays 0; one bit has no 0."""
        return (
            {"mask": "fills its zeros where an expert has 1 bit (--bit-widths 2,3 has none)"}
            if self.widths[0] == 1
            else {}
        )

    @property
    def most(self) -> float:
        """How many bits a weight has at most, on average."""
        if self.bits is not None:
            return self.bits
        return self.widths[0] if len(self.widths) == 1 else _BITS

    def budget(self, experts: int) -> int:
        """How many bits so many experts have at most, all together; a product is not cut for a float's last digit."""
        return floor(experts * self.most + 1e-9)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        several = len(self.widths) > 1
        return ("frequency", "router-score", *map(rounding_error, self.widths)) if several else ()

    def details(self, evidence: Evidence, layer: int, kept: Sequence[int]) -> Mapping[int, Detail]:
        if not self.needs:
            return {}
        chosen, gates, *errors = (evidence.of_experts(name)[layer][list(kept)] for name in self.needs)
        importance = _shares(chosen) ** _FREQUENCY_POWER * _shares(gates) ** _GATE_POWER
        costs = importance[:, None] * np.stack(errors, axis=1) ** _ERROR_POWER
        found = least_cost(costs, self.widths, self.budget(len(kept)))
        if found is None:
            raise SettingError(
                f"--bits {self.most} cannot be met in layer {layer}: of {len(kept)} experts one has "
                f"{self.widths[-1]} bits and one {self.widths[-2]}, the others {self.widths[0]} at least. Give more "
                "bits."
            )
        return {expert: {"bits": bits} for expert, bits in zip(kept, found, strict=True)}

    def bits_of(self, detail: Detail) -> int:
        """Of one expert. Raises PlanError."""
        bits = detail.get("bits", self.widths[0])
        if type(bits) is not int or not 1 <= bits <= MOST_BITS:
            raise PlanError(f"The bits of an expert in `edit` are not a number from 1 to {MOST_BITS}: plan again.")
        return bits

    def check(self, projection: str, shape: tuple[int, int], detail: Detail) -> None:  # noqa: ARG002
        _ = self.bits_of(detail)

    def changed(self, projection: str, weight: np.ndarray, detail: Detail) -> np.ndarray:  # noqa: ARG002
        return rounded(weight, self.bits_of(detail))


def _shares(values: np.ndarray) -> np.ndarray:
    return values / (values.sum() or 1.0)


def group_of(inputs: int) -> int:
    """How many weights of a row share a scale: 128, or what it has in common with the row; the whole row if little."""
    common = gcd(_GROUP, inputs)
    return common if common >= _SMALLEST_GROUP else inputs


def rounded(weight: np.ndarray, bits: int) -> np.ndarray:
    """(outputs, inputs) float32, to the nearest of 2^bits equally spaced numbers from least to largest of each group.

    With one bit: plus or minus the mean size of the group.
    """
    groups = weight.reshape(len(weight), -1, group_of(weight.shape[1]))
    if bits == 1:
        made = np.where(groups < 0, -1, 1) * np.abs(groups).mean(axis=2, keepdims=True)
        return made.reshape(weight.shape).astype(np.float32)
    least, most = (groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True))
    least, most = np.minimum(least, 0), np.maximum(most, 0)  # 0 is always one of them
    scale = (most - least) / (2**bits - 1)
    scale = np.where(scale > 0, scale, 1)
    zero = np.rint(-least / scale)
    codes = np.clip(np.rint(groups / scale) + zero, 0, 2**bits - 1)
    return ((codes - zero) * scale).reshape(weight.shape).astype(np.float32)


def least_cost(costs: np.ndarray, widths: Sequence[int], budget: int) -> tuple[int, ...] | None:
    """Of each expert the width by which the sum of `costs` (experts, widths) is least; None where none can be.

    All bits together are at most `budget`; of two or more experts and widths one has the largest width and one the
    next. A dynamic programme over experts, bits spent and which of the two are there, exact; on ties fewer bits.
    """
    asked = 2 if min(len(widths), len(costs)) >= 2 else 0
    flags = [tuple(int(at == len(widths) - 1 - each) for each in range(asked)) for at in range(len(widths))]
    best: dict[tuple[int, tuple[int, ...]], tuple[float, tuple[int, ...]]] = {(0, (0,) * asked): (0.0, ())}
    for of_expert in costs:
        grown: dict[tuple[int, tuple[int, ...]], tuple[float, tuple[int, ...]]] = {}
        for ((spent, there), (cost, chosen)), (at, bits) in product(best.items(), enumerate(widths)):
            if spent + bits > budget:
                continue
            key = (spent + bits, tuple(max(pair) for pair in zip(there, flags[at], strict=True)))
            found = (cost + float(of_expert[at]), (*chosen, bits))
            if key not in grown or found < grown[key]:
                grown[key] = found
        best = grown
    whole = [(cost, spent, chosen) for (spent, there), (cost, chosen) in best.items() if all(there)]
    return min(whole)[2] if whole else None


EDIT: Edit = Quantize()
