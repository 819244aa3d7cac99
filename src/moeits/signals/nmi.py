"""Normalized mutual information of two weights, exactly as the paper's equations 4-6, by plug-in entropies.

Each weight is binned once, over its own range; a pair is then compared by counting how often each pair of bins occurs.
Nothing is sampled or approximated: the result equals `np.histogram` and `np.histogram2d` to rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isclose, log, sqrt
from typing import Any, ClassVar, Self, cast

import numpy as np

from moeits.errors import SettingError, ShapeMismatch
from moeits.settings import EXPERT, SCORING, setting
from moeits.signals import Memory, PairSignal, pairwise
from moeits.signals.independence import expected_information
from moeits.signals.sample import parsed_sample

MOST_BINS = 65536
PRESETS = ("paper", "authors-code")

# Model type -> projection weights of the authors' program, where they are not the mean (docs/method.md).
AUTHORS_CODE = {
    "qwen2_moe": {"gate": 0.2, "up": 0.4, "down": 0.4},
    "deepseek_v2": {"gate": 0.2, "up": 0.4, "down": 0.4},
}


def parse_weights(text: str) -> dict[str, float]:
    """`gate=0.2,up=0.4,down=0.4` as a mapping. Raises SettingError."""
    try:
        return {name.strip(): float(value) for name, value in (item.split("=") for item in text.split(","))}
    except ValueError:
        raise SettingError(
            f"--projection-weights {text} cannot be read: write it like gate=0.2,up=0.4,down=0.4."
        ) from None


@dataclass(frozen=True, kw_only=True)
class Codes:
    """One weight as the numbers of its occupied bins."""

    codes: np.ndarray
    """(N,) uint16: for each entry, in row-major order, the number of its bin among the occupied ones."""
    counts: np.ndarray
    """(B,) int64: entries per occupied bin, none of them 0."""
    entropy: float
    """Plug-in entropy over the bins, in nats (paper, eq. 4)."""


@dataclass(frozen=True, kw_only=True)
class NMI(PairSignal):
    """I(A;B) / sqrt(H(A) H(B)) in [0, 1], entropies in nats over each weight's own equal-width histogram; summed over
    the projections of an expert by their weights (paper, eqs. 4-11).

    `bins`: "auto" for NumPy's rule (the smaller of the Sturges and the limited Freedman-Diaconis width), or a fixed
    number of bins. Plug-in estimates are biased upwards: independent weights score above 0 (`floor` says how much).
    Raises SettingError if `bins` is neither "auto" nor a number from 1 to 65,536, or the preset is not known.
    """

    name: ClassVar[str] = "nmi"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    preset: str = setting(
        "paper",
        help="Projection weights: their mean, or those of the authors' program.",
        panel=SCORING,
        choices=PRESETS,
    )
    bins: str | int = setting("auto", help="Bins of a weight's histogram: auto, or a number.", panel=EXPERT)
    projection_weights: Mapping[str, float] | None = setting(
        None, help="Projection weights by hand.", panel=EXPERT, metavar="gate=W,up=W,down=W", parse=parse_weights
    )

    sample: str | float | None = setting(
        None,
        help="Estimate scores from a share of the entries, such as 1/8, or from a number of them.",
        panel=SCORING,
        metavar="SHARE",
        shown_default="all entries: exact",
    )
    sample_seed: int = setting(0, help="Which entries are sampled.", panel=EXPERT)

    def __post_init__(self) -> None:
        if self.sample is not None:
            object.__setattr__(self, "sample", parsed_sample(self.sample))
        if self.preset not in PRESETS:
            raise SettingError(f"--preset {self.preset} is not one of {', '.join(PRESETS)}.")
        object.__setattr__(self, "bins", _checked_bins(self.bins))

    def for_model(self, projections: Sequence[str], model_type: str) -> Self:
        """With `projection_weights`, of each projection, by hand or by the preset; as `SampledNMI` for a sample."""
        if self.sample is not None and type(self) is NMI:
            from moeits.signals.sampled_nmi import SampledNMI

            return cast("Self", SampledNMI(**asdict(self)).for_model(projections, model_type))
        if self.projection_weights is not None:
            return replace(self, projection_weights=_checked_weights(projections, self.projection_weights))
        by_preset = AUTHORS_CODE.get(model_type) if self.preset == "authors-code" else None
        return replace(self, projection_weights=by_preset or dict.fromkeys(projections, 1 / len(projections)))

    @property
    def settings(self) -> dict[str, Any]:
        settings = asdict(self)
        if self.sample is None:  # exact evidence says what it said before there were samples
            del settings["sample"], settings["sample_seed"]
        return settings

    def passes(self, projections: Sequence[str]) -> Mapping[tuple[str, ...], float]:
        """Projection by projection; one of weight 0 is not read."""
        weights = self.projection_weights or dict.fromkeys(projections, 1 / len(projections))
        return {(name,): weight for name, weight in weights.items() if weight > 0}

    def encode(self, parts: Mapping[str, np.ndarray]) -> Codes:
        (weight,) = parts.values()
        return self.encode_weight(weight)

    def compare(self, rows: Sequence[Codes], columns: Sequence[Codes]) -> np.ndarray:
        return pairwise(self.compare_two, rows, columns)

    def encode_weight(self, weight: np.ndarray) -> Codes:
        """Bin one float32, float16 or bfloat16 weight; the last two are widened to float32, never rounded.

        Raises NonFiniteWeight on NaN or infinity, SettingError if its range is too narrow for its number of bins, or if
        a sample was asked for, which `SampledNMI` takes.
        """
        from moeits.signals.binning import bin_weight

        if self.sample is not None and type(self) is NMI:
            raise SettingError(
                f"NMI compares all entries, and not {self.sample} of them: ask its for_model for the signal that does, "
                "or make a SampledNMI."
            )

        codes, counts = bin_weight(weight, self.bins)
        return Codes(codes=codes, counts=counts, entropy=_entropy(counts))

    def compare_two(self, a: Codes, b: Codes) -> float:
        """Normalized mutual information of two encoded weights, I(A;B) / sqrt(H(A) H(B)).

        Paper: eqs. 5-6. Dimensionless, in [0, 1], symmetric to the last bit. A constant weight shares nothing: 0.
        Equals scikit-learn's `normalized_mutual_info_score(..., average_method="geometric")` on the bin numbers.
        Raises ShapeMismatch if the two weights have different sizes.
        """
        if a.codes.size != b.codes.size:
            raise ShapeMismatch(f"Weights of {a.codes.size} and {b.codes.size} entries cannot be compared.")
        if a.entropy == 0 or b.entropy == 0:
            return 0.0
        n = a.codes.size
        joint = log(n) - self.joint_sum(a, b) / n
        return _normalized(a.entropy + b.entropy - joint, a.entropy, b.entropy)

    def joint_sum(self, a: Codes, b: Codes) -> float:
        """sum of c ln c over all cells of the joint histogram of two encoded weights."""
        from moeits.signals.joint_counts import joint_count_log_count

        return joint_count_log_count(a.codes, b.codes, a.counts.size, b.counts.size)

    def floor(self, encoded: Sequence[Codes]) -> np.ndarray:
        """(E, E), diagonal 0: the NMI expected if the weights were independent, given their marginals.

        docs/method.md, section 5. Agrees with the mean over permuted entries within 0.3 %, from 32 x 48 to 1408 x 2048
        entries, Gaussian or Student-t (tests/test_independence.py).
        """
        information = expected_information([codes.counts for codes in encoded])
        floor = np.zeros_like(information)
        for i, a in enumerate(encoded):
            for j, b in enumerate(encoded[:i]):
                if a.entropy > 0 and b.entropy > 0:
                    # Beyond nine decimals it is rounding, which depends on the BLAS and on the number of weights.
                    expected = round(_normalized(information[i, j], a.entropy, b.entropy), 9)
                    floor[i, j] = floor[j, i] = expected
        return floor

    def memory(self, entries: int, itemsize: int) -> Memory:
        from moeits.signals.binning import BINNING_BYTES
        from moeits.signals.joint_counts import TABLE_BYTES

        # While a pair is counted: the joint table, and twice the list of its cells that wrapped.
        return Memory(encoded=2 * entries, encoding=BINNING_BYTES, comparing=TABLE_BYTES + entries // 32)


def _checked_weights(projections: Sequence[str], by_hand: Mapping[str, float]) -> dict[str, float]:
    weights = {name: float(weight) for name, weight in by_hand.items()}
    complete = set(weights) == set(projections) and min(weights.values()) >= 0
    if not complete or not isclose(sum(weights.values()), 1, abs_tol=1e-9):
        raise SettingError(
            f"--projection-weights must give {', '.join(projections)} weights that are not negative and sum to 1; got "
            + ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
            + "."
        )
    return {name: weights[name] for name in projections}


def _checked_bins(bins: str | int) -> str | int:
    if bins == "auto":
        return bins
    number = int(bins) if str(bins).isdecimal() else 0
    if not 1 <= number <= MOST_BINS:
        raise SettingError(f"--bins {bins} is out of range: give auto, or a number of bins from 1 to {MOST_BINS}.")
    return number


def _entropy(counts: np.ndarray) -> float:
    """Plug-in entropy in nats of a histogram without empty bins; the order of the bins does not matter to a bit."""
    if counts.size == 1:
        return 0.0
    ordered = np.sort(counts).astype(np.float64)
    total = ordered.sum()
    return float(np.log(total) - (ordered * np.log(ordered)).sum() / total)


def _normalized(information: float, entropy_a: float, entropy_b: float) -> float:
    # Rounding can leave the closed interval by 1e-16; the quantity itself cannot.
    return min(max(information / sqrt(entropy_a * entropy_b), 0.0), 1.0)
